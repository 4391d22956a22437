"""Regions of images stretched to one size, from channels-last images (RegionWarp: plugins/warp)."""

from __future__ import annotations

import numpy as np

from . import arrays
from .boxes import whole
from .per_roi import checked_maps, per_roi


def warp(
    images: np.ndarray,
    rois: np.ndarray,
    counts: np.ndarray,
    *,
    output_size: tuple[int, int],
    context: int,
    channels_last: bool = False,
    dtype: np.dtype | type | None = None,
    out: np.ndarray | None = None,
    threads: int | None = None,
) -> np.ndarray:
    """Anisotropic warping with context (Girshick et al., R-CNN, arXiv:1311.2524, section 2.1 and appendix A).

    Each RoI is stretched to the inner (h − 2·context) × (w − 2·context) pixels; the `context` pixels around show what
    is around the RoI, at the same scale. Bilinear, without antialias. Samples outside the image are 0, the mean of
    normalised images. RoIs with NaN in them are 0.

    Args:
        images: [N, H, W, C], float32 or bf16 (ml_dtypes' type, or the bits as uint16), normalised.
        rois: float32 [N, P, 4], xyxy in pixels; counts: int32 [N], how many of each image's are real.
        output_size: (h, w). context: in pixels of the output, less than half of h and of w.
        channels_last: give [N, P, h, w, C] instead of [N, P, C, h, w].
        dtype: of the result, float32 or bf16; None: the images' own.
        out: an array of that shape and type to write to, whatever it holds.
        threads: for RoIs; None: one per usable core. The result does not depend on it.

    Returns:
        [N, P, C, h, w] or [N, P, h, w, C]; rows from counts[n] on are 0.

    Raises:
        ValueError: another type or shape, or an option out of its range.
    """
    images = checked_maps("images", images)
    size = tuple(whole("output_size", side, 1) for side in output_size)
    context = whole("context", context, 0)
    if 2 * context >= min(size):
        raise ValueError(f"context: expected less than half of the output, got {context} px for {size[0]} × {size[1]}")
    channels = images.shape[3]

    def in_numpy(pixels: np.ndarray, roi: np.ndarray) -> np.ndarray:
        warped = _warped(pixels, roi.astype(np.float64), size, context)
        return warped if channels_last else warped.transpose(2, 0, 1)

    return per_roi(
        "warp",
        images,
        rois,
        counts,
        (*size, channels) if channels_last else (channels, *size),
        in_numpy,
        dtype=dtype,
        out=out,
        threads=threads,
        pixels=images.ctypes.data,
        image_type=arrays.kind_of("images", images),
        out_height=size[0],
        out_width=size[1],
        context=context,
        out_channels_last=channels_last,
    )


def _warped(pixels: np.ndarray, roi: np.ndarray, size: tuple[int, ...], context: int) -> np.ndarray:
    """[h, w, C] of an image [H, W, C]."""
    there_y, top, bottom, dy = _taps(roi[1], roi[3], size[0], context, pixels.shape[0])
    there_x, left, right, dx = _taps(roi[0], roi[2], size[1], context, pixels.shape[1])
    dy, dx, one = dy[:, None, None], dx[None, :, None], np.float32(1)
    mixed = pixels[top] * (one - dy) + pixels[bottom] * dy  # [rows inside, W, C]
    mixed = mixed[:, left] * (one - dx) + mixed[:, right] * dx
    warped = np.zeros((*size, pixels.shape[2]), np.float32)
    warped[np.ix_(there_y, there_x)] = mixed
    return warped


def _taps(low: float, high: float, size: int, context: int, side: int) -> tuple[np.ndarray, ...]:
    """Of the samples inside an axis of `side` pixels: which they are, the two pixels of each, the second's weight."""
    with np.errstate(invalid="ignore"):  # infinite RoIs: NaN, which is outside
        length = high - low
        step = (1.0 if length < 1 else length) / (size - 2 * context)
        position = (low + (0.5 - context) * step) + np.arange(size) * step
        there = np.flatnonzero((position >= 0) & (position <= side) & (side > 0))
    at = np.clip(position[there] - 0.5, 0.0, side - 1.0)
    pixel = at.astype(np.int64)
    return there, pixel, np.minimum(pixel + 1, side - 1), (at - pixel).astype(np.float32)
