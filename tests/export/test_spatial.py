"""Spatial decomposition: k×1 and 1×k in the place of k×k, with strides, padding and dilation where they belong."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from regionrt.export import ExportError
from regionrt.export.compress import Ratio, SpatialSVD
from regionrt.export.compress.factors import factors_of_weights


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def kernel_of(pair: nn.Module) -> np.ndarray:
    """The k×k kernel that two thin ones stand for, by its definition."""
    down, across = (part.weight.detach().double().numpy() for part in pair)  # [r, c, kh, 1], [o, r, 1, kw]
    return np.einsum("rciz,orzj->ocij", down, across)


@pytest.mark.parametrize("kernel", [(3, 3), (5, 3)])
def test_the_pair_is_the_nearest_of_its_rank(kernel):
    """The error is what an SVD of the weights, arranged as [out·kw, in·kh], leaves out."""
    layer = nn.Conv2d(6, 10, kernel)
    pair = SpatialSVD(7)(layer)
    weight = layer.weight.detach().double().numpy()
    arranged = np.stack([weight[o, :, :, j].ravel() for o in range(10) for j in range(kernel[1])])
    left_out = np.linalg.svd(arranged, compute_uv=False)[7:]
    assert ((kernel_of(pair) - weight) ** 2).sum() == pytest.approx((left_out**2).sum(), rel=1e-5)
    assert [tuple(part.kernel_size) for part in pair] == [(kernel[0], 1), (1, kernel[1])]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"padding": 1},
        {"stride": 2, "padding": 1},
        {"stride": (1, 2), "padding": (2, 0), "dilation": (2, 1)},
        {"bias": False},
    ],
    ids=str,
)
def test_a_kernel_of_low_rank_is_kept_exactly(options):
    """A kernel that is a sum of three separable ones: rank 3 computes the same outputs (fp32: 1e-5)."""
    layer = nn.Conv2d(8, 12, 3, **options)
    down, across = torch.randn(3, 8, 3), torch.randn(3, 12, 3)
    layer.weight.data = torch.einsum("rci,roj->ocij", down, across) / 20
    x = torch.randn(2, 8, 11, 14)
    pair = SpatialSVD(3)(layer)
    torch.testing.assert_close(pair(x), layer(x), atol=1e-5, rtol=1e-5)


def test_multiplications_count_where_the_first_half_works_on_all_columns():
    """64→64, 3×3: 36864 weights, 384 a rank; with stride 2 the first half's 192 are done for twice the columns."""
    assert SpatialSVD(Ratio(0.5), multiple=1)(nn.Conv2d(64, 64, 3))[0].out_channels == 48
    assert SpatialSVD(Ratio(0.5), multiple=1)(nn.Conv2d(64, 64, 3, stride=2))[0].out_channels == 32
    with pytest.raises(ExportError, match=r"rank 64 for a 64→64, 3×3 layer: give 1\.\.63"):
        SpatialSVD(64)(nn.Conv2d(64, 64, 3, stride=2))


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(8, 8, 1),
        nn.Conv2d(8, 8, (3, 1)),
        nn.Conv2d(8, 8, 3, groups=8),
        nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(8, 8, 3, padding="same"),
        nn.Linear(8, 8),
    ],
    ids=str,
)
def test_layers_of_other_types_are_refused(layer):
    with pytest.raises(ExportError, match="k×k convolutions with zero padding and one group"):
        SpatialSVD(2)(layer)


def test_at_full_rank_nothing_is_lost():
    torch.manual_seed(0)
    layer = nn.Conv2d(6, 10, 3, stride=2, padding=1)
    x = torch.randn(2, 6, 15, 17)
    full = min(10 * 3, 6 * 3)
    torch.testing.assert_close(
        factors_of_weights(layer, "spatial").halves(full).pair(x), layer(x), atol=1e-5, rtol=1e-5
    )
