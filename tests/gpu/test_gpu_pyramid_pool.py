"""Spatial pyramid pooling on a GPU: every kernel the reference's maxima exactly, and torch's adaptive pooling's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from values import TOLERANCES, boxes_in, typed, widened

from regionrt.plugins.pyramid_pool.reference import pyramid_pool as reference
from regionrt.plugins.pyramid_pool.torch_op import pyramid_pool as by_torch
from regionrt.runtime.gpu.pyramid_pool import pyramid_pool


def run(gpu, feature, rois, counts, dtype, channels_last, scale, bins) -> np.ndarray:
    """[N, P, C · Σb²] float32, in the reference's order, from `feature` [N, C, H, W] in `dtype`."""
    channels, number = feature.shape[1], sum(b * b for b in bins)
    placed = gpu.put(np.ascontiguousarray(feature.transpose(0, 2, 3, 1)) if channels_last else feature, dtype)
    out = gpu.empty((*rois.shape[:2], *((number, channels) if channels_last else (number * channels,))), dtype)
    options = {"spatial_scale": scale, "bins": bins, "channels_last": channels_last}
    gpu.run(pyramid_pool(gpu.kernels, placed, gpu.put(rois), gpu.put(counts), out, **options))
    found = widened(gpu.get(out))
    if not channels_last:
        return found
    levels = np.split(found, np.cumsum([b * b for b in bins])[:-1], axis=2)
    return np.concatenate([level.transpose(0, 1, 3, 2).reshape(*rois.shape[:2], -1) for level in levels], 2)


@pytest.mark.parametrize(("channels", "bins"), [(5, (6, 3, 2, 1)), (16, (1, 4)), (8, (8, 7, 6, 5, 4, 3, 2, 1))])
@pytest.mark.parametrize("dtype", list(TOLERANCES))
@pytest.mark.parametrize("channels_last", [False, True])
def test_every_kernel(gpu, channels_last, dtype, channels, bins):
    rng = np.random.default_rng(channels)
    rows = 30 if gpu.large else 5
    feature = typed(rng.standard_normal((2, channels, 19, 26)), dtype)
    corners = rng.uniform(-60, 480, (2, rows, 2, 2))
    rois = np.concatenate([corners.min(2), corners.max(2)], -1).astype(np.float32)
    rois[:, ::5, 2:], rois[:, 3] = rois[:, ::5, :2], np.nan
    counts = np.array([rows, rows // 2], np.int32)
    expected = reference(widened(feature), rois, counts, spatial_scale=1 / 16, bins=bins)
    np.testing.assert_array_equal(run(gpu, feature, rois, counts, dtype, channels_last, 1 / 16, bins), expected)


@pytest.mark.parametrize("channels_last", [False, True])
def test_torch_at_the_size_of_sppnet(gpu, channels_last):
    """256 channels of a 5-layer net, four levels of 50 bins."""
    rng = np.random.default_rng(0)
    (height, width), channels, rows = ((37, 50), 256, 200) if gpu.large else ((9, 12), 8, 6)
    feature = rng.standard_normal((1, channels, height, width)).astype(np.float32)
    rois, counts = boxes_in(rng, (1, rows), 16 * height), np.array([rows], np.int32)
    there = (torch.from_numpy(v).to(gpu.torch_device) for v in (feature, rois, counts))
    expected = by_torch(*there, 1 / 16, [6, 3, 2, 1]).cpu().numpy()
    found = run(gpu, feature, rois, counts, "float32", channels_last, 1 / 16, (6, 3, 2, 1))
    np.testing.assert_array_equal(found, expected)
