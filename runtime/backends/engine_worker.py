"""An engine and its execution contexts, one for each set of input shapes.

A context belongs to one profile and one set of shapes for its life: a captured CUDA graph holds its context's state,
and TensorRT asks for one context per graph. They share the worker's workspace: a worker does one thing at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from regionrt.runtime.errors import BackendError

from .cuda import Cuda
from .gpu_worker import Block, Session, both_blocks, bytes_of, require_memory, views


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

    def context(self, profile: Profile, workspace: int, cuda: Cuda, stream: int) -> Any:
        """An execution context for a profile, on a workspace that its owner keeps."""
        if self.runtime_config is not None:
            context = self.handle.create_execution_context(self.runtime_config)
        else:
            context = self.handle.create_execution_context(self.trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        self.check(context, "an execution context")
        self.check(context.set_optimization_profile_async(profile.index, stream), f"profile {profile.index}")
        cuda.synchronize(stream)
        if hasattr(context, "set_device_memory"):
            context.set_device_memory(workspace, self.workspace_bytes)
        else:  # TensorRT 10.0
            context.device_memory = workspace
        return context

    def profile_for(self, shapes: Mapping[str, tuple[int, ...]]) -> Profile:
        """That which is tuned for the nearest shapes, of those that take these. BackendError if none does."""
        fitting = [profile for profile in self.profiles if profile.takes(shapes)]
        if not fitting:
            ranges = " or ".join(
                ", ".join(f"{name} {list(p.least[name])}…{list(p.most[name])}" for name in p.most)
                for p in self.profiles
            )
            asked = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
            raise BackendError(
                f"{self.label}: expected {ranges}, found {asked}; export with another size and build again"
            )
        return min(fitting, key=lambda profile: _distance(profile, shapes))

    def set_shapes(self, context: Any, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        """Gives a context its inputs' shapes; the outputs' shapes."""
        for name, shape in shapes.items():
            self.check(context.set_input_shape(name, shape), f"shape {list(shape)} of {name}")
        missing = context.infer_shapes()
        if missing:
            raise BackendError(f"{self.label}: the shapes of {', '.join(missing)} are not known before it runs")
        made = {name: tuple(context.get_tensor_shape(name)) for name in self.outputs}
        for name, shape in made.items():
            if min(shape, default=0) < 0:
                raise BackendError(f"{self.label}: {name} has the shape {list(shape)}: expected outputs of fixed size")
        return made

    def check(self, result: Any, what: str) -> Any:
        """TensorRT says no with None or False: BackendError with what its logger heard."""
        if result is None or result is False:
            raise BackendError(f"{self.label}: {what} failed: {self.log.last_errors()}")
        return result


class EngineWork:
    """A context whose shapes are set (`gpu_worker.Work`)."""

    def __init__(self, engine: Engine, context: Any) -> None:
        self._engine, self._context = engine, context

    def enqueue(self, stream: int) -> None:
        self._engine.check(self._context.execute_async_v3(stream), "the execution")

    def place(self, name: str, address: int) -> None:
        self._engine.check(self._context.set_tensor_address(name, address), f"the address of {name}")

    def capturable(self, stream: int) -> bool:
        asked = getattr(self._context, "is_stream_capturable", None)  # TensorRT for RTX: kernels may yet come
        return asked is None or bool(asked(stream))

    def close(self) -> None:
        self._context = None


class EngineSessions:
    """Sessions of a whole engine (`gpu_worker.Sessions`): their inputs and outputs lie in blocks of their profile."""

    def __init__(self, engine: Engine, cuda: Cuda) -> None:
        self.label, self.inputs = engine.label, engine.inputs
        self._engine, self._cuda = engine, cuda
        self._blocks: dict[int, tuple[Block, Block]] = {}
        require_memory(cuda, engine.workspace_bytes, f"{engine.label}: its workspace")
        self._workspace = cuda.allocate(engine.workspace_bytes)

    def open(self, shapes: Mapping[str, tuple[int, ...]], stream: int, forget: Callable[[], None]) -> Session:
        engine = self._engine
        profile = engine.profile_for(shapes)
        context = engine.context(profile, self._workspace, self._cuda, stream)
        if profile.index not in self._blocks:
            self._blocks[profile.index] = self._blocks_of(profile, context)
        inputs, outputs = self._blocks[profile.index]
        made = engine.set_shapes(context, shapes)
        input_views, input_offsets, upload_bytes = views(inputs, shapes, engine.inputs)
        output_views, output_offsets, download_bytes = views(outputs, made, engine.outputs)
        work = EngineWork(engine, context)
        for block, offsets in ((inputs, input_offsets), (outputs, output_offsets)):
            for name, offset in offsets.items():
                work.place(name, block.address + offset)
        return Session(work, inputs, outputs, input_views, output_views, input_offsets, upload_bytes, download_bytes)

    def _blocks_of(self, profile: Profile, context: Any) -> tuple[Block, Block]:
        engine = self._engine
        for name, shape in profile.most.items():
            engine.check(context.set_input_shape(name, shape), f"shape {list(shape)} of {name}")
        inputs = {name: bytes_of(profile.most[name], dtype) for name, dtype in engine.inputs.items()}
        outputs = {name: int(context.get_max_output_size(name)) for name in engine.outputs}
        unknown = [name for name, size in outputs.items() if size < 0]
        if unknown:
            raise BackendError(f"{engine.label}: the size of {', '.join(unknown)} is not bounded: expected fixed sizes")
        require_memory(self._cuda, sum((inputs | outputs).values()), f"{engine.label}: its inputs and outputs")
        return both_blocks(self._cuda, inputs, outputs)

    def last_errors(self) -> str:
        return f"TensorRT said: {self._engine.log.last_errors()}"

    def close(self) -> None:
        for blocks in self._blocks.values():
            for block in blocks:
                block.close(self._cuda)
        self._blocks.clear()
        self._cuda.free(self._workspace)


def _distance(profile: Profile, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """How far the shapes are from those that the profile is tuned for."""
    return sum(abs(a - b) for name, shape in shapes.items() for a, b in zip(shape, profile.usual[name], strict=True))
