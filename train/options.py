"""How a run of training goes: the options of `regionrt train`, checked."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from regionrt.runtime.errors import RegionRTError

from .batches import Augmentation

# What a resumed run may change: where and how fast it computes, not what.
FREE_TO_CHANGE = ("resume", "workers", "accelerator", "devices", "strategy", "nodes", "progress")


class TrainError(RegionRTError, ValueError):
    """Options of training that cannot be, or a run folder that does not fit them."""


@dataclass(frozen=True)
class TrainOptions:
    """Sizes are (height, width) in canvas px; `freeze` holds names of layers (`backbone`, `backbone.body.0`)."""

    epochs: int = 20
    batch: int = 4  # per process
    optimizer: str = "sgd"  # or "adamw" (lr near 0.001), which gets along with fewer steps from random weights
    lr: float = 0.01  # the highest of the schedule
    backbone_lr: float | None = None  # of the backbone's layers, where they are to learn more slowly; None: lr
    momentum: float = 0.9
    weight_decay: float = 5e-4  # of weights; biases and norms have none
    schedule: str = "one-cycle"  # (Smith and Topin, arXiv:1708.07120), "poly", or "constant"
    warmup: float = 0.15  # share of the steps in which the learning rate rises
    grad_clip: float = 10.0  # norm; 0 is off
    precision: str = "fp32"  # or "bf16": autocast, box arithmetic stays fp32
    init: Path | None = None  # ImageNet weights of the backbone, in torchvision's key names
    start: Path | None = None  # a checkpoint to go on from, e.g. a compressed one: its options, labels and weights
    freeze: tuple[str, ...] = ()
    balance: bool = False  # segmentation: weigh classes by median frequency
    resume: bool = False
    size: tuple[int, int] | None = None  # canvas; None: the model's
    sizes: tuple[tuple[int, int], ...] = ()  # canvases that epochs are trained on in turn; (): `size` alone
    flip: str = "horizontal"
    scale: tuple[float, float] = (1.0, 1.0)
    colour: float = 0.0
    seed: int = 0
    workers: int = 0  # processes that prepare batches
    early_stop: int = 0  # epochs without a better AP; 0: never
    evaluate_every: int = 1  # epochs; 0: never, and best.pt is the last epoch's
    max_eval_images: int | None = None
    train_split: str = "train"
    val_split: str = "val"
    accelerator: str = "auto"  # this and the next three are Lightning's
    devices: int | str = "auto"
    strategy: str = "auto"
    nodes: int = 1
    progress: bool = False  # a bar on stderr

    def __post_init__(self) -> None:
        for name in ("epochs", "batch", "nodes"):
            if getattr(self, name) < 1:
                raise TrainError(f"{name} {getattr(self, name)}: give 1 or more")
        for name in ("workers", "early_stop", "evaluate_every", "grad_clip", "weight_decay", "seed"):
            if not 0 <= getattr(self, name) < math.inf:
                raise TrainError(f"{name} {getattr(self, name)}: give 0 or more")
        if self.seed >= 2**32:
            raise TrainError(f"seed {self.seed}: give a number below 2³²")
        if isinstance(self.devices, int) and self.devices < 1:
            raise TrainError(f"devices {self.devices}: give 1 or more, or auto")
        if not 0 < self.lr < math.inf:
            raise TrainError(f"lr {self.lr}: give a number above 0")
        if self.backbone_lr is not None and not 0 < self.backbone_lr < math.inf:
            raise TrainError(f"backbone_lr {self.backbone_lr}: give a number above 0, or freeze the backbone")
        if not 0 <= self.momentum < 1 or not 0 < self.warmup < 1:
            raise TrainError(f"momentum {self.momentum} and warmup {self.warmup}: give shares between 0 and 1")
        if self.schedule not in ("one-cycle", "poly", "constant"):
            raise TrainError(f'schedule {self.schedule!r}: give "one-cycle", "poly" or "constant"')
        if self.optimizer not in ("sgd", "adamw"):
            raise TrainError(f'optimizer {self.optimizer!r}: give "sgd" or "adamw"')
        if self.precision not in ("fp32", "bf16"):
            raise TrainError(f'precision {self.precision!r}: give "fp32" or "bf16"')
        if self.init is not None and self.start is not None:
            raise TrainError("init and start: give ImageNet weights or a checkpoint to begin with, not both")
        if self.early_stop and not self.evaluate_every:
            raise TrainError("early_stop needs evaluation: give evaluate_every 1 or more")
        try:
            self.augmentation()
        except ValueError as error:
            raise TrainError(str(error)) from error

    def augmentation(self) -> Augmentation:
        return Augmentation(self.flip, self.scale, self.colour, self.sizes)

    def to_json(self) -> dict[str, Any]:
        """Plain values, as they stand in a run folder's `run.json`."""
        values = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}
        return values | {name: None if values[name] is None else str(values[name]) for name in ("init", "start")}
