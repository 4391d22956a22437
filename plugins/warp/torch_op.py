"""torch.ops.regionrt.warp: the op as PyTorch sees it (eager by grid_sample, fake tensors for export)."""

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from .reference import check

_ROIS_AT_ONCE = 16  # in float64: 2000 crops of 227 × 227 px are gigabytes


@torch.library.custom_op("regionrt::warp", mutates_args=())
def warp(images: Tensor, rois: Tensor, counts: Tensor, output_height: int, output_width: int, context: int) -> Tensor:
    """[N, P, C, h, w] from `images` [N, C, H, W], `rois` float32 [N, P, 4] and `counts` int32 [N].

    See reference.py for what is computed. The geometry is float64: at 1000 px float32 is off by 10⁻⁴ px.
    """
    check((output_height, output_width), context)
    channels, height, width = images.shape[1:]
    out = images.new_zeros((*rois.shape[:2], channels, output_height, output_width))
    real = (torch.arange(rois.shape[1], device=rois.device) < counts[:, None]) & ~rois.isnan().any(-1)
    for image in range(len(rois)):
        whole = images[image : image + 1].double()
        for rows in torch.where(real[image])[0].split(_ROIS_AT_ONCE):
            left, top, right, bottom = rois[image, rows].double().unbind(1)
            y, there_y = _positions(top, bottom, output_height, context, height)
            x, there_x = _positions(left, right, output_width, context, width)
            shape = (len(rows), output_height, output_width)
            grid = torch.stack([x[:, None].expand(shape), y[:, :, None].expand(shape)], -1).reshape(
                1, -1, output_width, 2
            )
            found = grid_sample(whole, grid, mode="bilinear", padding_mode="border", align_corners=False)
            found = found.reshape(channels, *shape).transpose(0, 1) * (there_y[:, :, None] & there_x[:, None])[:, None]
            out[image, rows] = found.to(out.dtype)
    return out


def _positions(low: Tensor, high: Tensor, size: int, context: int, side: int) -> tuple[Tensor, Tensor]:
    """Where grid_sample takes its samples along an axis, −1 to 1 over the image, [R, size]; whether they are in it."""
    index = torch.arange(size, dtype=torch.float64, device=low.device) + 0.5 - context
    step = (high - low).clamp(min=1.0) / (size - 2 * context)
    at = low[:, None] + index * step[:, None]
    there = (at >= 0) & (at <= side)
    return torch.where(there, 2 * at / side - 1, 0.0), there


@warp.register_fake
def _(images, rois, counts, output_height, output_width, context):
    return images.new_empty((*rois.shape[:2], images.shape[1], output_height, output_width))
