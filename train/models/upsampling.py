"""Transposed convolutions that begin as bilinear interpolation (FCN, arXiv:1411.4038, section 3.3)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def bilinear_upsampling(channels: int, factor: int) -> nn.ConvTranspose2d:
    """[N, C, h, w] -> [N, C, factor · h, factor · w]: learnt, each channel at first interpolated by itself.

    factor: even. In the middle of the map the result is that of half-pixel bilinear interpolation, to rounding.
    """
    layer = nn.ConvTranspose2d(channels, channels, 2 * factor, stride=factor, padding=factor // 2, bias=False)
    with torch.no_grad():
        layer.weight.zero_()
        layer.weight[range(channels), range(channels)] = bilinear_kernel(factor)
    return layer


def bilinear_kernel(factor: int) -> Tensor:
    """float32 [2 · factor, 2 · factor]: the weights with which a cell reaches the finer ones around it."""
    if factor < 2 or factor % 2:
        raise ValueError(f"factor {factor}: give an even number")
    distance = (torch.arange(2 * factor) + 0.5) / factor - 1  # of each finer cell's centre, in coarse cells
    side = 1 - distance.abs()
    return side[:, None] * side[None, :]
