"""A localiser: the class of an image's one object and its box (OverFeat, arXiv:1312.6229, section 4).

Backbone, a narrow map, fully connected layers; one branch for the class, one for the box, which it gives as parts of
the canvas. Trained by cross-entropy and smooth L1 or L2. With a `pyramid` the fully connected layers read maxima of the
photo's part of the map (SPPnet, arXiv:1406.4729, section 2), whatever its size, and boxes are parts of the photo.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regionrt.plugins.pyramid_pool import torch_op as pyramid_pool
from regionrt.plugins.pyramid_pool.reference import check

from .dense import normalised
from .dense_backbones import build_dense_backbone
from .dense_config import CanvasConfig
from .errors import ModelError
from .region import check_size


@dataclass(frozen=True)
class LocaliserConfig(CanvasConfig):
    """narrow: channels of the map that the fully connected layers read. representation: their width.

    pyramid: bins of each side of the photo's part of the map, level by level, e.g. [6, 3, 2, 1]; none: all cells of the
    canvas's map, whose size is fixed then. box_weight: of the box's loss beside the class's. box_loss: "smooth_l1" or
    "l2".
    """

    backbone: str = "squeezenet1_1"
    norm: str = "batch"
    narrow: int = 32
    pyramid: tuple[int, ...] = ()
    representation: int = 256
    dropout: float = 0.1
    box_loss: str = "smooth_l1"
    box_weight: float = 10.0
    enlarge: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pyramid:
            try:
                check((None, None), self.pyramid)
            except ValueError as error:
                raise ModelError(f"pyramid {list(self.pyramid)}: {error}") from error


class Localiser(nn.Module):
    """Normalised images [N, 3, H, W] and their valid sizes int [N, 2] -> class logits [N, K] and boxes [N, 4].

    Boxes are xyxy, as parts of the canvas, or, with a pyramid, of the valid part. labels[0] is the background, which it
    never says. Without a pyramid its canvas is fixed by its fully connected layers (`fixed`).
    """

    task = "localisation"

    def __init__(self, config: LocaliserConfig, labels: Sequence[str]) -> None:
        super().__init__()
        if config.box_loss not in ("smooth_l1", "l2"):
            raise ModelError(f'box_loss {config.box_loss!r}: give "smooth_l1" or "l2"')
        self.backbone = build_dense_backbone(config.backbone, config.norm)
        self.config = config
        self.fixed = not config.pyramid
        self.num_classes = len(labels)
        self.stride = self.backbone.strides[-1]
        self.least_px = self.stride
        height, width = check_size(config.size, self.stride)
        cells = height // self.stride * (width // self.stride) if self.fixed else sum(b * b for b in config.pyramid)
        self.narrow = nn.Conv2d(self.backbone.channels[-1], config.narrow, 1)
        self.fc6 = nn.Linear(config.narrow * cells, config.representation)
        self.dropout = nn.Dropout(config.dropout)
        self.classes = nn.Linear(config.representation, len(labels) - 1)
        self.box = nn.Linear(config.representation, 4)
        with torch.no_grad():  # begins with the middle of the canvas
            self.box.weight.mul_(0.1)
            self.box.bias.copy_(torch.tensor([0.25, 0.25, 0.75, 0.75]))

    def forward(self, x: Tensor, image_sizes: Tensor) -> tuple[Tensor, Tensor]:
        map_ = self.features(x)
        return self.head(map_.flatten(1) if self.fixed else self.cut(map_, *whole_photo(image_sizes)))

    def features(self, x: Tensor) -> Tensor:
        return F.relu(self.narrow(self.backbone(x)[-1]))  # [N, narrow, H/s, W/s]

    def cut(self, map_: Tensor, rois: Tensor, counts: Tensor) -> Tensor:
        """The pyramid of each image's one region: [N, 1, narrow · Σb²]."""
        pool = pyramid_pool.differentiable if torch.is_grad_enabled() else pyramid_pool.pyramid_pool
        return pool(map_, rois.to(map_.device), counts.to(map_.device), 1 / self.stride, list(self.config.pyramid))

    def head(self, values: Tensor) -> tuple[Tensor, Tensor]:
        found = self.dropout(F.relu(self.fc6(values.flatten(1))))
        return self.classes(found), self.box(found)


def whole_photo(image_sizes: Tensor) -> tuple[Tensor, Tensor]:
    """The valid part of each canvas as its one region: float32 [N, 1, 4], xyxy in px, and int32 [N], ones."""
    sides = image_sizes.flip(1).to(torch.float32)  # width, height
    rois = torch.cat([torch.zeros_like(sides), sides], 1)[:, None]
    return rois, torch.ones_like(image_sizes[:, 0], dtype=torch.int32)


def frames_of(module: Localiser, images: Tensor, image_sizes: Tensor) -> tuple[Tensor, Tensor]:
    """What boxes are parts of, and what they are clipped to: width and height in px, float32 [N, 2] each.

    images [N, H, W, 3] and image_sizes [N, 2]: canvases and their valid sizes.
    """
    if not module.fixed:
        valid = whole_photo(image_sizes)[0][:, 0, 2:]  # as the pooling has it: then nothing but RoIs passes by our op
        return valid, valid
    valid = image_sizes.flip(1).to(torch.float32)
    return torch.ones_like(valid) * valid.new_tensor([images.shape[2], images.shape[1]]), valid


def losses(module: nn.Module, images: Tensor, image_sizes: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """`loss_class` and `loss_box`. targets: float32 [N, 5], label and xyxy in canvas px; label 0: there is no object.

    Images without an object teach nothing.
    """
    logits, boxes = (value.float() for value in module(normalised(module, images, image_sizes), image_sizes))
    targets = targets.to(logits.device)
    known = targets[:, 0] > 0
    count = known.sum().clamp(min=1)
    labels = torch.where(known, targets[:, 0].long() - 1, -1)
    of_class = F.cross_entropy(logits, labels, ignore_index=-1, reduction="sum") / count
    sides, _ = frames_of(module, images, image_sizes)
    wanted = targets[:, 1:] / sides.repeat(1, 2).to(logits.device)
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
    """Detections of one row each: what `Runner` returns, and with `stages` every value on the way.

    Those are `class_logits`, `box_fractions`, and with a pyramid `features.0` [N, C, H, W], `rois.0` [N, 1, 4],
    `roi_counts.0` [N] and `roi_features.0` [N, 1, C · Σb²].
    """
    if module.training:
        raise ValueError("eager needs module.eval()")
    map_ = module.features(normalised(module, images, image_sizes))
    between = {}
    if module.fixed:
        cut = map_.flatten(1)
    else:
        rois, counts = whole_photo(image_sizes)
        cut = module.cut(map_, rois, counts)
        between = {"features.0": map_, "rois.0": rois, "roi_counts.0": counts, "roi_features.0": cut}
    logits, fractions = (value.float() for value in module.head(cut))
    values = detection_of(logits, fractions, *frames_of(module, images, image_sizes))
    return values | between | {"class_logits": logits, "box_fractions": fractions} if stages else values


def detection_of(logits: Tensor, fractions: Tensor, sides: Tensor, valid: Tensor) -> dict[str, Tensor]:
    """The best class of logits [N, K] and the box as detections of one row; corners in order, inside the valid part.

    fractions [N, 4]: xyxy as parts of `sides`; sides, valid: width and height in px [N, 2] (`frames_of`).
    """
    scores, best = logits.softmax(1).max(1, keepdim=True)  # [N, 1]
    sides, valid = sides.to(fractions), valid.to(fractions)
    one, other = fractions[:, :2] * sides, fractions[:, 2:] * sides
    low, high = (torch.minimum(f(one, other).clamp(min=0), valid) for f in (torch.minimum, torch.maximum))
    count = torch.ones_like(best[:, 0], dtype=torch.int32)
    return {
        "num_detections": count,
        "boxes": torch.cat([low, high], 1)[:, None],
        "scores": scores,
        "labels": (best + 1).to(torch.int32),
        "overflow": torch.zeros_like(count),
    }


def localiser(config: LocaliserConfig, labels: Sequence[str]) -> Localiser:
    """A localiser, randomly initialised."""
    return Localiser(config, labels)
