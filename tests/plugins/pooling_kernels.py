"""CUDA kernels that pool regions of one map, run on the CPU: one call for any op, layout and type."""

from __future__ import annotations

from collections.abc import Sequence

import ml_dtypes
import numpy as np
from kernels import launch

TYPES = {"f32": np.float32, "f16": np.float16, "bf16": ml_dtypes.bfloat16}
LAYOUTS = ("nchw", "nhwc")


def run(
    op: str,
    layout: str,
    kind: str,
    feature: np.ndarray,
    rois: np.ndarray,
    counts: np.ndarray,
    numbers: Sequence[int],
    shape: tuple[int, ...],
    slices: int = 1,
) -> np.ndarray:
    """[N, P, *shape] float32 from `{op}_{layout}_{kind}`; the output's memory is full of NaN before.

    `feature` is [N, C, H, W] and is turned and rounded as the kernel wants it. `shape` is as the kernel writes it. Its
    scalars are C, H, W, then `numbers`.
    """
    images, most = rois.shape[:2]
    moved = feature.transpose(0, 2, 3, 1) if layout == "nhwc" else feature
    given = np.ascontiguousarray(moved).astype(TYPES[kind])
    out = np.full((images, most, *shape), np.nan, np.float32).astype(TYPES[kind])
    arguments = [given, rois, counts, *feature.shape[1:], *numbers, out]
    launch(op, f"{op}_{layout}_{kind}", (most, images, slices), 256, arguments)
    return out.astype(np.float32)


def rounded(values: np.ndarray, kind: str) -> np.ndarray:
    """float32 that the type can hold."""
    return values.astype(TYPES[kind]).astype(np.float32)


def regions(rng: np.random.Generator, images: int, most: int, extent: tuple[float, float]) -> np.ndarray:
    """Boxes of all sizes on a canvas of `extent` (height, width); some beyond it, points, reversed, infinite or NaN."""
    corners = rng.uniform(-0.4, 1.4, (images, most, 2, 2)) * [extent[1], extent[0]]
    rois = np.concatenate([corners.min(2), corners.max(2)], -1).astype(np.float32)
    rois[:, 1::7, 2:] = rois[:, 1::7, :2]
    rois[:, 2::7] = rois[:, 2::7][..., [2, 3, 0, 1]]
    rois[:, 3::7, 1] = np.nan
    rois[:, 4::7] = [-1e30, -np.inf, 1e30, np.inf]
    return rois
