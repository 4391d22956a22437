"""Sessions of the staged form on a GPU: for each input shape, the steps bound to one piece of memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from regionrt.runtime.errors import BackendError
from regionrt.runtime.gpu.arrays import GpuArray, packed
from regionrt.runtime.gpu.kernels import Kernels
from regionrt.runtime.gpu.steps import OPS, Layouts

from .cuda import Cuda
from .gpu_stages import BoundStage, GpuStage, GpuStageEngine, Shape, Tensor
from .gpu_worker import Block, Session, both_blocks, bytes_of, require_memory, views
from .staged_steps import OUTPUTS


class StagedSessions:
    """Sessions of one worker (`gpu_worker.Sessions`). They lie in the same memory, which grows with the largest."""

    def __init__(
        self,
        label: str,
        steps: list[Mapping[str, Any]],
        stages: Mapping[str, GpuStage],
        constants: Mapping[str, GpuArray],
        inputs: Mapping[str, np.dtype],
        layouts: Layouts,
        engine: GpuStageEngine,
        cuda: Cuda,
        kernels: Kernels,
    ) -> None:
        self.label = f"{label} staged"
        self.inputs = inputs
        self._steps, self._stages, self._constants, self._layouts = steps, stages, constants, layouts
        self._engine, self._cuda, self._kernels = engine, cuda, kernels
        workspace = max((stage.workspace_bytes for stage in stages.values()), default=0)
        require_memory(cuda, workspace, f"{self.label}: its workspace")
        self._workspace = cuda.allocate(workspace)
        self._arena, self._arena_bytes = 0, -1
        self._blocks: tuple[Block, Block] | None = None

    def open(self, shapes: Mapping[str, Shape], stream: int, forget: Callable[[], None]) -> Session:
        values = {
            **self._constants,
            **{name: GpuArray(0, tuple(shapes[name]), dtype.name) for name, dtype in self.inputs.items()},
        }
        stages: dict[str, BoundStage] = {}
        try:
            scratch = self._follow(values, stages, stream)
            outputs = {name: values[name] for name in OUTPUTS if name in values}
            own = set(values) - {*self._constants, *self.inputs, *outputs}
            offsets, arena = packed({name: values[name].nbytes for name in sorted(own)})
            self._make_room(shapes, outputs, arena + scratch, forget)
            assert self._blocks is not None
            inputs_block, outputs_block = self._blocks
            dtypes = {name: np.dtype(array.dtype) for name, array in outputs.items()}
            input_views, input_offsets, upload_bytes = views(inputs_block, shapes, self.inputs)
            output_views, output_offsets, download_bytes = views(
                outputs_block, {name: array.shape for name, array in outputs.items()}, dtypes
            )
            places = {name: self._arena + offset for name, offset in offsets.items()}
            places |= {name: inputs_block.address + offset for name, offset in input_offsets.items()}
            places |= {name: outputs_block.address + offset for name, offset in output_offsets.items()}
            for name, address in places.items():
                values[name] = GpuArray(address, values[name].shape, values[name].dtype)
            work = _StagedWork(self._steps, stages, values, self._layouts, self._kernels, self._arena + arena)
        except BaseException:
            for stage in stages.values():
                stage.close()
            raise
        return Session(
            work, inputs_block, outputs_block, input_views, output_views, input_offsets, upload_bytes, download_bytes
        )

    def _follow(self, values: dict[str, GpuArray], stages: dict[str, BoundStage], stream: int) -> int:
        """Goes through the steps: fills in shape and type of each value, and the stages; the ops' scratch in bytes."""
        scratch = 0
        for step in self._steps:
            if "op" in step:
                op = OPS[step["op"]]
                found = op.outputs(step, values, self._layouts)
                scratch = max(scratch, op.workspace(step, values | _unplaced(found)))
                values.update(_unplaced(found))
                continue
            slots = step["slots"]
            rows = {name: values[name].shape for name in step["inputs"]}
            if slots is not None:
                images = values["images"].shape[0]
                rows = {name: (images * slots, *_row_shape(step, name)) for name in step["inputs"]}
            stage = self._stages[step["name"]].at(rows, self._workspace, stream)
            stages[step["name"]] = stage
            for name in step["inputs"]:
                _check_same(step["name"], name, values[name], stage.inputs[name])
            for name in step["outputs"]:
                tensor = stage.outputs[name]
                shape = tensor.shape if slots is None else (images, slots, *tensor.shape[2:])
                values[name] = GpuArray(0, shape, tensor.dtype)
        return scratch

    def _make_room(
        self, shapes: Mapping[str, Shape], outputs: Mapping[str, GpuArray], arena: int, forget: Callable[[], None]
    ) -> None:
        inputs = {name: bytes_of(shapes[name], dtype) for name, dtype in self.inputs.items()}
        needed = inputs, {name: array.nbytes for name, array in outputs.items()}
        if self._blocks is not None and arena <= self._arena_bytes and _fit(self._blocks, needed):
            return
        forget()
        held = [block.sizes for block in self._blocks or ()] or [{}, {}]
        sizes = [{name: max(size, old.get(name, 0)) for name, size in of.items()}
                 for old, of in zip(held, needed, strict=True)]  # fmt: skip
        arena = max(arena, self._arena_bytes)
        self._free_room()
        require_memory(
            self._cuda, arena + sum(sum(of.values()) for of in sizes), f"{self.label}: its values for {dict(shapes)}"
        )
        self._arena = self._cuda.allocate(arena)
        self._arena_bytes = arena
        self._blocks = both_blocks(self._cuda, *sizes)

    def _free_room(self) -> None:
        for block in self._blocks or ():
            block.close(self._cuda)
        if self._arena_bytes >= 0:
            self._cuda.free(self._arena)
        self._blocks, self._arena_bytes = None, -1

    def last_errors(self) -> str:
        return self._engine.last_errors()

    def close(self) -> None:
        self._free_room()
        self._cuda.free(self._workspace)


class _StagedWork:
    """Stages and launches, in turn (`gpu_worker.Work`)."""

    def __init__(
        self,
        steps: list[Mapping[str, Any]],
        stages: Mapping[str, BoundStage],
        values: dict[str, GpuArray],
        layouts: Layouts,
        kernels: Kernels,
        scratch: int,
    ) -> None:
        self._steps, self._stages, self._values, self._layouts = steps, stages, values, layouts
        self._kernels, self._scratch = kernels, scratch
        for name, stage in stages.items():
            step = next(step for step in steps if step.get("name") == name)
            for tensor in (*step["inputs"], *step["outputs"]):
                stage.place(tensor, values[tensor].address)
        self._parts = [self._part(step) for step in steps]

    def _part(self, step: Mapping[str, Any]) -> list[Any]:
        if "op" not in step:
            return [self._stages[step["name"]]]
        return [*OPS[step["op"]].launches(self._kernels, step, self._values, self._layouts, self._scratch)]

    def enqueue(self, stream: int) -> None:
        for part in self._parts:
            for each in part:
                each.enqueue(stream)

    def place(self, name: str, address: int) -> None:
        before = self._values[name]
        self._values[name] = GpuArray(address, before.shape, before.dtype)
        for number, step in enumerate(self._steps):
            if name not in step["inputs"]:
                continue
            if "op" in step:
                self._parts[number] = self._part(step)  # a launch holds its addresses
            else:
                self._stages[step["name"]].place(name, address)

    def capturable(self, stream: int) -> bool:
        return all(stage.capturable(stream) for stage in self._stages.values())

    def close(self) -> None:
        for stage in self._stages.values():
            stage.close()


def _fit(blocks: tuple[Block, Block], needed: tuple[dict[str, int], dict[str, int]]) -> bool:
    return all(size <= block.sizes[name] for block, of in zip(blocks, needed, strict=True) for name, size in of.items())


def _unplaced(shapes: Mapping[str, tuple[Shape, str]]) -> dict[str, GpuArray]:
    return {name: GpuArray(0, shape, dtype) for name, (shape, dtype) in shapes.items()}


def _row_shape(step: Mapping[str, Any], name: str) -> Shape:
    """The shape of one row of a stage's input."""
    shape = tuple(step["shapes"][name][1:])
    if not all(isinstance(side, int) for side in shape):
        raise BackendError(f"{step['name']}: {name}: expected rows of fixed size, found {list(shape)}; export again")
    return shape


def _check_same(stage: str, name: str, value: GpuArray, tensor: Tensor) -> None:
    if value.dtype != tensor.dtype or math.prod(value.shape) != math.prod(tensor.shape):
        raise BackendError(
            f"{stage}: {name}: expected {tensor.dtype} {list(tensor.shape)}, the step before gives {value.dtype} "
            f"{list(value.shape)}; export the bundle again and build its engines anew"
        )
