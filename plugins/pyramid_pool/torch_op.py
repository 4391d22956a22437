"""torch.ops.regionrt.pyramid_pool: the op as PyTorch sees it (eager by adaptive pooling, fake tensors for export)."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import adaptive_max_pool2d

from .reference import check, window


@torch.library.custom_op("regionrt::pyramid_pool", mutates_args=())
def pyramid_pool(feature: Tensor, rois: Tensor, counts: Tensor, spatial_scale: float, bins: Sequence[int]) -> Tensor:
    """[N, P, C · Σb²] from `feature` [N, C, H, W], `rois` float32 [N, P, 4] and `counts` int32 [N].

    See reference.py for what is computed, and for the order of the values.
    """
    height, width = feature.shape[2:]
    check((height, width), bins)
    out = feature.new_zeros((*rois.shape[:2], feature.shape[1] * sum(b * b for b in bins)))
    corners = rois.cpu().numpy()
    for image, count in enumerate(counts.tolist()):
        for row in range(count):
            left, top, right, bottom = corners[image, row]
            if (corners[image, row] != corners[image, row]).any():
                continue
            y0, y1 = window(top, bottom, spatial_scale, height)
            x0, x1 = window(left, right, spatial_scale, width)
            if y0 < y1 and x0 < x1:
                crop = feature[image, :, y0:y1, x0:x1]
                out[image, row] = torch.cat([adaptive_max_pool2d(crop, b).flatten() for b in bins])
    return out


@pyramid_pool.register_fake
def _(feature, rois, counts, spatial_scale, bins):
    return feature.new_empty((*rois.shape[:2], feature.shape[1] * sum(b * b for b in bins)))
