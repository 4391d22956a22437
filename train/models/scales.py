"""Testing at several scales: a photo's maps, one below the other on a sheet, and where a region lies on it.

SPPnet (He et al., arXiv:1406.4729, section 4.1) and Fast R-CNN (Girshick, arXiv:1504.08083, section 2.4) take each
region from the scale at which its area is nearest 224² px.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .errors import ModelError

AREA_PX = 224.0**2
_EDGE = 2


class Sheet(nn.Module):
    """Where the map of each scale lies. Behind each stand two rows and columns more, copies of its last ones, so that
    what a pooling reads over the edge is the edge: RoIAlign reads one cell further, and RoIPool, whose bins are rounded
    in float32, one more of some windows (57 cells in 7 bins). One scale of 1 is the map itself.

    scales: factors of the canvas `size` (height, width); each side is rounded to the nearest multiple of `stride`.
    """

    def __init__(self, scales: Sequence[float], size: tuple[int, int], stride: int) -> None:
        super().__init__()
        if not 1 <= len(scales) <= 16 or not all(0 < scale <= 16 for scale in scales):
            raise ModelError(f"scales {list(scales)}: give 1 to 16 factors of the canvas, each above 0 and at most 16")
        self.sizes = [tuple(max(round(side * scale / stride), 1) * stride for side in size) for scale in scales]
        self.alone = self.sizes == [tuple(size)]
        ratios = torch.tensor([[w / size[1], h / size[0]] for h, w in self.sizes])
        tops, top = [], 0
        for height, _ in self.sizes:
            tops.append(float(top))
            top += height + _EDGE * stride
        self.register_buffer("ratios", ratios, persistent=False)  # [S, 2], x and y
        self.register_buffer("tops", torch.tensor(tops), persistent=False)  # [S], px of the sheet

    def maps(self, backbone: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """Normalised images [N, 3, H, W] -> the sheet [N, C, h, w]; zero beside the maps."""
        if self.alone:
            return backbone(x)
        found = [backbone(F.interpolate(x, size, mode="bilinear", align_corners=False)) for size in self.sizes]
        widest = max(feature.shape[3] for feature in found) + _EDGE
        padded = []
        for feature in found:
            edged = torch.cat([feature, *[feature[:, :, -1:]] * _EDGE], 2)
            edged = torch.cat([edged, *[edged[:, :, :, -1:]] * _EDGE], 3)
            padded.append(F.pad(edged, (0, widest - edged.shape[3])))
        return torch.cat(padded, 2)

    def place(self, rois: Tensor) -> Tensor:
        """Boxes [N, P, 4] in canvas px -> in px of the sheet (cells times the stride)."""
        if self.alone:
            return rois
        area = (rois[..., 2] - rois[..., 0]) * (rois[..., 3] - rois[..., 1])
        scale = (area[..., None] * self.ratios.prod(1) - AREA_PX).abs().argmin(-1)  # [N, P]
        ratio, top = self.ratios[scale], self.tops[scale]
        return rois * ratio.repeat(1, 1, 2) + torch.stack([torch.zeros_like(top), top], -1).repeat(1, 1, 2)
