"""A layer as the matrix that SVD factorises: what a rank of it costs, and the pair that two factors make."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from regionrt.train.models.svd_pairs import SPATIAL, Split, SvdPair, describe, matrix_size, pair_for

from ..errors import ExportError


def matrix_of(layer: nn.Module, kind: str) -> Tensor:
    """The layer's weights as a float64 matrix [out, in], for "spatial" [out·kw, in·kh]. ExportError for NaN and Inf.

    float64: the small singular values of a trained layer lie near the rounding of float32.
    """
    weight = layer.weight.detach().double()
    if not weight.isfinite().all():
        raise ExportError(f"a {describe(layer)} layer has weights that are NaN or infinite: train it again")
    if kind == SPATIAL:
        weight = weight.permute(0, 3, 1, 2)  # [out, kw, in, kh]
    return weight.reshape(matrix_size(layer, kind))


def cost_of_rank(layer: nn.Module, kind: str) -> tuple[int, int]:
    """Multiplications per output position: of one rank of the pair, and of the whole layer.

    They are the numbers of weights too, but for a spatial pair across a stride: its first half works on all columns.
    """
    rows, columns = matrix_size(layer, kind)
    columns_done = layer.stride[1] if kind == SPATIAL and isinstance(layer, nn.Conv2d) else 1
    return rows + columns * columns_done, rows * columns


def largest_rank(layer: nn.Module, kind: str) -> int:
    """The largest rank with which the pair still takes less than the layer; 0 where none does."""
    per_rank, whole = cost_of_rank(layer, kind)
    return (whole - 1) // per_rank


def weights_of_pair(layer: nn.Module, kind: str, rank: int) -> int:
    return rank * sum(matrix_size(layer, kind))


def pair_of_factors(
    layer: nn.Module, kind: str, left: Tensor, right: Tensor, bias: Tensor | None
) -> tuple[SvdPair, Split]:
    """left [rows, k] and right [k, columns], whose product stands for `matrix_of(layer, kind)`, as two layers."""
    rank = left.shape[1]
    split = Split(rank, kind, bias=layer.bias is None and bias is not None)
    pair = pair_for(layer, split)
    first, second = pair
    if kind == SPATIAL:
        left = left.reshape(*_outputs_and_width(layer), rank).transpose(1, 2)  # [out, k, kw]
    with torch.no_grad():
        first.weight.copy_(right.reshape(first.weight.shape))
        second.weight.copy_(left.reshape(second.weight.shape))
        if bias is not None:
            second.bias.copy_(bias)
    return pair, split


def _outputs_and_width(layer: nn.Module) -> tuple[int, int]:
    assert isinstance(layer, nn.Conv2d)
    return layer.out_channels, layer.kernel_size[1]
