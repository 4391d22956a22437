"""A localiser: the class of an image's one object and its box (OverFeat, arXiv:1312.6229, section 4).

Backbone, a narrow map, fully connected layers; one branch for the class, one for the box, which it gives as parts of
the canvas. Trained by cross-entropy and smooth L1 or L2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .dense import normalised
from .dense_backbones import build_dense_backbone
from .dense_config import CanvasConfig
from .errors import ModelError
from .region import check_size


@dataclass(frozen=True)
class LocaliserConfig(CanvasConfig):
    """narrow: channels of the map that the fully connected layers read. representation: their width.

    box_weight: of the box's loss beside the class's. box_loss: "smooth_l1" or "l2".
    """

    backbone: str = "squeezenet1_1"
    norm: str = "batch"
    narrow: int = 32
    representation: int = 256
    dropout: float = 0.1
    box_loss: str = "smooth_l1"
    box_weight: float = 10.0
    enlarge: bool = True


class Localiser(nn.Module):
    """Normalised images [N, 3, H, W] -> class logits [N, K] and boxes [N, 4], parts of the canvas, xyxy.

    Its canvas is fixed by its fully connected layers. labels[0] is the background, which it never says.
    """

    task = "localisation"
    fixed = True  # the canvas

    def __init__(self, config: LocaliserConfig, labels: Sequence[str]) -> None:
        super().__init__()
        if config.box_loss not in ("smooth_l1", "l2"):
            raise ModelError(f'box_loss {config.box_loss!r}: give "smooth_l1" or "l2"')
        self.backbone = build_dense_backbone(config.backbone, config.norm)
        self.config = config
        self.num_classes = len(labels)
        self.stride = self.backbone.strides[-1]
        self.least_px = self.stride
        height, width = check_size(config.size, self.stride)
        cells = height // self.stride * (width // self.stride)
        self.narrow = nn.Conv2d(self.backbone.channels[-1], config.narrow, 1)
        self.fc6 = nn.Linear(config.narrow * cells, config.representation)
        self.dropout = nn.Dropout(config.dropout)
        self.classes = nn.Linear(config.representation, len(labels) - 1)
        self.box = nn.Linear(config.representation, 4)
        with torch.no_grad():  # begins with the middle of the canvas
            self.box.weight.mul_(0.1)
            self.box.bias.copy_(torch.tensor([0.25, 0.25, 0.75, 0.75]))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        map_ = F.relu(self.narrow(self.backbone(x)[-1]))  # [N, narrow, H/s, W/s]
        found = self.dropout(F.relu(self.fc6(map_.flatten(1))))
        return self.classes(found), self.box(found)


def losses(module: nn.Module, images: Tensor, image_sizes: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """`loss_class` and `loss_box`. targets: float32 [N, 5], label and xyxy in canvas px; label 0: there is no object.

    Images without an object teach nothing.
    """
    logits, boxes = (value.float() for value in module(normalised(module, images, image_sizes)))
    targets = targets.to(logits.device)
    known = targets[:, 0] > 0
    count = known.sum().clamp(min=1)
    labels = torch.where(known, targets[:, 0].long() - 1, -1)
    of_class = F.cross_entropy(logits, labels, ignore_index=-1, reduction="sum") / count
    wanted = targets[:, 1:] / _sides(images).to(logits.device)
    if module.config.box_loss == "smooth_l1":
        apart = F.smooth_l1_loss(boxes, wanted, reduction="none", beta=0.1)
    else:
        apart = F.mse_loss(boxes, wanted, reduction="none")
    of_box = (apart.sum(1) * known).sum() / count
    return {"loss_class": of_class, "loss_box": module.config.box_weight * of_box}


@torch.no_grad()
def eager(
    module: nn.Module, images: Tensor, image_sizes: Tensor, *, stages: bool = True, **_: object
) -> dict[str, Tensor]:
    """Detections of one row each: what `Runner` returns, and with `stages` also `class_logits`, `box_fractions`."""
    if module.training:
        raise ValueError("eager needs module.eval()")
    logits, fractions = (value.float() for value in module(normalised(module, images, image_sizes)))
    values = detection_of(logits, fractions, image_sizes.to(logits.device), *images.shape[1:3])
    return values | {"class_logits": logits, "box_fractions": fractions} if stages else values


def detection_of(logits: Tensor, fractions: Tensor, image_sizes: Tensor, height: int, width: int) -> dict[str, Tensor]:
    """The best class of logits [N, K] and the box as detections of one row; corners in order, inside the valid part."""
    scores, best = logits.softmax(1).max(1, keepdim=True)  # [N, 1]
    sides = fractions.new_tensor([width, height])
    one, other = fractions[:, :2] * sides, fractions[:, 2:] * sides
    most = image_sizes.flip(1).to(fractions.dtype)  # width, height
    low, high = (torch.minimum(f(one, other).clamp(min=0), most) for f in (torch.minimum, torch.maximum))
    count = torch.ones_like(image_sizes[:, 0])
    return {
        "num_detections": count.to(torch.int32),
        "boxes": torch.cat([low, high], 1)[:, None],
        "scores": scores,
        "labels": (best + 1).to(torch.int32),
        "overflow": torch.zeros_like(count).to(torch.int32),
    }


def _sides(images: Tensor) -> Tensor:
    height, width = images.shape[1:3]
    return torch.tensor([width, height, width, height], dtype=torch.float32)


def localiser(config: LocaliserConfig, labels: Sequence[str]) -> Localiser:
    """A localiser, randomly initialised."""
    return Localiser(config, labels)
