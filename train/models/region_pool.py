"""How RoI features are pooled in place of the mean of RoIAlign: its maximum, or RoIPool (Mask R-CNN, table 2c)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import MultiScaleRoIAlign

from regionrt.plugins.roi_align import torch_op as roi_align
from regionrt.plugins.roi_pool import torch_op as roi_pool

from .detections import padded
from .errors import ModelError

POOLS = ("align", "align_max", "max")
"""RoIAlign's mean, RoIAlign's maximum, RoIPool."""


def region_pool(
    kind: str, maps: Sequence[str], output_size: int, *, sampling_ratio: int = 2, canonical_scale: int = 224
) -> MultiScaleRoIAlign:
    """A pool of one of `POOLS` that reads the feature maps of these names; "align" is torchvision's own."""
    options = {"output_size": output_size, "sampling_ratio": sampling_ratio, "canonical_scale": canonical_scale}
    if kind == "align":
        return MultiScaleRoIAlign(list(maps), **options)
    return RegionPool(kind, list(maps), **options)


class RegionPool(MultiScaleRoIAlign):
    """RoI features [ΣP, C, h, w] by our ops, with gradients: what artefacts compute is defined by their references.

    kind: "align_max" or "max". A `MultiScaleRoIAlign`, because torchvision's detectors take nothing else: options and
    arguments are its own. RoIPool reads one map and takes no samples.
    """

    def __init__(self, kind: str, featmap_names: list[str], **options: int) -> None:
        super().__init__(featmap_names, **options)  # type: ignore[arg-type]
        if kind not in POOLS[1:]:
            raise ModelError(f'pool {kind!r}: expected "align_max" or "max"')
        if kind == "max" and len(featmap_names) != 1:
            raise ModelError(
                f'pool "max" reads one feature map, found {len(featmap_names)}: choose a backbone of one map, '
                'or pool "align" or "align_max"'
            )
        self.kind = kind

    def forward(self, x: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]) -> Tensor:
        """x: maps [N, C, Hl, Wl] by name; boxes: float32 [P_i, 4] of each image (canvas px); image_shapes: (height,
        width) of the images, whose largest height gives the maps' scales, a power of two as torchvision has it."""
        maps = [feature for name, feature in x.items() if name in self.featmap_names]
        longest = max(shape[0] for shape in image_shapes)
        scales = [2.0 ** round(math.log2(feature.shape[-2] / longest)) for feature in maps]
        height, width = self.output_size
        counts = torch.tensor([len(each) for each in boxes], dtype=torch.int32, device=boxes[0].device)
        rois = padded(boxes, int(counts.max()))  # [N, P, 4]
        if self.kind == "max":
            pooled = roi_pool.differentiable(maps[0], rois, counts, scales[0], height, width)
        else:
            pooled = roi_align.differentiable(
                maps, rois, counts, scales, height, width, self.sampling_ratio, False, "max",
                float(self.canonical_scale), self.canonical_level,
            )  # fmt: skip
        return pooled[torch.arange(rois.shape[1], device=rois.device) < counts[:, None]]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.kind!r}, {self.featmap_names}, output_size={self.output_size})"
