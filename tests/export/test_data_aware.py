"""Data-aware SVD: the optimum on the data, where it equals plain SVD, and what data it refuses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_detectors import faster
from torch import nn

from regionrt.export import ExportError
from regionrt.export.compress import DataAwareSVD, Energy, TruncatedSVD
from regionrt.export.compress.calibration import Photo, as_rows, calibration_and_held_out, spread, watch
from regionrt.export.compress.data_aware import OutputMoments, factors_of_moments, moments_of
from regionrt.export.compress.factors import factors_of_weights
from regionrt.export.compress.output_error import output_errors
from regionrt.train.models.region import canvas_of, eager

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def moments(layer: nn.Module, x: torch.Tensor, batches: int = 3) -> dict[nn.Module, OutputMoments]:
    found = OutputMoments(layer.weight.shape[1], layer.weight.shape[0])
    with torch.no_grad():
        for part in x.chunk(batches):
            found.add(as_rows(layer, part), as_rows(layer, layer(part)))
    return {layer: found}


def error(layer: nn.Module, pair: nn.Module, x: torch.Tensor) -> float:
    with torch.no_grad():
        return (layer(x).double() - pair(x).double()).square().sum().item()


def correlated(rows: int, width: int, falls: float = 0.8) -> torch.Tensor:
    """Inputs of a few strong directions, not along the axes, with a mean of their own."""
    directions, _ = torch.linalg.qr(torch.randn(width, width))
    return (torch.randn(rows, width) * falls ** torch.arange(width)) @ directions + torch.randn(width)


def test_moments_are_those_of_all_rows_at_once():
    layer, x = nn.Linear(20, 12), correlated(100, 20) + 1e4
    found = moments(layer, x, batches=7)[layer]
    y = layer(x).detach().double().numpy()
    assert found.rows == 100
    np.testing.assert_allclose(found.mean.numpy(), y.mean(0), rtol=1e-12)
    np.testing.assert_allclose(found.covariance.numpy(), np.cov(y.T, bias=True), rtol=1e-9, atol=1e-9)
    assert found.input_variance == pytest.approx(x.double().var(0, unbiased=False).mean().item(), rel=1e-9)


@pytest.mark.parametrize("ridge", [0.0, 1e-3, 0.5])
def test_it_is_the_whitened_optimum(ridge):
    """Against the definition: W' = svd_k(W·C^½)·C^-½ with the shrunk covariance of the inputs, in NumPy."""
    layer, x = nn.Linear(20, 14), correlated(400, 20)
    pair = DataAwareSVD(6, moments(layer, x), ridge=ridge)(layer)
    weight, inputs = layer.weight.detach().double().numpy(), x.double().numpy()
    covariance = np.cov(inputs.T, bias=True)
    covariance += ridge * np.trace(covariance) / 20 * np.eye(20)
    values, vectors = np.linalg.eigh(covariance)
    root, inverse = (vectors * values**power @ vectors.T for power in (0.5, -0.5))
    u, s, v = np.linalg.svd(weight @ root)
    optimum = u[:, :6] * s[:6] @ v[:6] @ inverse
    found = (pair[1].weight @ pair[0].weight).detach().double().numpy()
    np.testing.assert_allclose(found, optimum, atol=2e-6)  # the halves are fp32
    np.testing.assert_allclose(
        pair[1].bias.detach().numpy(), layer.bias.detach().numpy() + (weight - optimum) @ inputs.mean(0), atol=1e-5
    )


def test_no_pair_found_by_search_is_better():
    """Brute force: gradient descent on the outputs' error from ten starting points, in float64."""
    layer, x = nn.Linear(6, 5).double(), correlated(200, 6).double()
    pair = DataAwareSVD(2, moments(layer, x), ridge=0)(layer)
    best = error(layer, pair, x)
    y = layer(x).detach()
    for _ in range(10):
        first, second, bias = (torch.randn(*s, dtype=torch.float64, requires_grad=True) for s in ((2, 6), (5, 2), (5,)))
        optimizer = torch.optim.Adam([first, second, bias], lr=0.03)
        for _ in range(600):
            optimizer.zero_grad()
            loss = (x @ first.T @ second.T + bias - y).square().sum()
            loss.backward()
            optimizer.step()
        assert best <= loss.item() * (1 + 1e-9)


@pytest.mark.parametrize("rank", [1, 4, 8, 11])
@pytest.mark.parametrize("ridge", [0.0, 1e-3, 1.0])
@pytest.mark.parametrize("layer", [nn.Linear(32, 20), nn.Conv2d(32, 20, 1, stride=2, bias=False)], ids=str)
def test_never_worse_than_plain_svd_on_the_calibration_data(layer, ridge, rank):
    x = correlated(600, 32)
    if isinstance(layer, nn.Conv2d):
        x = x.reshape(6, 10, 10, 32).movedim(-1, 1)
    plain, aware = TruncatedSVD(rank)(layer), DataAwareSVD(rank, moments(layer, x), ridge=ridge)(layer)
    assert error(layer, aware, x) <= error(layer, plain, x) * (1 + 1e-5)


def test_clearly_better_on_correlated_inputs_unseen_ones_too():
    layer, x = nn.Linear(64, 48), correlated(1000, 64)
    plain, aware = TruncatedSVD(12)(layer), DataAwareSVD(12, moments(layer, x[:500]))(layer)
    for part in (x[:500], x[500:]):
        assert error(layer, aware, part) < 0.1 * error(layer, plain, part)


def test_exact_for_inputs_of_low_rank():
    """Ten directions and a mean: rank 10 keeps them all (fp32)."""
    layer, x = nn.Linear(64, 48), torch.randn(300, 10) @ torch.randn(10, 64) / 8 + torch.randn(64)
    pair = DataAwareSVD(10, moments(layer, x), ridge=0)(layer)
    torch.testing.assert_close(pair(x), layer(x), atol=1e-5, rtol=1e-5)
    shrunk = DataAwareSVD(10, moments(layer, x))(layer)
    assert error(layer, shrunk, x) < 1e-5 * (layer(x) - layer(x).mean(0)).square().sum().item()


def test_equals_plain_svd_for_white_inputs():
    layer = nn.Linear(24, 16)
    signs = torch.eye(24) * 24**0.5  # ± the axes: mean 0 and covariance I, exactly
    x = torch.cat([signs, -signs])
    plain, aware = TruncatedSVD(5)(layer), DataAwareSVD(5, moments(layer, x), ridge=0.1)(layer)
    torch.testing.assert_close(aware[1].weight @ aware[0].weight, plain[1].weight @ plain[0].weight, atol=1e-6, rtol=0)
    torch.testing.assert_close(aware[1].bias, plain[1].bias, atol=1e-6, rtol=0)


def test_the_mean_is_kept_and_a_bias_added_where_there_was_none():
    layer, x = nn.Linear(30, 20, bias=False), correlated(100, 30)
    halves = DataAwareSVD(3, moments(layer, x)).split(layer)
    torch.testing.assert_close(halves.pair(x).mean(0), layer(x).mean(0), atol=1e-5, rtol=1e-5)
    assert halves.split.to_json() == {"rank": 3, "kind": "svd", "bias": True}


def test_energy_is_of_the_outputs():
    """Three directions in the data, and 48 of about the same energy in the weights."""
    layer, x = nn.Linear(96, 96), torch.randn(300, 3) @ torch.randn(3, 96)
    halves = DataAwareSVD(Energy(0.95), moments(layer, x), multiple=1).split(layer)
    assert halves.split.rank <= 3
    assert halves.energy >= 0.95


def test_data_that_says_nothing():
    layer = nn.Linear(30, 20)
    for x, message in (
        (torch.ones(50, 30), "the same on all calibration images"),
        (torch.randn(4, 30), "4 samples of its outputs are too few for rank 6"),
    ):
        with pytest.raises(ExportError, match=message):
            DataAwareSVD(6, moments(layer, x))(layer)
    with pytest.raises(ExportError, match="computed nothing"):
        DataAwareSVD(6, {})(layer)
    with pytest.raises(ExportError, match="ridge -1"):
        DataAwareSVD(6, {}, ridge=-1)


def photos(count: int, seed: int = 0) -> list[Photo]:
    random = np.random.default_rng(seed)
    shots = random.integers(0, 256, (count, 64, 96, 3), np.uint8)
    return [Photo(f"{i}.jpg", lambda i=i: shots[i]) for i in range(count)]


def test_the_detector_is_watched_on_its_own_road():
    """Rows of fc7's outputs are those of `eager`'s RoIs, without the row of zeros that eager adds; hooks are gone."""
    module = faster()
    layers = {"fc7": module.roi_heads.box_head.fc7, "conv": module.rpn.head.conv[0][0]}
    seen: dict[str, list[torch.Tensor]] = {"fc7": [], "conv": []}
    shots = photos(3)
    watch(module, layers, shots, lambda name, layer, x, y: seen[name].append(y))
    canvas = canvas_of(module)
    for i, shot in enumerate(shots):
        images, sizes, _ = canvas.place([shot.pixels()])
        values = eager(module, torch.from_numpy(images), torch.from_numpy(sizes))
        assert len(seen["fc7"][i]) == int(values["roi_counts"][0])
        head = module.roi_heads.box_head
        with torch.no_grad():
            wanted = head.fc7(head.fc6(values["roi_features"][0, : len(seen["fc7"][i])].flatten(1)).relu())
        torch.testing.assert_close(seen["fc7"][i], wanted, atol=1e-5, rtol=1e-5)
        assert seen["conv"][i].shape[0] == 1
    assert not any(layer._forward_hooks for layer in module.modules())


def test_moments_and_errors_of_a_detector():
    """The error that is measured is that of the pair's outputs, and no larger than plain SVD's on the same photos."""
    module = faster()
    layers = {name: module.get_submodule(f"roi_heads.box_head.{name}") for name in ("fc6", "fc7")}
    shots = photos(4)
    found = moments_of(module, layers, shots)
    pairs = {name: [DataAwareSVD(2, found)(layer), TruncatedSVD(2)(layer)] for name, layer in layers.items()}
    errors = output_errors(module, layers, pairs, shots)
    rows: list[torch.Tensor] = []
    watch(module, {"fc6": layers["fc6"]}, shots, lambda name, layer, x, y: rows.append(x))
    x = torch.cat(rows)
    y = layers["fc6"](x).detach()
    wanted = (error(layers["fc6"], pairs["fc6"][0], x) / (y - y.mean(0)).square().sum().item()) ** 0.5
    assert errors["fc6"][0] == pytest.approx(wanted, rel=1e-4)
    for aware, plain in errors.values():
        assert 0 < aware <= plain


def test_images_that_cannot_be_calibrated_on():
    module = faster()
    fc6 = {"fc6": module.roi_heads.box_head.fc6}
    grey = [Photo(f"{i}.jpg", lambda i=i: np.full((64, 96, 3), 40 * i, np.uint8)) for i in range(3)]
    with pytest.raises(ExportError, match="3 images of one colour each"):
        moments_of(module, fc6, grey)
    with pytest.raises(ExportError, match="4 images to calibrate on: give 5 or more"):
        calibration_and_held_out(photos(4))
    module.roi_heads.box_head.fc6.weight.data[0, 0] = torch.inf
    with pytest.raises(ExportError, match=r"0\.jpg: layer fc6 computes NaN or infinite values"):
        moments_of(module, fc6, photos(2))
    assert not any(layer._forward_hooks for layer in module.modules())


def test_every_fifth_photo_is_held_out():
    shots = photos(12)
    calibration, held_out = calibration_and_held_out(shots)
    assert [photo.name for photo in held_out] == ["4.jpg", "9.jpg"]
    assert len(calibration) == 10
    assert spread(range(100), 4) == [0, 25, 50, 75]
    assert spread(range(3), 10) == [0, 1, 2]


@pytest.mark.parametrize("layer", [nn.Linear(24, 16), nn.Linear(16, 24, bias=False), nn.Conv2d(24, 16, 1)], ids=str)
def test_at_full_rank_nothing_is_lost(layer):
    """Also of the ranks that would add weights, which no option gives: the factors themselves are whole."""
    x = correlated(200, 16 if layer.weight.shape[1] == 16 else 24)
    if isinstance(layer, nn.Conv2d):
        x = x.reshape(2, 10, 10, 24).movedim(-1, 1)
    full = min(layer.weight.shape[:2])
    for factors in (factors_of_weights(layer, "svd"), factors_of_moments(layer, moments(layer, x)[layer])):
        rank = full if factors.rows is None else layer.weight.shape[0]
        torch.testing.assert_close(factors.halves(rank).pair(x), layer(x), atol=1e-5, rtol=1e-5)


def test_the_error_falls_with_the_rank():
    layer, x = nn.Linear(64, 48), correlated(400, 64, falls=0.95)
    factors = factors_of_moments(layer, moments(layer, x)[layer])
    errors = [error(layer, factors.halves(rank).pair, x) for rank in (1, 4, 9, 16, 27, 40)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.1 * errors[0]
