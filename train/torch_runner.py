"""PyTorch behind the runtime's Predictor, so that checkpoints and bundles are judged by the same code."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from regionrt.runtime.errors import BackendError
from regionrt.runtime.predictor import Predictor

from .checkpoint import Checkpoint, module_from_checkpoint, read_checkpoint
from .models.region import MAX_CANDIDATES
from .tasks import task_of


class TorchRunner:
    """Runs a net of any task eagerly, as its task's `eager` defines it, on the device it is on.

    The module is used as it is and must be in eval mode. `autocast` is a dtype for `torch.autocast`, or None.
    """

    name = "torch"

    def __init__(
        self, module: nn.Module, *, candidates: int = MAX_CANDIDATES, autocast: torch.dtype | None = None
    ) -> None:
        self.module: nn.Module | None = module
        self._eager = task_of(module).eager
        self.candidates = candidates
        self.autocast = autocast

    def run(self, images: np.ndarray, image_sizes: np.ndarray, **proposals: np.ndarray) -> dict[str, np.ndarray]:
        """images uint8 [N, H, W, 3], image_sizes int32 [N, 2] -> outputs by name, as `Runner` describes them."""
        if self.module is None:
            raise BackendError("torch: the runner is closed")
        device = next(self.module.parameters()).device.type
        with torch.autocast(device, self.autocast, enabled=self.autocast is not None):
            found = self._eager(
                self.module,
                torch.from_numpy(images),
                torch.from_numpy(image_sizes),
                *map(torch.from_numpy, proposals.values()),
                candidates=self.candidates,
                stages=False,
            )
        return {name: value.cpu().numpy() for name, value in found.items()}

    def close(self) -> None:
        self.module = None


def torch_predictor(
    source: nn.Module | Checkpoint | str | Path,
    labels: Sequence[str] | None = None,
    *,
    size: Sequence[int] | None = None,
    score_threshold: float | None = None,
    max_batch: int = 4,
    autocast: torch.dtype | None = None,
) -> Predictor:
    """A Predictor on PyTorch for a checkpoint (or its path), or for a live module in eval mode with its `labels`.

    size: (height, width) of the canvas, if not the module's own.
    """
    if isinstance(source, (str, Path)):
        source = read_checkpoint(source)
    if isinstance(source, Checkpoint):
        module, labels = module_from_checkpoint(source), source.labels
    else:
        module = source
    if labels is None:
        raise ValueError("torch_predictor of a module needs its labels")
    task = task_of(module)
    return task.predictor(
        TorchRunner(module, autocast=autocast),
        task.canvas_of(module, size),
        labels,
        task.thresholds_of(module),
        score_threshold=score_threshold,
        max_batch=max_batch,
        proposals=task.proposals_of(module),
        about={"form": "eager", "precision": "fp32" if autocast is None else str(autocast).removeprefix("torch.")},
    )
