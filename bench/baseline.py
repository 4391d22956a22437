"""The PyTorch baseline: a Predictor that does what the artefacts do, in one of PyTorch's forms."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from regionrt.runtime.image import Canvas
from regionrt.runtime.predictor import Predictor
from regionrt.train.models.region import MAX_CANDIDATES
from regionrt.train.tasks import task_of
from regionrt.train.torch_runner import TorchRunner

from .forms import EAGER, TorchForm, prepared


def torch_baseline(
    module: nn.Module,
    form: TorchForm = EAGER,
    *,
    canvas: Canvas,
    labels: Sequence[str],
    candidates: int = MAX_CANDIDATES,
    max_batch: int = 4,
) -> Predictor:
    """A Predictor on PyTorch in one form: the task's `eager`, so that it does what the artefacts do.

    The module given, in eval mode, stays as it is; forms other than eager fp32 work on a copy. `torch.compile` compiles
    at the first call for a canvas size and batch, which can take a minute. Boxes are decoded in fp32 in every form.
    """
    if module.training:
        raise ValueError("torch_baseline needs module.eval()")
    task = task_of(module)
    thresholds = dict(task.thresholds_of(module))
    return task.predictor(
        TorchRunner(prepared(module, form), candidates=candidates, autocast=form.autocast),
        canvas,
        labels,
        thresholds | {"candidates": candidates} if "candidates" in thresholds else thresholds,
        max_batch=max_batch,
        proposals=task.proposals_of(module),
        about={"form": str(form), "precision": form.precision},
    )
