"""What the staged form on a GPU asks of who runs its dense stages: TensorRT here, torch in a benchmark."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from .gpu_worker import Work

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Tensor:
    """What a stage takes or gives: its type by NumPy's name."""

    shape: Shape
    dtype: str


class BoundStage(Work, Protocol):
    """A dense stage at fixed shapes. `place` is called for each of its inputs and outputs before the first `enqueue`,
    which puts its work on the stream and waits for nothing; addresses are multiples of 256."""

    inputs: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]


class GpuStage(Protocol):
    """A dense stage, opened; shared by all workers."""

    workspace_bytes: int

    def at(self, shapes: Mapping[str, Shape], workspace: int, stream: int) -> BoundStage:
        """The stage for inputs of these shapes, on a workspace of its size. BackendError if it takes others."""

    def close(self) -> None: ...


class GpuStageEngine(Protocol):
    """What opens dense stages."""

    name: str
    """The backend's."""
    about: Mapping[str, Any]

    def open(self, path: Path, stage: Mapping[str, Any]) -> GpuStage:
        """`path`: the stage's file; `stage`: its entry in the manifest. BackendError if the engine refuses it."""

    def last_errors(self) -> str:
        """What it has said of late, for a failed execution."""
