"""Transfer: which layers learn, and at which rate. The recipe of a run as groups of parameters, and as a table.

Feature extractor: `freeze=("backbone",)`. Fine-tuning: `backbone_lr` below `lr`. Partly frozen: names of layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .options import TrainOptions

BACKBONE = "backbone"


@dataclass(frozen=True)
class Group:
    """Parameters that are treated alike. lr: the highest of the schedule; 0 where they are frozen."""

    name: str  # "backbone" or "new layers", and which of their parameters
    parameters: tuple[nn.Parameter, ...]
    lr: float
    weight_decay: float

    @property
    def frozen(self) -> bool:
        return self.lr == 0

    def row(self) -> dict[str, Any]:
        """For a table: plain values."""
        count = sum(p.numel() for p in self.parameters)
        return {"group": self.name, "tensors": len(self.parameters), "parameters": count, "frozen": self.frozen} | {
            "lr": self.lr, "weight_decay": self.weight_decay
        }  # fmt: skip


def groups_of(module: nn.Module, options: TrainOptions) -> list[Group]:
    """The parameters of a module in groups: backbone and new layers, weights apart from biases and norms, and frozen.

    What is frozen is what asks for no gradient: `frozen_modules` has seen to it. Biases and norms have no weight decay.
    """
    rates = {BACKBONE: options.lr if options.backbone_lr is None else options.backbone_lr, "new layers": options.lr}
    found: list[Group] = []
    for part, lr in rates.items():
        own = [p for name, p in module.named_parameters() if name.startswith(f"{BACKBONE}.") == (part == BACKBONE)]
        learning = [p for p in own if p.requires_grad]
        weights, others = ([p for p in learning if (p.ndim > 1) == is_weight] for is_weight in (True, False))
        for what, parameters, decay in (("weights", weights, options.weight_decay), ("biases, norms", others, 0.0)):
            if parameters:
                found.append(Group(f"{part}: {what}", tuple(parameters), lr, decay))
        held = tuple(p for p in own if not p.requires_grad)
        if held:
            found.append(Group(f"{part}: frozen", held, 0.0, 0.0))
    return found


def optimizer_for(groups: Sequence[Group], options: TrainOptions) -> torch.optim.Optimizer:
    """The optimiser of what learns, a group of its own for each rate and decay."""
    learning = [
        {"params": list(g.parameters), "lr": g.lr, "weight_decay": g.weight_decay} for g in groups if not g.frozen
    ]
    if options.optimizer == "adamw":
        return torch.optim.AdamW(learning, lr=options.lr, betas=(options.momentum, 0.999))
    return torch.optim.SGD(learning, lr=options.lr, momentum=options.momentum)


def schedule_for(optimizer: torch.optim.Optimizer, options: TrainOptions, steps: int) -> Any:
    """The schedule over `steps`, every group keeping its part of the highest rate; None for a constant rate.

    "one-cycle": up for `warmup` of the steps, down by a cosine. "poly": up as long, then (1 − part)^0.9 (ParseNet,
    arXiv:1506.04579, and most segmentation nets since). "constant": no warm-up either.
    """
    if options.schedule == "constant":
        return None
    if options.schedule == "one-cycle":
        highest = [group["lr"] for group in optimizer.param_groups]
        return torch.optim.lr_scheduler.OneCycleLR(
            optimizer, highest, total_steps=steps, pct_start=options.warmup, cycle_momentum=False
        )
    rising = max(options.warmup * steps, 1)

    def share(step: int) -> float:
        if step < rising:
            return (step + 1) / (rising + 1)
        return (1 - (step - rising) / max(steps - rising, 1)) ** 0.9 if step < steps else 0.0

    return torch.optim.lr_scheduler.LambdaLR(optimizer, share)
