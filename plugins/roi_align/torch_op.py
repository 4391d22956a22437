"""torch.ops.regionrt.roi_align: the op as PyTorch sees it (eager by torchvision, fake tensors for export)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import roi_align as torchvision_roi_align

from .reference import level_thresholds


def differentiable(
    features: Sequence[Tensor],
    rois: Tensor,
    counts: Tensor,
    spatial_scales: Sequence[float],
    output_height: int,
    output_width: int,
    sampling_ratio: int,
    aligned: bool,
    mode: str,
    canonical_scale: float,
    canonical_level: int,
) -> Tensor:
    """[N, P, C, h, w] from `features` (levels [N, C, Hl, Wl]), `rois` float32 [N, P, 4] and `counts` int32 [N].

    With gradients of the features, for training. See reference.py for what is computed.
    """
    maximum = mode == "max"
    if maximum and sampling_ratio < 1:
        raise ValueError(
            f"regionrt::roi_align: the maximum needs a fixed sampling ratio in PyTorch, found {sampling_ratio}: give 1 "
            "or more"
        )
    # torchvision has no maximum: each sample becomes a bin of its own there.
    per_bin, ratio = (sampling_ratio, 1) if maximum else (1, sampling_ratio)
    size = (output_height * per_bin, output_width * per_bin)
    images, most = rois.shape[:2]
    out = features[0].new_zeros((images, most, features[0].shape[1], output_height, output_width))
    area = (rois[..., 2] - rois[..., 0]) * (rois[..., 3] - rois[..., 1])
    thresholds = area.new_tensor(level_thresholds(spatial_scales, canonical_scale, canonical_level))
    level = (area[..., None] >= thresholds).sum(-1)  # [N, P]
    real = torch.arange(most, device=rois.device) < counts[:, None]
    for index, (feature, scale) in enumerate(zip(features, spatial_scales, strict=True)):
        image, row = torch.where(real & (level == index))
        boxes = torch.cat([image[:, None].to(rois.dtype), rois[image, row]], 1)
        # torchvision wants boxes in the features' type; rounded to 16 bits they would lie pixels away
        pooled = torchvision_roi_align(feature.to(rois.dtype), boxes, size, scale, ratio, aligned)
        if per_bin > 1:
            pooled = F.max_pool2d(pooled, per_bin)
        out[image, row] = pooled.to(out.dtype)
    return out


roi_align = torch.library.custom_op("regionrt::roi_align", differentiable, mutates_args=())
"""The same as one node of a graph, without gradients."""


@roi_align.register_fake
def _(features, rois, counts, spatial_scales, output_height, output_width, *_):
    return features[0].new_empty((*rois.shape[:2], features[0].shape[1], output_height, output_width))
