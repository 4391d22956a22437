"""One worker of an engine: a stream, a workspace, buffers, and an execution context for each input shape.

A context belongs to one profile and one set of shapes for its life: a captured CUDA graph holds its context's state,
and TensorRT asks for one context per graph. They share the worker's workspace: a worker does one thing at a time.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from regionrt.runtime.errors import BackendError

from .cuda import Cuda, Graph
from .device_arrays import DeviceArray, device_array, on_device

Shapes = tuple[tuple[int, ...], ...]  # of the inputs, in their order
MOST_SESSIONS = 8
"""Shapes whose contexts and graphs a worker keeps; the one not used for longest goes."""
_ALIGNMENT = 256


@dataclass(frozen=True)
class Profile:
    """The shapes that one optimisation profile takes, by input."""

    index: int
    least: Mapping[str, tuple[int, ...]]
    usual: Mapping[str, tuple[int, ...]]
    most: Mapping[str, tuple[int, ...]]

    def takes(self, shapes: Mapping[str, tuple[int, ...]]) -> bool:
        return all(
            len(shape) == len(self.most[name])
            and all(
                low <= size <= high for low, size, high in zip(self.least[name], shape, self.most[name], strict=True)
            )
            for name, shape in shapes.items()
        )


@dataclass(frozen=True)
class Engine:
    """A deserialised engine and what its tensors are."""

    trt: Any
    handle: Any  # ICudaEngine
    log: Any  # has last_errors()
    label: str  # for messages
    inputs: Mapping[str, np.dtype]
    outputs: Mapping[str, np.dtype]
    profiles: tuple[Profile, ...]
    workspace_bytes: int
    runtime_config: Any = None  # IRuntimeConfig of TensorRT for RTX: its kernels, compiled here, are shared by contexts

    def create_context(self) -> Any:
        """An execution context without memory of its own."""
        if self.runtime_config is not None:
            context = self.handle.create_execution_context(self.runtime_config)
        else:
            context = self.handle.create_execution_context(self.trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        return self.check(context, "an execution context")

    def check(self, result: Any, what: str) -> Any:
        """TensorRT says no with None or False: BackendError with what its logger heard."""
        if result is None or result is False:
            raise BackendError(f"{self.label}: {what} failed: {self.log.last_errors()}")
        return result


class Block:
    """Memory on the GPU and pinned memory of the host: all inputs, or all outputs, of one profile."""

    def __init__(self, cuda: Cuda, sizes: Mapping[str, int]) -> None:
        self.sizes = sizes
        total = sum(map(_aligned, sizes.values()))
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
            offset += _aligned(size)
        return offsets

    def close(self, cuda: Cuda) -> None:
        cuda.free(self.address)
        cuda.free_pinned(self.host)


@dataclass
class Session:
    """A context with fixed shapes, where its tensors lie in the blocks, and its graph once that is captured."""

    context: Any
    inputs: Block
    outputs: Block
    input_views: dict[str, np.ndarray]
    output_views: dict[str, np.ndarray]
    input_offsets: dict[str, int]
    upload_bytes: int
    download_bytes: int
    runs: int = 0
    graph: Graph | None = field(default=None)


class Worker:
    """Runs one request at a time. Made and used by whichever thread holds it; `cuda` must be current in that thread."""

    def __init__(self, engine: Engine, cuda: Cuda, capture: bool) -> None:
        self._engine, self._cuda = engine, cuda
        self.why_no_graph = None if capture else "its shapes depend on the data"
        self._sessions: OrderedDict[tuple[int, Shapes], Session] = OrderedDict()
        self._blocks: dict[int, tuple[Block, Block]] = {}
        require_memory(cuda, engine.workspace_bytes, f"{engine.label}: its workspace")
        self._workspace = cuda.allocate(engine.workspace_bytes)
        self._stream = cuda.stream()

    def run(self, values: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Inputs by name, NumPy or on the GPU -> copies of the outputs, by name."""
        on_gpu: dict[str, DeviceArray] = {}
        try:
            for name, value in values.items():
                if on_device(value):
                    on_gpu[name] = device_array(value, self._stream, self._cuda.synchronize)
            session = self._session({name: tuple(value.shape) for name, value in {**values, **on_gpu}.items()})
            for name, value in values.items():
                if name not in on_gpu:
                    np.copyto(session.input_views[name], value)
            self._execute(session, on_gpu)
            return {name: view.copy() for name, view in session.output_views.items()}
        finally:
            for array in on_gpu.values():
                array.release()

    def _execute(self, session: Session, on_gpu: Mapping[str, DeviceArray]) -> None:
        graph = None if on_gpu else self._graph_of(session)
        try:
            if graph is not None:
                graph.launch(self._stream)
            elif on_gpu:
                self._execute_with(session, on_gpu)
            else:
                self._enqueue(session)
        except BackendError:
            with contextlib.suppress(BackendError):  # the first error is the one to tell; copies may be under way
                self._cuda.synchronize(self._stream)
            raise
        try:
            self._cuda.synchronize(self._stream)
        except BackendError as error:
            raise BackendError(
                f"{self._engine.label}: {error}; TensorRT said: {self._engine.log.last_errors()}"
            ) from error
        session.runs += not on_gpu

    def _execute_with(self, session: Session, on_gpu: Mapping[str, DeviceArray]) -> None:
        """The caller's memory in the place of our own, for this run."""
        for name, offset in session.input_offsets.items():
            if name in on_gpu:
                self._address(session, name, on_gpu[name].address)
            else:
                view = session.input_views[name]
                host = session.inputs.host[offset : offset + view.nbytes]
                self._cuda.upload(session.inputs.address + offset, host, self._stream)
        try:
            self._enqueue(session, upload=False)
        finally:
            for name in on_gpu:
                self._address(session, name, session.inputs.address + session.input_offsets[name])

    def _enqueue(self, session: Session, upload: bool = True) -> None:
        inputs, outputs = session.inputs, session.outputs  # of the profile; a session uses the first part of each
        if upload:
            self._cuda.upload(inputs.address, inputs.host[: session.upload_bytes], self._stream)
        self._engine.check(session.context.execute_async_v3(self._stream), "the execution")
        self._cuda.download(outputs.host[: session.download_bytes], outputs.address, self._stream)

    def _graph_of(self, session: Session) -> Graph | None:
        """Captured at the second run of a shape: the first lets TensorRT do what a change of shape asks for."""
        if session.graph is not None or self.why_no_graph is not None or session.runs == 0:
            return session.graph
        capturable = getattr(session.context, "is_stream_capturable", None)  # TensorRT for RTX: kernels may yet come
        if capturable is not None and not capturable(self._stream):
            return None
        try:
            session.graph = self._cuda.capture(self._stream, lambda: self._enqueue(session))
            if session.graph is None:
                self.why_no_graph = f"{self._cuda.library} cannot capture"
        except BackendError as error:
            self.why_no_graph = str(error)
        return session.graph

    def _session(self, shapes: Mapping[str, tuple[int, ...]]) -> Session:
        profile = self._profile(shapes)
        key = profile.index, tuple(shapes[name] for name in self._engine.inputs)
        found = self._sessions.get(key)
        if found is None:
            found = self._sessions[key] = self._open(profile, shapes)
            if len(self._sessions) > MOST_SESSIONS:
                _close(self._sessions.popitem(last=False)[1])
        self._sessions.move_to_end(key)
        return found

    def _profile(self, shapes: Mapping[str, tuple[int, ...]]) -> Profile:
        fitting = [profile for profile in self._engine.profiles if profile.takes(shapes)]
        if not fitting:
            ranges = " or ".join(
                ", ".join(f"{name} {list(p.least[name])}…{list(p.most[name])}" for name in p.most)
                for p in self._engine.profiles
            )
            asked = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
            raise BackendError(
                f"{self._engine.label}: expected {ranges}, found {asked}; export with another size and build again"
            )
        return min(fitting, key=lambda profile: _distance(profile, shapes))

    def _open(self, profile: Profile, shapes: Mapping[str, tuple[int, ...]]) -> Session:
        engine, check = self._engine, self._engine.check
        context = engine.create_context()
        check(context.set_optimization_profile_async(profile.index, self._stream), f"profile {profile.index}")
        self._cuda.synchronize(self._stream)
        if hasattr(context, "set_device_memory"):
            context.set_device_memory(self._workspace, engine.workspace_bytes)
        else:  # TensorRT 10.0
            context.device_memory = self._workspace
        if profile.index not in self._blocks:
            self._blocks[profile.index] = self._blocks_of(profile, context)
        inputs, outputs = self._blocks[profile.index]
        for name, shape in shapes.items():
            check(context.set_input_shape(name, shape), f"shape {list(shape)} of {name}")
        missing = context.infer_shapes()
        if missing:
            raise BackendError(f"{engine.label}: the shapes of {', '.join(missing)} are not known before it runs")
        made = {name: tuple(context.get_tensor_shape(name)) for name in engine.outputs}
        for name, shape in made.items():
            if min(shape, default=0) < 0:
                raise BackendError(
                    f"{engine.label}: {name} has the shape {list(shape)}: expected outputs of fixed size"
                )
        input_views, input_offsets, upload_bytes = _views(inputs, shapes, engine.inputs)
        output_views, output_offsets, download_bytes = _views(outputs, made, engine.outputs)
        session = Session(
            context, inputs, outputs, input_views, output_views, input_offsets, upload_bytes, download_bytes
        )
        for name, offset in input_offsets.items():
            self._address(session, name, inputs.address + offset)
        for name, offset in output_offsets.items():
            self._address(session, name, outputs.address + offset)
        return session

    def _blocks_of(self, profile: Profile, context: Any) -> tuple[Block, Block]:
        engine = self._engine
        for name, shape in profile.most.items():
            engine.check(context.set_input_shape(name, shape), f"shape {list(shape)} of {name}")
        inputs = {name: _bytes(profile.most[name], dtype) for name, dtype in engine.inputs.items()}
        outputs = {name: int(context.get_max_output_size(name)) for name in engine.outputs}
        unknown = [name for name, size in outputs.items() if size < 0]
        if unknown:
            raise BackendError(f"{engine.label}: the size of {', '.join(unknown)} is not bounded: expected fixed sizes")
        require_memory(self._cuda, sum((inputs | outputs).values()), f"{engine.label}: its inputs and outputs")
        return Block(self._cuda, inputs), Block(self._cuda, outputs)

    def _address(self, session: Session, name: str, address: int) -> None:
        self._engine.check(session.context.set_tensor_address(name, address), f"the address of {name}")

    def close(self) -> None:
        """Frees everything; the worker must be idle."""
        for session in self._sessions.values():
            _close(session)
        self._sessions.clear()
        for blocks in self._blocks.values():
            for block in blocks:
                block.close(self._cuda)
        self._blocks.clear()
        self._cuda.free_stream(self._stream)
        self._cuda.free(self._workspace)


def require_memory(cuda: Cuda, needed: int, what: str) -> None:
    """BackendError, in MiB, where the GPU has less than `needed` bytes free."""
    free, total = cuda.memory_bytes()
    if needed > free:
        raise BackendError(
            f"{what} needs {needed / 2**20:,.0f} MiB of GPU memory, {free / 2**20:,.0f} of {total / 2**20:,.0f} MiB "
            "are free: close what else uses the GPU, export a smaller canvas, or build with a smaller --workspace"
        )


def _views(
    block: Block, shapes: Mapping[str, tuple[int, ...]], dtypes: Mapping[str, np.dtype]
) -> tuple[dict[str, np.ndarray], dict[str, int], int]:
    """(views of the host's memory, offsets, bytes to copy) of tensors packed into a block."""
    sizes = {name: _bytes(shapes[name], dtype) for name, dtype in dtypes.items()}
    offsets = block.place(sizes)
    views = {
        name: block.host[offsets[name] : offsets[name] + sizes[name]].view(dtype).reshape(shapes[name])
        for name, dtype in dtypes.items()
    }
    return views, offsets, max(offsets[name] + sizes[name] for name in sizes)


def _close(session: Session) -> None:
    if session.graph is not None:
        session.graph.close()
        session.graph = None
    session.context = None


def _bytes(shape: tuple[int, ...], dtype: np.dtype) -> int:
    return int(np.prod(shape, dtype=np.int64)) * dtype.itemsize


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _distance(profile: Profile, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """How far the shapes are from those that the profile is tuned for."""
    return sum(abs(a - b) for name, shape in shapes.items() for a, b in zip(shape, profile.usual[name], strict=True))
