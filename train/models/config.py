"""What `faster_rcnn` and `mask_rcnn` are made of: one frozen dataclass, stored in checkpoints as plain JSON values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .errors import ModelError
from .mask_heads import DEFAULT_LAYERS
from .options import Options
from .region_pool import POOLS

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class RegionConfig(Options):
    """Sizes are (height, width) in canvas px. None means the value that fits the backbone or the canvas."""

    backbone: str = "squeezenet1_1"
    size: tuple[int, int] = (384, 512)
    min_size: int | None = None  # shorter side of a resized image; None: of the canvas
    max_size: int | None = None  # bound of its longer side; None: of the canvas
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    norm: str = "batch"  # or "frozen": BatchNorm with the statistics and scales that --init brought
    channels: int | None = None  # of the feature maps; None: a pyramid 256, one map what its backbone gives
    anchor_sizes: tuple[Any, ...] | None = (
        None  # sides in px: one level takes all; a pyramid one number or list per level
    )
    aspect_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    canonical_scale: int = 224  # px of a RoI that is pooled from stride 16 of a pyramid (arXiv:1612.03144, eq. 1)
    pool: str = "align"  # RoIAlign's mean; "align_max": its maximum; "max": RoIPool, of one map
    representation: int = 1024  # width of fc6 and fc7
    mask_head: str = "fcn"  # convolutions; "mlp": fully connected layers
    mask_layers: tuple[int, ...] | None = None  # their widths; None: the paper's, 256 four times, or 1024 twice
    mask_loss: str = "sigmoid"  # a mask of each class on its own; "softmax": one class for each pixel
    anchors_per_image: int = 256  # sampled for the RPN's losses
    rois_per_image: int = 512  # sampled for the heads' losses
    train_proposals: int = 2000  # RoIs before that sampling
    score: float = 0.05
    nms: float = 0.5
    detections: int = 100
    proposals: int = 1000
    proposal_candidates: int | None = None  # best anchors of a map that enter its NMS; None: as many as `proposals`
    proposal_nms: float = 0.7
    svd: Mapping[str, Any] = field(default_factory=dict)  # layer name -> rank of its pair, or a `Split` as JSON

    def __post_init__(self) -> None:
        if self.norm not in ("batch", "frozen"):
            raise ModelError(f'norm {self.norm!r}: give "batch" or "frozen"')
        for name, known in (("pool", POOLS), ("mask_head", DEFAULT_LAYERS), ("mask_loss", ("sigmoid", "softmax"))):
            if getattr(self, name) not in known:
                raise ModelError(f"{name} {getattr(self, name)!r}: give {' or '.join(map(repr, known))}")
        if len(self.size) != 2 or min(self.size) < 1:
            raise ModelError(f"size {list(self.size)}: give height and width in px")
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise ModelError(f"mean {list(self.mean)} and std {list(self.std)}: give three numbers each, std above 0")
        for name in (
            "channels",
            "canonical_scale",
            "representation",
            "anchors_per_image",
            "rois_per_image",
            "detections",
            "proposals",
            "proposal_candidates",
        ):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ModelError(f"{name} {value}: give 1 or more")
        for name in ("score", "nms", "proposal_nms"):
            if not 0 <= getattr(self, name) <= 1:
                raise ModelError(f"{name} {getattr(self, name)}: give a number from 0 to 1")
        if self.mask_layers is not None and (not self.mask_layers or min(self.mask_layers) < 1):
            raise ModelError(f"mask_layers {list(self.mask_layers)}: give the width of at least one layer")
