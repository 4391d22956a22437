"""Truncated SVD: the best pair of a rank, what it refuses, and which layers of a module it replaces."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from regionrt.export import ExportError
from regionrt.export.compress import Energy, Ratio, SpatialSVD, TruncatedSVD, compress_
from regionrt.export.compress.factors import spectrum
from regionrt.export.compress.layers import matrix_of
from regionrt.export.compress.splitting import layer_named, layers_named
from regionrt.train.models.svd_pairs import SvdPair


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def product(pair: nn.Module) -> torch.Tensor:
    first, second = (part.weight.detach().double().flatten(1) for part in pair)
    return second @ first


@pytest.mark.parametrize(
    "layer",
    [nn.Linear(12, 30), nn.Linear(30, 12), nn.Linear(20, 20), nn.Conv2d(24, 18, 1), nn.Conv2d(18, 24, 1, bias=False)],
    ids=str,
)
def test_the_pair_is_the_nearest_of_its_rank(layer):
    """Eckart-Young: the squared error is the sum of the squared singular values left out."""
    pair = TruncatedSVD(5)(layer)
    weight = layer.weight.detach().double().flatten(1)
    left_out = np.linalg.svd(weight.numpy(), compute_uv=False)[5:]
    error = (product(pair) - weight).square().sum().item()
    assert error == pytest.approx((left_out**2).sum(), rel=1e-5)
    assert pair[0].bias is None
    assert (pair[1].bias is None) == (layer.bias is None)
    if layer.bias is not None:
        torch.testing.assert_close(pair[1].bias, layer.bias)


def test_the_spectrum_is_that_of_the_singular_values():
    layer = nn.Linear(40, 30)
    values, vectors = spectrum(matrix_of(layer, "svd") @ matrix_of(layer, "svd").T)
    u, s, _ = np.linalg.svd(layer.weight.detach().double().numpy())
    np.testing.assert_allclose(values.sqrt().numpy(), s, rtol=1e-9)
    np.testing.assert_allclose(np.abs(u.T @ vectors.numpy()), np.eye(30), atol=1e-8)


def test_the_error_falls_with_the_rank():
    layer, x = nn.Linear(64, 48), torch.randn(50, 64)
    errors = [(TruncatedSVD(rank)(layer)(x) - layer(x)).norm().item() for rank in (1, 4, 9, 16, 27)]
    assert errors == sorted(errors, reverse=True)


@pytest.mark.parametrize("layer", [nn.Linear(40, 30), nn.Conv2d(40, 30, 1, stride=2, padding=1)], ids=str)
def test_a_layer_of_low_rank_is_kept_exactly(layer):
    """Stride and padding are the first half's; at the layer's own rank nothing is lost (fp32: 1e-5)."""
    with torch.no_grad():
        low = torch.randn(30, 4) @ torch.randn(4, 40) / 40
        layer.weight.copy_(low.reshape(layer.weight.shape))
    x = torch.randn(7, 40) if isinstance(layer, nn.Linear) else torch.randn(2, 40, 7, 9)
    torch.testing.assert_close(TruncatedSVD(4)(layer)(x), layer(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("rank", [0, -3, 12, 1000])
def test_ranks_that_save_nothing_are_refused(rank):
    with pytest.raises(ExportError, match=r"rank .* 40→17 layer: give 1\.\.11, beyond which SVD adds weights"):
        TruncatedSVD(rank)(nn.Linear(40, 17))


def test_a_layer_that_no_rank_makes_smaller():
    with pytest.raises(ExportError, match="any rank adds weights"):
        TruncatedSVD(1)(nn.Linear(40, 1))


def test_a_layer_without_bias_and_of_another_type():
    pair = TruncatedSVD(2)(nn.Linear(8, 8, bias=False).double())
    assert pair[1].bias is None
    assert pair[0].weight.dtype == pair[1].weight.dtype == torch.float64


@pytest.mark.parametrize("layer", [nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 1, groups=2), nn.ReLU()], ids=str)
def test_layers_of_other_types_are_refused(layer):
    with pytest.raises(ExportError, match="fully connected layers and 1×1 convolutions"):
        TruncatedSVD(2)(layer)


def test_weights_that_are_no_numbers():
    layer = nn.Linear(8, 8)
    layer.weight.data[3, 3] = torch.nan
    with pytest.raises(ExportError, match="8→8 layer has weights that are NaN"):
        TruncatedSVD(2)(layer)


@pytest.mark.parametrize("share", [0.5, 0.9, 0.99])
def test_energy_gives_the_smallest_rank_that_keeps_it(share):
    layer = decaying(nn.Linear(96, 80))
    pair = TruncatedSVD(Energy(share), multiple=1)(layer)
    rank = pair[0].out_features
    energies = np.linalg.svd(layer.weight.detach().double().numpy(), compute_uv=False) ** 2
    kept = energies.cumsum() / energies.sum()
    assert kept[rank - 1] >= share
    assert rank == 1 or kept[rank - 2] < share


def decaying(layer: nn.Linear) -> nn.Linear:
    """Singular values that fall by a fifth from one to the next: 0.99 of the energy in eleven of them."""
    rows, columns = layer.weight.shape
    u, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(rows, rows)))
    v, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(columns, rows)))
    layer.weight.data = torch.tensor(u * 0.8 ** np.arange(rows) @ v.T, dtype=torch.float32)
    return layer


@pytest.mark.parametrize(("multiple", "rank"), [(1, 20), (8, 24), (16, 32)])
def test_ratio_is_rounded_up_to_what_matrix_units_like(multiple, rank):
    """Half of 80·80 weights are 20 ranks of 160 weights."""
    assert TruncatedSVD(Ratio(0.5), multiple)(nn.Linear(80, 80))[0].out_features == rank


def test_a_rank_that_is_asked_for_is_not_rounded():
    assert TruncatedSVD(5, multiple=16)(nn.Linear(80, 80))[0].out_features == 5


@pytest.mark.parametrize("rule", [Energy, Ratio])
@pytest.mark.parametrize("share", [0, 1, -1, 90, float("nan")])
def test_shares_that_are_none(rule, share):
    with pytest.raises(ExportError, match="between 0 and 1"):
        rule(share)


def test_multiples_that_are_none():
    with pytest.raises(ExportError, match="multiple 0: give 1 or more"):
        TruncatedSVD(Energy(0.9), multiple=0)(nn.Linear(80, 80))


def named(**layers: nn.Module) -> nn.Module:
    module = nn.Module()
    for name, layer in layers.items():
        module.add_module(name, layer)
    return module


def test_compress_takes_what_the_predicate_chooses():
    module = named(a=nn.Linear(40, 40), b=nn.Linear(64, 64), c=nn.Conv2d(64, 64, 1), d=nn.Conv2d(64, 64, 3))
    report = compress_(module, TruncatedSVD(8), where=lambda name, layer: name != "a")
    assert [(x.name, x.method, x.rank, x.weights_before, x.weights_after) for x in report] == [
        ("b", "svd", 8, 4096, 1024),
        ("c", "svd", 8, 4096, 1024),
    ]
    assert [type(x) for x in module.children()] == [nn.Linear, SvdPair, SvdPair, nn.Conv2d]
    assert [x.name for x in compress_(module, TruncatedSVD(8))] == ["a"], "the halves of pairs are left as they are"
    with pytest.raises(ExportError, match="none of the model's layers is chosen"):
        compress_(module, TruncatedSVD(8))


def test_a_layer_in_which_nothing_is_gained_is_left_alone_and_says_why():
    module = named(small=nn.Linear(20, 20), flat=nn.Linear(64, 64), steep=decaying(nn.Linear(96, 80)))
    small, flat, steep = compress_(module, TruncatedSVD(Energy(0.9)))
    assert small.left_alone == "rank 11, rounded up to 16, would not make it smaller (from rank 10 on SVD adds weights)"
    assert (small.rank, small.energy, small.weights_after) == (None, None, 400)
    assert "from rank 32 on" in flat.left_alone
    assert steep.rank == 16
    assert steep.left_alone is None
    assert [type(x) for x in module.children()] == [nn.Linear, nn.Linear, SvdPair]


def test_nothing_is_changed_where_one_rank_does_not_fit():
    module = named(a=named(fc=nn.Linear(90, 90)), b=named(fc=nn.Linear(9, 9)))
    with pytest.raises(ExportError, match=r"layer b\.fc: rank 20 for a 9→9 layer: give 1\.\.4"):
        compress_(module, TruncatedSVD(20))
    assert isinstance(module.a.fc, nn.Linear)


def test_names_that_fit_no_layer_or_several():
    module = named(
        a=named(fc=nn.Linear(9, 9)), b=named(fc=nn.Linear(9, 9), fc6=nn.Linear(5, 6)), conv=nn.Conv2d(3, 4, 3)
    )
    fits = TruncatedSVD(2).fits
    assert layer_named(module, "b.fc", fits) == "b.fc"
    assert layers_named(module, ["fc6", "a.*"], fits) == ["a.fc", "b.fc6"]
    for wanted, message in (
        ("fc", r"layer fc is ambiguous: a\.fc, b\.fc; give more of its name"),
        ("fc7", r"'fc7' names no layer that can be split; nearest are a\.fc \(9→9\), b\.fc6 \(5→6\)"),
        ("x.*", r"'x\.\*' names no layer that can be split; nearest are "),
        ("conv", r"layer conv \(3→4, 3×3\) is a k×k convolution: .*--spatial"),
    ):
        with pytest.raises(ExportError, match=message) as caught:
            layers_named(module, [wanted], fits)
        assert "\n" not in str(caught.value)
    assert layer_named(module, "conv", SpatialSVD(2).fits) == "conv"
    compress_(module, TruncatedSVD(2), where=lambda name, layer: name == "b.fc6")
    with pytest.raises(ExportError, match=r"b\.fc6 is split already"):
        layer_named(module, "fc6", fits)
