"""torch.ops.regionrt.pyramid_pool: the op as PyTorch sees it (eager by torchvision, fake tensors for export)."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import adaptive_max_pool2d, max_pool2d
from torchvision.ops import roi_pool

from .reference import MOST_CELLS, check, exact_in_float32


def differentiable(feature: Tensor, rois: Tensor, counts: Tensor, spatial_scale: float, bins: Sequence[int]) -> Tensor:
    """[N, P, C · Σb²] from `feature` [N, C, H, W], `rois` float32 [N, P, 4] and `counts` int32 [N].

    With gradients of the feature, for training. See reference.py for what is computed, and for the order of the values.
    """
    check(feature.shape[2:], bins)
    out = feature.new_zeros((*rois.shape[:2], feature.shape[1] * sum(b * b for b in bins)))
    top, bottom = _window(rois[..., 1], rois[..., 3], spatial_scale, feature.shape[2])
    left, right = _window(rois[..., 0], rois[..., 2], spatial_scale, feature.shape[3])
    real = (torch.arange(rois.shape[1], device=rois.device) < counts[:, None]) & ~rois.isnan().any(-1)
    image, row = torch.where(real & (top < bottom) & (left < right))
    # torchvision's ends are both inside; its boxes have the feature's type, in which 16 bits do not hold every cell
    windows = torch.stack([v[image, row] for v in (left, top, right - 1, bottom - 1)], 1)
    windows = torch.cat([image[:, None].to(rois.dtype), windows.to(rois.dtype)], 1)
    wide = feature.to(rois.dtype)
    pooled: dict[int, Tensor] = {}
    for b in sorted(set(bins), reverse=True):
        finer = min((other for other in pooled if other % b == 0), default=0)
        if finer:
            pooled[b] = max_pool2d(pooled[finer], finer // b)
        elif exact_in_float32(b):
            pooled[b] = roi_pool(wide, windows, (b, b), 1.0)
        else:
            pooled[b] = _of_crops(wide, windows.long().tolist(), b)
    out[image, row] = torch.cat([pooled[b].flatten(1) for b in bins], 1).to(out.dtype)
    return out


pyramid_pool = torch.library.custom_op("regionrt::pyramid_pool", differentiable, mutates_args=())
"""The same as one node of a graph, without gradients."""


def _window(low: Tensor, high: Tensor, spatial_scale: float, side: int) -> tuple[Tensor, Tensor]:
    """`window` of reference.py for many RoIs at once; of NaN anything."""
    low, high = ((v * v.new_tensor(spatial_scale)).clamp(-MOST_CELLS, MOST_CELLS) for v in (low, high))
    begin, end = (low - 0.5).floor() + 1, (high - 0.5).ceil()
    middle = ((low + high) * 0.5).floor()
    none = begin >= end
    begin, end = torch.where(none, middle, begin), torch.where(none, middle + 1, end)
    return begin.clamp(0, side), end.clamp(0, side)


def _of_crops(feature: Tensor, windows: list[list[int]], bins: int) -> Tensor:
    """[S, C, b, b], window by window: slow, and exact for any number of bins."""
    found = [
        adaptive_max_pool2d(feature[image, :, top : bottom + 1, left : right + 1], bins)
        for image, left, top, right, bottom in windows
    ]
    return torch.stack(found) if found else feature.new_zeros((0, feature.shape[1], bins, bins))


@pyramid_pool.register_fake
def _(feature, rois, counts, spatial_scale, bins):
    return feature.new_empty((*rois.shape[:2], feature.shape[1] * sum(b * b for b in bins)))
