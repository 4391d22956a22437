"""One worker on a GPU: a stream, pinned memory, and a session for each input shape, replayed as a CUDA graph.

What is executed between the copies in and out is a session's `Work`: a whole engine, or stages and ops in turn.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from regionrt.runtime.errors import BackendError

from .cuda import Cuda, Graph
from .device_arrays import DeviceArray, device_array, on_device

Shapes = tuple[tuple[int, ...], ...]  # of the inputs, in their order
MOST_SESSIONS = 8
"""Shapes whose sessions and graphs a worker keeps; the one not used for longest goes."""
_ALIGNMENT = 256

INPUTS: dict[str, np.dtype] = {"images": np.dtype(np.uint8), "image_sizes": np.dtype(np.int32)}
"""Of every request."""


class Work(Protocol):
    """What a session executes, on memory whose addresses do not change while it lives."""

    def enqueue(self, stream: int) -> None: ...

    def place(self, name: str, address: int) -> None:
        """From now on the input `name` lies at `address`."""

    def capturable(self, stream: int) -> bool:
        """Whether it could be captured by now."""

    def close(self) -> None: ...


class Sessions(Protocol):
    """Opens a worker's sessions and owns the memory that they share."""

    label: str  # for messages
    inputs: Mapping[str, np.dtype]

    def open(self, shapes: Mapping[str, tuple[int, ...]], stream: int, forget: Callable[[], None]) -> Session:
        """A session for inputs of these shapes. `forget` closes the others: before memory that they lie in is freed."""

    def last_errors(self) -> str:
        """What the library has said of late, for a failed execution."""

    def close(self) -> None: ...


class Block:
    """Memory on the GPU and pinned memory of the host: all inputs, or all outputs."""

    def __init__(self, cuda: Cuda, sizes: Mapping[str, int]) -> None:
        self.sizes = sizes
        total = sum(map(aligned, sizes.values()))
        self.host = cuda.pinned(total)
        try:
            self.address = cuda.allocate(total)
        except BackendError:
            cuda.free_pinned(self.host)
            raise

    def place(self, sizes: Mapping[str, int]) -> dict[str, int]:
        """Offsets of tensors of these sizes, packed."""
        offsets, offset = {}, 0
        for name, size in sizes.items():
            if size > self.sizes[name]:
                raise BackendError(
                    f"{name}: {size:,} bytes, but its profile was said to need {self.sizes[name]:,} at most"
                )
            offsets[name] = offset
            offset += aligned(size)
        return offsets

    def close(self, cuda: Cuda) -> None:
        cuda.free(self.address)
        cuda.free_pinned(self.host)


@dataclass
class Session:
    """Work at fixed shapes, where its inputs and outputs lie in the blocks, and its graph once that is captured."""

    work: Work
    inputs: Block
    outputs: Block
    input_views: dict[str, np.ndarray]
    output_views: dict[str, np.ndarray]
    input_offsets: dict[str, int]
    upload_bytes: int
    download_bytes: int
    runs: int = 0
    graph: Graph | None = field(default=None)

    def close(self) -> None:
        if self.graph is not None:
            self.graph.close()
            self.graph = None
        self.work.close()


class Worker:
    """Runs one request at a time. Made and used by whichever thread holds it; `cuda` must be current in that thread.

    why_no_graph: why its requests cannot be captured; None if nothing is known against it.
    replayed: how many of its requests were a graph's.
    """

    def __init__(self, sessions: Sessions, cuda: Cuda, stream: int, why_no_graph: str | None = None) -> None:
        self._opener, self._cuda, self._stream = sessions, cuda, stream
        self.why_no_graph = why_no_graph
        self.replayed = 0
        self._sessions: OrderedDict[Shapes, Session] = OrderedDict()

    def run(self, values: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Inputs by name, NumPy or on the GPU -> copies of the outputs, by name."""
        on_gpu: dict[str, DeviceArray] = {}
        try:
            for name, value in values.items():
                if on_device(value):
                    found = on_gpu[name] = device_array(value, self._stream, self._cuda)
                    if found.dtype != self._opener.inputs[name]:
                        raise BackendError(
                            f"{self._opener.label}: {name}: expected {self._opener.inputs[name]} on the GPU, found "
                            f"{found.dtype} {list(found.shape)}"
                        )
            session = self.session({name: tuple(value.shape) for name, value in {**values, **on_gpu}.items()})
            for name, value in values.items():
                if name not in on_gpu:
                    np.copyto(session.input_views[name], value)
            self._execute(session, on_gpu)
            return {name: view.copy() for name, view in session.output_views.items()}
        finally:
            for array in on_gpu.values():
                array.release()

    def session(self, shapes: Mapping[str, tuple[int, ...]]) -> Session:
        """That of inputs of these shapes; opened if there is none yet."""
        key = tuple(shapes[name] for name in self._opener.inputs)
        found = self._sessions.get(key)
        if found is None:
            found = self._opener.open(shapes, self._stream, self._forget)
            self._sessions[key] = found
            if len(self._sessions) > MOST_SESSIONS:
                self._sessions.popitem(last=False)[1].close()
        self._sessions.move_to_end(key)
        return found

    def _forget(self) -> None:
        while self._sessions:
            self._sessions.popitem()[1].close()

    def _execute(self, session: Session, on_gpu: Mapping[str, DeviceArray]) -> None:
        graph = self._graph_of(session)
        try:
            if graph is not None:
                self._fill(session, on_gpu)
                graph.launch(self._stream)
            elif on_gpu:
                self._execute_in_place(session, on_gpu)
            else:
                self._fill(session, on_gpu)
                self._enqueue(session)
        except BackendError:
            with contextlib.suppress(BackendError):  # the first error is the one to tell; copies may be under way
                self._cuda.synchronize(self._stream)
            raise
        try:
            self._cuda.synchronize(self._stream)
        except BackendError as error:
            raise BackendError(f"{self._opener.label}: {error}; {self._opener.last_errors()}") from error
        session.runs += 1
        self.replayed += graph is not None

    def _fill(self, session: Session, on_gpu: Mapping[str, DeviceArray]) -> None:
        """Brings the inputs to where the graph reads: all that come from the host alone in one copy."""
        inputs = session.inputs  # a session uses the first part of it
        if not on_gpu:
            self._cuda.upload(inputs.address, inputs.host[: session.upload_bytes], self._stream)
            return
        for name, array in on_gpu.items():
            address = inputs.address + session.input_offsets[name]
            self._cuda.copy(address, array.address, session.input_views[name].nbytes, self._stream)
        self._upload_rest(session, on_gpu)

    def _upload_rest(self, session: Session, on_gpu: Mapping[str, DeviceArray]) -> None:
        """Those inputs that come from the host, beside others that lie on the GPU."""
        inputs = session.inputs
        for name, offset in session.input_offsets.items():
            if name not in on_gpu:
                host = inputs.host[offset : offset + session.input_views[name].nbytes]
                self._cuda.upload(inputs.address + offset, host, self._stream)

    def _execute_in_place(self, session: Session, on_gpu: Mapping[str, DeviceArray]) -> None:
        """The caller's memory in the place of our own, for this run: without a graph no copy is needed."""
        for name, array in on_gpu.items():
            session.work.place(name, array.address)
        self._upload_rest(session, on_gpu)
        try:
            self._enqueue(session)
        finally:
            for name in on_gpu:
                session.work.place(name, session.inputs.address + session.input_offsets[name])

    def _enqueue(self, session: Session) -> None:
        """What a graph holds: its inputs lie there already, and may have come from anywhere."""
        outputs = session.outputs  # a session uses the first part of it
        session.work.enqueue(self._stream)
        self._cuda.download(outputs.host[: session.download_bytes], outputs.address, self._stream)

    def _graph_of(self, session: Session) -> Graph | None:
        """Captured at the second run of a shape: the first lets a library do what a change of shape asks for."""
        if session.graph is not None or self.why_no_graph is not None or session.runs == 0:
            return session.graph
        if not session.work.capturable(self._stream):
            return None
        try:
            session.graph = self._cuda.capture(self._stream, lambda: self._enqueue(session))
            if session.graph is None:
                self.why_no_graph = f"{self._cuda.library} cannot capture"
        except BackendError as error:
            self.why_no_graph = str(error)
        return session.graph

    def close(self) -> None:
        """Frees everything; the worker must be idle."""
        self._forget()
        self._opener.close()
        self._cuda.free_stream(self._stream)


def both_blocks(cuda: Cuda, inputs: Mapping[str, int], outputs: Mapping[str, int]) -> tuple[Block, Block]:
    """Blocks for inputs and outputs of these sizes, or neither."""
    first = Block(cuda, inputs)
    try:
        return first, Block(cuda, outputs)
    except BackendError:
        first.close(cuda)
        raise


def require_memory(cuda: Cuda, needed: int, what: str) -> None:
    """BackendError, in MiB, where the GPU has less than `needed` bytes free."""
    free, total = cuda.memory_bytes()
    if needed > free:
        raise BackendError(
            f"{what} needs {needed / 2**20:,.0f} MiB of GPU memory, {free / 2**20:,.0f} of {total / 2**20:,.0f} MiB "
            "are free: close what else uses the GPU, export a smaller canvas, or build with a smaller --workspace"
        )


def views(
    block: Block, shapes: Mapping[str, tuple[int, ...]], dtypes: Mapping[str, np.dtype]
) -> tuple[dict[str, np.ndarray], dict[str, int], int]:
    """(views of the host's memory, offsets, bytes to copy) of tensors packed into a block."""
    sizes = {name: bytes_of(shapes[name], dtype) for name, dtype in dtypes.items()}
    offsets = block.place(sizes)
    found = {
        name: block.host[offsets[name] : offsets[name] + sizes[name]].view(dtype).reshape(shapes[name])
        for name, dtype in dtypes.items()
    }
    return found, offsets, max(offsets[name] + sizes[name] for name in sizes)


def bytes_of(shape: tuple[int, ...], dtype: np.dtype) -> int:
    return int(np.prod(shape, dtype=np.int64)) * dtype.itemsize


def aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT
