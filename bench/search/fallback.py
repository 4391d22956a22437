"""The accuracy contract of 8 bits: layers go back to fp32, the most sensitive first, until the drop holds."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from regionrt.export.bundle import ExportOptions, Prepared, export_bundle
from regionrt.export.compress.calibration import Photo
from regionrt.export.errors import ExportError
from regionrt.runtime import load
from regionrt.train.checkpoint import Checkpoint
from regionrt.train.tasks import Task
from regionrt.train.torch_runner import torch_predictor

from .drop import contract_metrics, points_lost

Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class Step:
    """One try: layers in fp32, and the points lost on the validation split (the worst of the task's metrics)."""

    kept: tuple[str, ...]
    drop: float

    def __str__(self) -> str:
        return f"{self.drop:.2f} points with {len(self.kept)} layers in fp32"


class UnreachableError(ExportError):
    """No choice of layers keeps the drop; `steps` are all tries."""

    def __init__(self, text: str, steps: Sequence[Step]) -> None:
        super().__init__(text)
        self.steps = tuple(steps)


def keep_until_it_holds(
    checkpoint: Checkpoint,
    reference: Checkpoint,
    options: ExportOptions,
    photos: Sequence[Photo],
    task: Task,
    data: Any,
    max_drop: float,
    progress: Progress = lambda text, done: None,
) -> tuple[ExportOptions, Prepared, list[Step]]:
    """The options with as many layers kept in fp32 as it takes, what further exports can use, and the tries.

    Each try is exported, loaded as the runtime would, and evaluated on `data`, the validation split, beside `reference`
    in eager PyTorch. Raises UnreachableError with the closest try's figures when no layer is left to give back.
    """
    prepared = Prepared()
    steps: list[Step] = []
    with tempfile.TemporaryDirectory() as scratch:
        with torch_predictor(reference, size=options.size) as predict:
            wanted = contract_metrics(task, task.evaluate(predict, data).metrics)
        bundle = Path(scratch) / "bundle"
        kept: tuple[str, ...] = options.keep
        while True:
            tried = replace(options, keep=kept)
            try:
                export_bundle(checkpoint, bundle, tried, photos=photos, prepared=prepared)
            except ExportError as error:
                if not steps:
                    raise
                raise UnreachableError(_unreachable(steps, max_drop), steps) from error
            with load(bundle) as predict:
                found = contract_metrics(task, task.evaluate(predict, data).metrics)
            steps.append(Step(kept, points_lost(wanted, found)))
            progress(str(steps[-1]), len(steps) / (len(steps) + 3))
            if steps[-1].drop <= max_drop:
                return tried, prepared, steps
            assert prepared.quantization is not None
            in_fp32 = {*kept, *prepared.quantization.kept}
            left = [name for name in prepared.quantization.sensitivity if name not in in_fp32]
            if len(left) < 2:
                raise UnreachableError(_unreachable(steps, max_drop), steps)
            kept = (*kept, left[0])


def _unreachable(steps: Sequence[Step], max_drop: float) -> str:
    best = min(steps, key=lambda step: step.drop)
    names = ", ".join(best.kept[:3]) + (", …" if len(best.kept) > 3 else "")
    return (
        f"the validation split loses over {max_drop:g} points with every choice of layers: the closest loses "
        f"{best} ({names or 'none'}); allow a larger drop, or another precision"
    )
