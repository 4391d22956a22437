"""RoIPool on a GPU: every kernel the reference's maxima exactly, and torchvision's at the size of Fast R-CNN."""

from __future__ import annotations

from ctypes import c_float, c_int32, c_void_p

import numpy as np
import pytest
import torch
from values import TOLERANCES, boxes_in, typed, widened

from regionrt.plugins.roi_pool.reference import roi_pool as reference
from regionrt.plugins.roi_pool.torch_op import roi_pool as by_torchvision
from regionrt.runtime.gpu.arrays import KINDS
from regionrt.runtime.gpu.kernels import Launch


def run(gpu, feature, rois, counts, dtype, channels_last, scale, size) -> np.ndarray:
    """[N, P, C, h, w] float32 from `feature` [N, C, H, W] in `dtype`."""
    _, channels, height, width = feature.shape
    placed = gpu.put(np.ascontiguousarray(feature.transpose(0, 2, 3, 1)) if channels_last else feature, dtype)
    out = gpu.empty((*rois.shape[:2], *((*size, channels) if channels_last else (channels, *size))), dtype)
    inputs = [placed, gpu.put(rois), gpu.put(counts)]
    numbers = [channels, height, width, *size, c_int32.from_buffer(c_float(scale)).value]
    arguments = [*(c_void_p(a.address) for a in inputs), *map(c_int32, numbers), c_void_p(out.address)]
    name = f"roi_pool_{'nhwc' if channels_last else 'nchw'}_{KINDS[dtype]}"
    gpu.run([Launch(gpu.kernels, "roi_pool", name, (rois.shape[1], len(rois), 2), 256, arguments)])
    found = widened(gpu.get(out))
    return found.transpose(0, 1, 4, 2, 3) if channels_last else found


@pytest.mark.parametrize("channels", [5, 16])
@pytest.mark.parametrize("dtype", list(TOLERANCES))
@pytest.mark.parametrize("channels_last", [False, True])
def test_every_kernel(gpu, channels_last, dtype, channels):
    rng = np.random.default_rng(channels)
    rows = 40 if gpu.large else 6
    feature = typed(rng.standard_normal((2, channels, 19, 26)), dtype)
    corners = rng.uniform(-60, 480, (2, rows, 2, 2))
    rois = np.concatenate([corners.min(2), corners.max(2)], -1).astype(np.float32)
    rois[:, ::5, 2:], rois[:, 3] = rois[:, ::5, :2], np.nan
    counts = np.array([rows, rows // 2], np.int32)
    expected = reference(widened(feature), rois, counts, spatial_scale=1 / 16, output_size=(7, 6))
    found = run(gpu, feature, rois, counts, dtype, channels_last, 1 / 16, (7, 6))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("channels_last", [False, True])
def test_torchvision_at_the_size_of_fast_rcnn(gpu, channels_last):
    """1000 RoIs on 512 channels (VGG-16, 600 × 800 px), 7 × 7 bins."""
    rng = np.random.default_rng(0)
    (height, width), channels, rows = ((37, 50), 512, 1000) if gpu.large else ((9, 12), 8, 12)
    feature = rng.standard_normal((1, channels, height, width)).astype(np.float32)
    rois, counts = boxes_in(rng, (1, rows), 16 * height), np.array([rows], np.int32)
    there = (torch.from_numpy(v).to(gpu.torch_device) for v in (feature, rois, counts))
    expected = by_torchvision(*there, 1 / 16, 7, 7).cpu().numpy()
    np.testing.assert_array_equal(run(gpu, feature, rois, counts, "float32", channels_last, 1 / 16, (7, 7)), expected)
