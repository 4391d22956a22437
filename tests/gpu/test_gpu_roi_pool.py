"""RoIPool on a GPU: every kernel the reference's maxima exactly, and torchvision's at the size of Fast R-CNN."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from values import TOLERANCES, boxes_in, typed, widened

from regionrt.plugins.roi_pool.reference import roi_pool as reference
from regionrt.plugins.roi_pool.torch_op import roi_pool as by_torchvision
from regionrt.runtime.errors import BackendError
from regionrt.runtime.gpu.arrays import GpuArray
from regionrt.runtime.gpu.roi_pool import roi_pool


def run(gpu, feature, rois, counts, dtype, channels_last, scale, size) -> np.ndarray:
    """[N, P, C, h, w] float32 from `feature` [N, C, H, W] in `dtype`."""
    channels = feature.shape[1]
    placed = gpu.put(np.ascontiguousarray(feature.transpose(0, 2, 3, 1)) if channels_last else feature, dtype)
    out = gpu.empty((*rois.shape[:2], *((*size, channels) if channels_last else (channels, *size))), dtype)
    options = {"spatial_scale": scale, "output_size": size, "channels_last": channels_last}
    gpu.run(roi_pool(gpu.kernels, placed, gpu.put(rois), gpu.put(counts), out, **options))
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


@pytest.mark.parametrize(
    ("feature", "out", "why"),
    [
        (GpuArray(0, (1, 4, 5000, 2), "float16"), GpuArray(0, (1, 3, 4, 2, 2), "float16"), "0 to 4096, found 5000"),
        (GpuArray(0, (1, 4, 9, 9), "int32"), GpuArray(0, (1, 3, 4, 2, 2), "int32"), "maps: expected float32"),
        (GpuArray(0, (1, 4, 9, 9), "float16"), GpuArray(0, (1, 3, 2, 2, 4), "float16"), r"out: .*\[1, 3, 4, 2, 2\]"),
        (GpuArray(8, (1, 4, 9, 9), "float16"), GpuArray(0, (1, 3, 4, 2, 2), "float16"), "multiple of 16"),
    ],
)
def test_what_the_kernels_do_not_take_is_refused(feature, out, why):
    rois, counts = GpuArray(0, (1, 3, 4), "float32"), GpuArray(0, (1,), "int32")
    with pytest.raises(BackendError, match=why):
        roi_pool(None, feature, rois, counts, out, spatial_scale=0.5, output_size=(2, 2))
