"""Dense stages as TensorRT engines, for `staged_cuda`: any of its flavours, by what all have in common."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from regionrt.runtime.errors import BackendError

from .cuda import Cuda
from .engine_worker import Engine, EngineWork
from .gpu_stages import BoundStage, GpuStage, Shape, Tensor
from .tensorrt import open_engine


class TensorRTStages:
    """Opens engines of dense stages (`GpuStageEngine`); arguments as of `TensorRTRunner`."""

    def __init__(self, flavour: str, cuda: Cuda, trt: Any, *, allow_host_code: bool = False) -> None:
        self.name = flavour
        self.about: Mapping[str, Any] = {"library": f"{trt.__name__} {trt.__version__}"}
        self._cuda, self._trt, self._allow_host_code = cuda, trt, allow_host_code
        self._engines: list[Engine] = []

    def open(self, path: Path, stage: Mapping[str, Any]) -> GpuStage:
        engine = open_engine(path, self._trt, self._cuda, self._allow_host_code)
        for kind, found in (("inputs", engine.inputs), ("outputs", engine.outputs)):
            if set(found) != set(stage[kind]):
                raise BackendError(
                    f"{path}: expected the {kind} {', '.join(stage[kind])}, found {', '.join(found)}: this is not the "
                    f"engine of {stage['name']}"
                )
        self._engines.append(engine)
        return TensorRTStage(engine, self._cuda)

    def last_errors(self) -> str:
        return "TensorRT said: " + "; ".join(engine.log.last_errors() for engine in self._engines)


class TensorRTStage:
    """An engine of a stage (`GpuStage`)."""

    def __init__(self, engine: Engine, cuda: Cuda) -> None:
        self._engine, self._cuda = engine, cuda
        self.workspace_bytes = engine.workspace_bytes

    def at(self, shapes: Mapping[str, Shape], workspace: int, stream: int) -> BoundStage:
        return BoundTensorRTStage(self._engine, self._cuda, shapes, workspace, stream)

    def close(self) -> None:
        """Nothing: the engine goes with its last context."""


class BoundTensorRTStage(EngineWork):
    """A context at fixed shapes (`BoundStage`)."""

    def __init__(self, engine: Engine, cuda: Cuda, shapes: Mapping[str, Shape], workspace: int, stream: int) -> None:
        context = engine.context(engine.profile_for(shapes), workspace, cuda, stream)
        made = engine.set_shapes(context, shapes)
        super().__init__(engine, context)
        self.inputs: Mapping[str, Tensor] = {
            name: Tensor(tuple(shapes[name]), dtype.name) for name, dtype in engine.inputs.items()
        }
        self.outputs: Mapping[str, Tensor] = {
            name: Tensor(made[name], dtype.name) for name, dtype in engine.outputs.items()
        }
