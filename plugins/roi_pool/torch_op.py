"""torch.ops.regionrt.roi_pool: the op as PyTorch sees it (eager by torchvision, fake tensors for export)."""

import torch
from torch import Tensor
from torchvision.ops import roi_pool as torchvision_roi_pool

from .reference import MOST_CELLS


def differentiable(
    feature: Tensor, rois: Tensor, counts: Tensor, spatial_scale: float, output_height: int, output_width: int
) -> Tensor:
    """[N, P, C, h, w] from `feature` [N, C, H, W], `rois` float32 [N, P, 4] and `counts` int32 [N].

    With gradients of the feature, for training. See reference.py for what is computed.
    """
    if max(feature.shape[2:]) > MOST_CELLS:
        raise ValueError(f"expected a map of at most {MOST_CELLS} cells a side, got {list(feature.shape[2:])}")
    images, most = rois.shape[:2]
    out = feature.new_zeros((images, most, feature.shape[1], output_height, output_width))
    real = (torch.arange(most, device=rois.device) < counts[:, None]) & ~rois.isnan().any(-1)
    image, row = torch.where(real)
    # In cells, and not further out than the definition goes: torchvision casts what it rounds to int.
    cells = (rois[image, row] * rois.new_tensor(spatial_scale)).clamp(-MOST_CELLS, MOST_CELLS)
    boxes = torch.cat([image[:, None].to(rois.dtype), cells], 1)
    # torchvision wants boxes in the feature's type; rounded to 16 bits they would lie cells away
    pooled = torchvision_roi_pool(feature.to(rois.dtype), boxes, (output_height, output_width), 1.0)
    out[image, row] = pooled.to(out.dtype)
    return out


roi_pool = torch.library.custom_op("regionrt::roi_pool", differentiable, mutates_args=())
"""The same as one node of a graph, without gradients."""


@roi_pool.register_fake
def _(feature, rois, counts, spatial_scale, output_height, output_width):
    return feature.new_empty((*rois.shape[:2], feature.shape[1], output_height, output_width))
