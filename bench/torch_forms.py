"""PyTorch's rows in a report: eager, the form measured to be the fastest, and torchvision's own forward."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn
from torchvision.models.detection import FasterRCNN

from regionrt.runtime.clock import TimingOptions
from regionrt.runtime.image import Canvas
from regionrt.runtime.predictor import Predictor
from regionrt.train.models.proposal_net import ProposalNet
from regionrt.train.tasks import task_of

from . import figures
from .baseline import torch_baseline
from .candidates import Entry
from .forms import EAGER, TorchForm, forms_to_try
from .fresh import measure_fresh
from .latency import time_requests
from .torchvision_forward import TorchvisionForward

Tell = Callable[[str], None]
EAGER_ID, BEST_ID, TORCHVISION_ID = "torch-eager", "torch-best", "torch-torchvision"


class TorchForms:
    """Makes the rows for one module on one canvas.

    checkpoint: a file in our format with the module's weights, for measurements in processes of their own; None (a live
    module): `torch.compile` is not tried, because only in a process of its own its time can be bounded.
    """

    def __init__(
        self,
        module: nn.Module,
        labels: Sequence[str],
        canvas: Canvas,
        *,
        checkpoint: Path | None,
        size_bytes: int | None,
        thresholds: Mapping[str, Any] | None,
        threads: int,
    ) -> None:
        self.module = module
        self.labels = labels
        self.canvas = canvas
        self.checkpoint = checkpoint
        self.size_bytes = size_bytes
        self.thresholds = thresholds
        self.threads = threads
        self.device = str(next(module.parameters()).device)

    @property
    def task(self) -> str:
        return task_of(self.module).name

    def eager(self) -> Entry:
        """The baseline: what users run."""
        return self._entry(EAGER_ID, "PyTorch eager", EAGER, self.predictor(EAGER))

    def torchvision(self) -> Entry | None:
        """`module(images)`, torchvision's own resize, NMS and mask pasting; None for nets of ours."""
        if not isinstance(self.module, FasterRCNN):
            return None
        entry = self._entry(TORCHVISION_ID, "torchvision's own forward", EAGER, None)
        entry.form = "torchvision"
        entry.predict = TorchvisionForward(self.module, self.labels, self.canvas, paste_masks=True)
        entry.job = self._job("torchvision")
        return entry

    def for_accuracy(self, entry: Entry) -> Predictor | None:
        """The predictor that evaluation takes: torchvision's forward without pasting, else the entry's own."""
        if entry.id == TORCHVISION_ID:
            return TorchvisionForward(self.module, self.labels, self.canvas, paste_masks=False)
        return entry.predict

    def best(
        self,
        eager: Entry,
        photos: Sequence[np.ndarray],
        *,
        batch: int,
        compile_seconds: float,
        rounds: int = 6,
        tell: Tell | None = None,
    ) -> Entry:
        """The form with the lowest median among eager and `forms_to_try`; that may be `eager` itself, with a note.

        Forms with `torch.compile` first compile in a process of their own (`compile_seconds` at most, 0: not at all);
        that also fills the compiler's cache, from which this process takes what it needs.
        """
        tell = tell or (lambda text: None)
        tried: dict[TorchForm, Entry] = {EAGER: eager}
        failed: list[str] = []
        whole = not isinstance(self.module, (FasterRCNN, ProposalNet))
        for form in forms_to_try(self.device, whole):
            named = f"{form} {form.precision}"
            fresh = None
            if form.compiled:
                if not compile_seconds or self.checkpoint is None:
                    continue
                tell(f"torch.compile: {named}, {compile_seconds:.0f} s at most")
                sizes = (1, batch) if batch > 1 else (1,)
                fresh = measure_fresh(self._job(form) or {}, photos[:2], batches=sizes, timeout_s=compile_seconds)
                if "failed" in fresh:
                    failed.append(f"{named}: {fresh['failed']}")
                    continue
            entry = self._entry(BEST_ID, "PyTorch at its best", form, self.predictor(form))
            entry.fresh = fresh
            tried[form] = entry
        tell("PyTorch's forms against each other")
        names = {f"{form} {form.precision}": entry for form, entry in tried.items()}
        open_ = {name: entry.predict for name, entry in names.items() if entry.predict is not None}
        options = TimingOptions(warmup_rounds=2, warmup_seconds=0.0, rounds=rounds)
        timed = time_requests(open_, photos[: max(1, rounds // 2)], options, batch=1).latencies
        winner = min(timed, key=lambda name: timed[name].p50_ms)
        told = ", ".join(f"{name} {figures.milliseconds(timed[name].p50_ms)} ms" for name in timed)
        best = names[winner]
        best.notes.append(f"the fastest of PyTorch's forms in a run of {rounds} rounds: {told}")
        best.notes += [f"left out: {why}" for why in failed]
        if compile_seconds and self.checkpoint is None:
            best.notes.append("torch.compile was not tried: that needs a checkpoint")
        for name, entry in names.items():
            if name != winner and entry is not eager and entry.predict is not None:
                entry.predict.close()
        return best

    def predictor(self, form: TorchForm) -> Predictor:
        return torch_baseline(self.module, form, canvas=self.canvas, labels=self.labels)

    def _entry(self, id_: str, name: str, form: TorchForm, predict: Predictor | None) -> Entry:
        where = "" if self.device == "cpu" else f" ({self.device})"
        return Entry(
            id=id_,
            name=name + where,
            kind="torch",
            backend="torch",
            form=str(form),
            precision=form.precision,
            predict=predict,
            size_bytes=self.size_bytes,
            job=self._job(form),
        )

    def _job(self, form: TorchForm | str) -> dict[str, Any] | None:
        if self.checkpoint is None:
            return None
        taken = task_of(self.module).proposals_of(self.module)
        return {
            "kind": "torch",
            "checkpoint": str(self.checkpoint.absolute()),
            "form": form if isinstance(form, str) else asdict(form),
            "canvas": self.canvas.to_json(),
            "thresholds": dict(self.thresholds) if self.thresholds else None,
            "threads": self.threads,
            "search": None if taken is None else taken.search.to_json(),
            "device": self.device,
        }
