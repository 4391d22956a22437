"""RoIAlign on a GPU: every kernel against the reference, and at the size of a detector against torchvision's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from values import TOLERANCES, boxes_in, near, typed, widened

from regionrt.plugins.roi_align.reference import roi_align as reference
from regionrt.plugins.roi_align.torch_op import roi_align as by_torchvision
from regionrt.runtime.gpu.roi_align import roi_align

SCALES = [1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 64]
OPTIONS: dict[str, Any] = {
    "output_size": (3, 2),
    "sampling_ratio": 2,
    "aligned": False,
    "mode": "avg",
    "canonical_scale": 40.0,
    "canonical_level": 3,
}


def run(gpu, maps, rois, counts, dtype, channels_last, **options) -> np.ndarray:
    """[N, P, C, h, w] float32 from maps [N, C, H, W] in `dtype`."""
    order = (0, 2, 3, 1) if channels_last else (0, 1, 2, 3)
    placed = [gpu.put(np.ascontiguousarray(level.transpose(order)), dtype) for level in maps]
    channels, size = maps[0].shape[1], options["output_size"]
    shape = (*size, channels) if channels_last else (channels, *size)
    out = gpu.empty((*rois.shape[:2], *shape), dtype)
    gpu.run(roi_align(gpu.kernels, placed, gpu.put(rois), gpu.put(counts), out, channels_last=channels_last, **options))
    found = widened(gpu.get(out))
    return found.transpose(0, 1, 4, 2, 3) if channels_last else found


def case(gpu, levels: int, channels: int, dtype: str, rows: int = 8, side: int = 150):
    rng = np.random.default_rng(levels)
    images, rows = 2, 3 * rows if gpu.large else rows
    shapes = [(images, channels, -(-side // 2 ** (k + 2)), -(-side // 2 ** (k + 2)) + 1) for k in range(levels)]
    maps = [typed(rng.standard_normal(shape), dtype) for shape in shapes]
    corners = rng.uniform(-0.2 * side, 1.2 * side, (images, rows, 2, 2))
    rois = np.concatenate([corners.min(2), corners.max(2)], -1).astype(np.float32)
    rois[:, ::5, 2:] = rois[:, ::5, :2]  # empty
    rois[1, rows // 2 :] = np.nan  # beyond the count
    return maps, rois, np.array([rows, rows // 2], np.int32)


@pytest.mark.parametrize("levels", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("dtype", list(TOLERANCES))
@pytest.mark.parametrize("channels_last", [False, True])
def test_every_kernel(gpu, channels_last, dtype, levels):
    maps, rois, counts = case(gpu, levels, 16, dtype)
    options = OPTIONS | {"spatial_scales": SCALES[:levels]}
    expected = reference([widened(m) for m in maps], rois, counts, **options)
    near(run(gpu, maps, rois, counts, dtype, channels_last, **options), expected, TOLERANCES[dtype])


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {"mode": "max"},
        {"aligned": True},
        {"sampling_ratio": 0},
        {"sampling_ratio": 0, "mode": "max", "aligned": True},
        {"sampling_ratio": 1, "output_size": (7, 7)},
        {"output_size": (1, 1), "sampling_ratio": 3},
    ],
)
@pytest.mark.parametrize("channels", [1, 7, 24])
def test_options(gpu, channels, options, channels_last):
    maps, rois, counts = case(gpu, 2, channels, "float32", 3)
    options = OPTIONS | {"spatial_scales": SCALES[:2]} | options
    expected = reference(maps, rois, counts, **options)
    near(run(gpu, maps, rois, counts, "float32", channels_last, **options), expected, TOLERANCES["float32"])


@pytest.mark.parametrize("channels_last", [False, True])
def test_more_samples_than_are_kept(gpu, channels_last):
    maps, rois, counts = case(gpu, 2, 7, "float32", 1)
    options = OPTIONS | {"spatial_scales": SCALES[:2], "sampling_ratio": 70, "output_size": (1, 2)}
    expected = reference(maps, rois, counts, **options)
    near(run(gpu, maps, rois, counts, "float32", channels_last, **options), expected, TOLERANCES["float32"])


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_torchvision_at_the_size_of_a_detector(gpu, channels_last, dtype):
    """1000 RoIs of four levels of 256 channels (800 × 1088 px), 7 × 7 bins."""
    rng = np.random.default_rng(0)
    (height, width), channels, rows = ((800, 1088), 256, 1000) if gpu.large else ((96, 128), 8, 30)
    maps = [
        typed(rng.standard_normal((1, channels, height // 2**k, width // 2**k), np.float32), dtype)
        for k in (2, 3, 4, 5)
    ]
    rois, counts = boxes_in(rng, (1, rows), min(height, width)), np.array([rows], np.int32)
    options = OPTIONS | {"spatial_scales": SCALES[:4], "output_size": (7, 7), "canonical_scale": 224.0}
    options |= {"canonical_level": 4}
    found = run(gpu, maps, rois, counts, dtype, channels_last, **options)
    tensors = [torch.from_numpy(m).to(gpu.torch_device) for m in maps]
    rois_there, counts_there = (torch.from_numpy(v).to(gpu.torch_device) for v in (rois, counts))
    expected = by_torchvision(tensors, rois_there, counts_there, SCALES[:4], 7, 7, 2, False, "avg", 224.0, 4)
    # torchvision places its samples in float32, 1e-4 cells beside ours at the far end of a map
    near(found, expected.cpu().float().numpy(), 1e-4 if dtype == "float32" else TOLERANCES[dtype])
