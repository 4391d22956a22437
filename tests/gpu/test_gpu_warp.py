"""Warping regions on a GPU: every kernel against the reference, and torch's grid_sample at the size of R-CNN."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from values import TOLERANCES, boxes_in, near, typed, widened

from regionrt.plugins.warp.reference import warp as reference
from regionrt.plugins.warp.torch_op import warp as by_torch
from regionrt.runtime.errors import BackendError
from regionrt.runtime.gpu.arrays import GpuArray
from regionrt.runtime.gpu.warp import warp


def run(gpu, images, rois, counts, dtype, channels_last, size, context) -> np.ndarray:
    """[N, P, C, h, w] float32 from `images` [N, C, H, W] in `dtype`."""
    channels = images.shape[1]
    placed = gpu.put(np.ascontiguousarray(images.transpose(0, 2, 3, 1)) if channels_last else images, dtype)
    out = gpu.empty((*rois.shape[:2], *((*size, channels) if channels_last else (channels, *size))), dtype)
    options = {"output_size": size, "context": context, "channels_last": channels_last}
    gpu.run(warp(gpu.kernels, placed, gpu.put(rois), gpu.put(counts), out, **options))
    found = widened(gpu.get(out))
    return found.transpose(0, 1, 4, 2, 3) if channels_last else found


@pytest.mark.parametrize("dtype", list(TOLERANCES))
@pytest.mark.parametrize("channels_last", [False, True])
def test_every_kernel(gpu, channels_last, dtype):
    rng = np.random.default_rng(3)
    rows = 20 if gpu.large else 5
    images = typed(rng.standard_normal((2, 3, 61, 84)), dtype)
    corners = rng.uniform(-30, 100, (2, rows, 2, 2))
    rois = np.concatenate([corners.min(2), corners.max(2)], -1).astype(np.float32)
    rois[:, ::4, 2:], rois[:, 3] = rois[:, ::4, :2], np.nan
    counts = np.array([rows, rows // 2], np.int32)
    expected = reference(widened(images), rois, counts, output_size=(13, 18), context=2)
    near(run(gpu, images, rois, counts, dtype, channels_last, (13, 18), 2), expected, TOLERANCES[dtype])


@pytest.mark.parametrize("channels_last", [False, True])
def test_torch_at_the_size_of_rcnn(gpu, channels_last):
    """227 × 227 px with 16 px of context."""
    rng = np.random.default_rng(0)
    side, rows, size, context = ((600, 800), 50, 227, 16) if gpu.large else ((60, 80), 3, 27, 2)
    images = rng.standard_normal((1, 3, *side)).astype(np.float32)
    rois, counts = boxes_in(rng, (1, rows), side[0]), np.array([rows], np.int32)
    there = (torch.from_numpy(v).to(gpu.torch_device) for v in (images, rois, counts))
    expected = by_torch(*there, size, size, context).cpu().numpy()
    near(run(gpu, images, rois, counts, "float32", channels_last, (size, size), context), expected, 1e-5)


def test_more_context_than_output_is_refused():
    images, out = GpuArray(0, (1, 3, 9, 9), "float32"), GpuArray(0, (1, 2, 3, 8, 8), "float32")
    rois, counts = GpuArray(0, (1, 2, 4), "float32"), GpuArray(0, (1,), "int32")
    with pytest.raises(BackendError, match="context: the CUDA kernels take 0 to 3, found 4"):
        warp(None, images, rois, counts, out, output_size=(8, 8), context=4)
