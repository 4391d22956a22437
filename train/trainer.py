"""Training: Lightning's loop around a task's losses, with checkpoints by validation and resuming after a kill."""

from __future__ import annotations

import logging
import math
import signal
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from regionrt.runtime.atomic import replace_file

from .batches import EpochSampler
from .checkpoint import Checkpoint, load_weights, write_checkpoint
from .data.semantic import median_frequency_weights
from .initial import checkpoint_to_start_from, frozen_modules, init_backbone
from .models import MODELS, ModelError, build_model
from .models.memory_layout import lay_out, training_layout
from .models.proposal_net import usually_frozen
from .models.torchvision_models import BACKBONE_OF
from .options import TrainError, TrainOptions
from .run_folder import RunFolder
from .svms import svms_into, without_regressors
from .tasks import TASKS, Task
from .torch_runner import torch_predictor
from .transfer import groups_of, optimizer_for, schedule_for

__all__ = ["TrainError", "TrainOptions", "train"]

Report = Callable[[Mapping[str, Any]], None]


def train(
    model: str,
    data: str | Path,
    out: str | Path,
    options: TrainOptions | None = None,
    *,
    config: Mapping[str, Any] | None = None,
    classes: Sequence[str] | None = None,
    report: Report | None = None,
) -> Path:
    """Train a model on a data set into the run folder `out`; returns the path of its `best.pt`.

    model: a name of `MODELS`; config: its options (its dataclass's, or what torchvision's builder takes). With
    `options.init` and no `norm` given, BatchNorm of the backbone is frozen; without, it learns. With `options.start`
    the model is that checkpoint's, layers that `compress` split included, `config` what of its options is to change,
    and the data is read with its labels. classes: of the data, these only.
    report: called with the row of each epoch (losses, metrics, seconds), with {"note": text}, and once with {"groups":
    [...]}, what is frozen and which rate the others have (`Group.row`).

    After each epoch `last.pt`, `last.ckpt`, `log.json`, `log.csv` and, when the validation metric is the best so far,
    `best.pt` are replaced atomically. `options.resume` goes on after the last whole epoch; the result is the same as
    without the interruption, as every random number follows from seed, epoch, step and image. The metric is AP of
    boxes, for Mask R-CNN of masks; mIoU for segmentation; right class and IoU ≥ 0.5 for localisation.

    Raises TrainError, ModelError, CheckpointError (`init`, `start`) and DataError.
    """
    options = options or TrainOptions()
    report = report or (lambda row: None)
    start = None
    if options.start is not None:
        start = checkpoint_to_start_from(options.start, model, config or {})
    full = _config(model, start.config if start else config or {}, options)
    task = TASKS[MODELS[model].task]
    training_data = task.open_data(data, options.train_split, start.labels if start else None, classes)
    validation = None
    if options.evaluate_every:
        validation = task.open_data(data, options.val_split, training_data.labels, classes)
    labels = training_data.labels
    if task.name == "instance-segmentation" and not training_data.has_masks:
        raise TrainError(f"{model} learns masks, and {data} has none: train faster_rcnn, or give data with masks")
    if not len(training_data):
        raise TrainError(f"{data}: split {options.train_split!r} has no images")
    if options.balance and task.name != "segmentation":
        raise TrainError(f"balance weighs the classes of pixels: {model} is for {task.name}, train it without")

    torch.manual_seed(options.seed)
    module = build_model(model, full, labels)
    for size in options.sizes:
        task.canvas_of(module, size)  # ModelError before the first epoch, not in the second
    if options.init is not None:
        backbone = full.get("backbone") or BACKBONE_OF.get(model) or getattr(module, "classifier", None)
        for note in init_backbone(module, backbone, options.init):
            report({"note": note})
    if start is not None:
        load_weights(module, start.state_dict, str(options.start))
    held = frozen_modules(module, [*_frozen(module, options), *without_regressors(module)])
    if options.balance:
        weights = torch.from_numpy(median_frequency_weights(training_data))
        module.register_buffer("class_weights", weights, persistent=False)
    items = task.items(module, training_data, options.augmentation(), options.seed)

    folder = RunFolder(out)
    asked = {"model": model, "config": full, "labels": list(labels), "data": str(data), "options": options.to_json()}
    # With DDP this function runs in every process; the first one is there before Lightning starts the others.
    leading = rank_zero_only.rank == 0
    resuming = folder.open(asked, options.resume) if leading else options.resume and folder.state.exists()
    with _bar("prepare", options) as tell:
        task.prepare(module, [data for data in (training_data, validation) if data is not None], tell)
    report({"groups": [group.row() for group in groups_of(module, options)]})
    keep = _EpochEnd(folder, Checkpoint(model, full, labels, {}), task, validation, options, report)
    with _quiet():
        trainer = pl.Trainer(
            max_epochs=options.epochs,
            accelerator=options.accelerator,
            devices=options.devices,
            strategy=options.strategy,
            num_nodes=options.nodes,
            precision="bf16-mixed" if options.precision == "bf16" else "32-true",
            gradient_clip_val=options.grad_clip or None,
            callbacks=[keep, *([TQDMProgressBar(leave=False)] if options.progress else [])],
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=options.progress,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
        )
        on_cpu = trainer.strategy.root_device.type == "cpu"
        lay_out(module, training_layout(module, options.precision, on_cpu=on_cpu))
        training = _Training(module, task, items, held, options)
        with _stops_as_usual(trainer):
            trainer.fit(training, ckpt_path=folder.state if resuming else None, weights_only=True)
    if trainer.is_global_zero and full.get("classifier") == "svm":
        with _bar("SVMs", options) as tell:
            module = svms_into(folder.best, training_data, options.seed, tell)
        found = keep.evaluated(module) if validation is not None else {}
        report({"note": f"best.pt has SVMs and ridge regressors now{_told(found)}; last.pt has the softmax"})
    return folder.best


def _frozen(module: nn.Module, options: TrainOptions) -> Sequence[str]:
    """What --freeze names; without it what nets on proposals do not fine-tune of weights that --init brought."""
    if options.freeze:
        return () if options.freeze == ("none",) else options.freeze
    return usually_frozen(module) if options.init is not None else ()


def _told(found: Mapping[str, float | None]) -> str:
    return "".join(f", {name} {value:.4f}" for name, value in found.items() if value and name in ("AP", "AP50"))


@contextmanager
def _bar(what: str, options: TrainOptions) -> Iterator[Callable[[int, int], None]]:
    """A bar for (images done, images in all)."""
    with tqdm(desc=what, unit="image", leave=False, disable=not options.progress) as bar:

        def tell(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield tell


@contextmanager
def _stops_as_usual(trainer: pl.Trainer) -> Iterator[None]:
    """Lightning answers Ctrl-C by an exit, with Ctrl-C ignored from then on, and SIGTERM by an exit with code 0."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SIGTERMException as stop:
        raise SystemExit(128 + signal.SIGTERM) from stop
    except SystemExit as stop:
        if not trainer.interrupted:
            raise
        signal.signal(signal.SIGINT, handler)  # Lightning has set it in this thread, so it may be set here
        raise KeyboardInterrupt from stop


def _config(model: str, given: Mapping[str, Any], options: TrainOptions) -> dict[str, Any]:
    """The model's options in full, as they will stand in its checkpoints."""
    if model not in MODELS:
        raise ModelError(f"unknown model {model!r}: choose one of {', '.join(MODELS)}")
    config = dict(given)
    if options.size is not None:
        config["size"] = list(options.size)
    entry = MODELS[model]
    if options.init is not None and hasattr(entry.config, "norm"):
        config.setdefault("norm", "frozen")
    return entry.full_config(config)


class _Training(pl.LightningModule):
    """One step of training, its optimiser and its batches."""

    def __init__(
        self,
        module: nn.Module,
        task: Task,
        items: Any,
        held: list[nn.Module],
        options: TrainOptions,
    ) -> None:
        super().__init__()
        self.module = module
        self.task = task
        self.items = items
        self.options = options
        self._held = held  # in a list, so that Lightning does not take them for submodules of its own
        self.sums: dict[str, float] = defaultdict(float)
        self.steps = 0

    def train_dataloader(self) -> DataLoader:
        options = self.options
        sampler = EpochSampler(len(self.items), options.seed, self.trainer.global_rank, self.trainer.world_size)
        return DataLoader(
            self.items,
            batch_size=options.batch,
            sampler=sampler,
            collate_fn=self.task.collate,
            num_workers=options.workers,
            persistent_workers=options.workers > 0,
            drop_last=len(sampler) > options.batch,  # BatchNorm has no use for a last batch of one
            generator=torch.Generator(),  # the loader draws from it at every epoch: not from the global one
        )

    def configure_optimizers(self) -> Any:
        options = self.options
        optimizer = optimizer_for(groups_of(self.module, options), options)
        schedule = schedule_for(optimizer, options, max(int(self.trainer.estimated_stepping_batches), 2))
        if schedule is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_train_epoch_start(self) -> None:
        self.module.train()
        for module in self._held:
            module.eval()
        self.sums.clear()
        self.steps = 0

    def training_step(self, batch: Any, index: int) -> Tensor:
        # torchvision samples anchors and RoIs with the global generator: seeded by the step, a resumed run is the same.
        torch.manual_seed((self.options.seed * 1_000_003 + self.global_step) * 1009 + self.global_rank)
        values = self.task.losses(self.module, *batch)
        total = torch.stack(list(values.values())).sum()
        if not torch.isfinite(total):
            terms = ", ".join(f"{name} {value.item():.3g}" for name, value in values.items())
            raise TrainError(f"the loss is no number at step {self.global_step} ({terms}): lower --lr")
        for name, value in {"loss": total, **values}.items():
            self.sums[name] += value.item()
        self.steps += 1
        self.log("loss", total.detach(), prog_bar=True, logger=False)
        return total


class _EpochEnd(pl.Callback):
    """After each epoch: validation, best.pt, last.pt, last.ckpt, the log, and early stop."""

    def __init__(
        self,
        folder: RunFolder,
        checkpoint: Checkpoint,
        task: Task,
        validation: Any,
        options: TrainOptions,
        report: Report,
    ) -> None:
        self.folder = folder
        self.checkpoint = checkpoint
        self.validation = validation
        self.options = options
        self.report = report
        self.task = task
        self.judged_by = task.judged_by
        self.rows: list[dict[str, Any]] = []
        self.started = 0.0

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = list(state_dict["rows"])

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.started = time.monotonic()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        epoch = trainer.current_epoch + 1
        row: dict[str, Any] = {"epoch": epoch, "lr": max(group["lr"] for group in trainer.optimizers[0].param_groups)}
        row |= {name: total / max(pl_module.steps, 1) for name, total in pl_module.sums.items()}
        every = self.options.evaluate_every
        if self.validation is not None and (epoch % every == 0 or epoch == self.options.epochs):
            metrics = self.evaluated(pl_module.module) if trainer.is_global_zero else None
            row |= trainer.strategy.broadcast(metrics)
        row["seconds"] = time.monotonic() - self.started
        self.rows.append(row)
        if trainer.is_global_zero:
            self._write(pl_module.module)
        # All processes take part in Lightning's saving; one writes.
        with replace_file(self.folder.state) if trainer.is_global_zero else nullcontext(self.folder.state) as beside:
            trainer.save_checkpoint(beside)
        if trainer.is_global_zero:
            self.folder.log(self.rows)
            self.report(row)
        if self.options.early_stop and self._epochs_without_better() >= self.options.early_stop:
            trainer.should_stop = True

    def evaluated(self, module: nn.Module) -> dict[str, float | None]:
        """Figures of the validation split."""
        assert self.validation is not None
        module.eval()  # the next epoch's start sets the training mode again
        with torch.autocast("cpu", enabled=False), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # early nets have more candidates than the cap
            predictor = torch_predictor(module, self.checkpoint.labels)
            metrics = self.task.evaluate(predictor, self.validation, max_images=self.options.max_eval_images).metrics
        return {name: None if math.isnan(value) else float(value) for name, value in metrics.items()}

    def _write(self, module: nn.Module) -> None:
        checkpoint = Checkpoint(
            self.checkpoint.model, self.checkpoint.config, self.checkpoint.labels, module.state_dict()
        )
        scores = [row[self.judged_by] for row in self.rows if row.get(self.judged_by) is not None]
        latest = self.rows[-1].get(self.judged_by)
        if not scores or latest == max(scores):
            write_checkpoint(self.folder.best, checkpoint)
        write_checkpoint(self.folder.last, checkpoint)

    def _epochs_without_better(self) -> int:
        scored = [(row[self.judged_by], row["epoch"]) for row in self.rows if row.get(self.judged_by) is not None]
        return self.rows[-1]["epoch"] - max(scored)[1] if scored else 0


@contextmanager
def _quiet() -> Iterator[None]:
    """Lightning's advice on loggers and workers is for those who wrote the loop, not for those who train with it."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric", "lightning")]
    before = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"lightning\..*")
            warnings.filterwarnings("ignore", message=r".*lr_scheduler\.step\(\).*")
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
