"""Regions of images stretched to one size, from channels-last images (RegionWarp: plugins/warp)."""

from __future__ import annotations

import numpy as np

from . import arrays, library
from .boxes import whole
from .calls import run


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
    image_type = arrays.kind_of("images", images)
    images = arrays.checked("images", images, None, (None, None, None, None))
    number, height, width, channels = images.shape
    rois = arrays.checked("rois", rois, np.float32, (number, None, 4))
    rows = rois.shape[1]
    counts = arrays.counts_in_range(counts, number, rows)
    size = tuple(whole("output_size", side, 1) for side in output_size)
    context = whole("context", context, 0)
    if 2 * context >= min(size):
        raise ValueError(f"context: expected less than half of the output, got {context} px for {size[0]} × {size[1]}")
    shape = (number, rows, *size, channels) if channels_last else (number, rows, channels, *size)
    out = arrays.output("out", out, images.dtype if dtype is None else np.dtype(dtype), shape)
    out_type = arrays.kind_of("dtype", out)
    threads = arrays.thread_count(threads)
    native = library.handle()
    if native is None:
        _in_numpy(images, rois, counts, size, context, channels_last, out)
        return out
    run(
        native,
        "warp",
        pixels=images.ctypes.data,
        rois=rois.ctypes.data,
        counts=counts.ctypes.data,
        out=out.ctypes.data,
        images=number,
        rows=rows,
        channels=channels,
        height=height,
        width=width,
        out_height=size[0],
        out_width=size[1],
        context=context,
        out_channels_last=channels_last,
        image_type=image_type,
        out_type=out_type,
        threads=threads,
    )
    return out


def _in_numpy(
    images: np.ndarray,
    rois: np.ndarray,
    counts: np.ndarray,
    size: tuple[int, ...],
    context: int,
    channels_last: bool,
    out: np.ndarray,
) -> None:
    out[:] = np.zeros((), out.dtype)
    one = np.float32(1)
    for image, count in enumerate(counts):
        pixels = arrays.widened(images[image])
        for row in range(count):
            roi = rois[image, row].astype(np.float64)
            if np.isnan(roi).any():
                continue
            there_y, top, bottom, dy = _taps(roi[1], roi[3], size[0], context, pixels.shape[0])
            there_x, left, right, dx = _taps(roi[0], roi[2], size[1], context, pixels.shape[1])
            dy, dx = dy[:, None, None], dx[None, :, None]
            mixed = pixels[top] * (one - dy) + pixels[bottom] * dy  # [rows inside, W, C]
            mixed = mixed[:, left] * (one - dx) + mixed[:, right] * dx
            warped = np.zeros((*size, pixels.shape[2]), np.float32)
            warped[np.ix_(there_y, there_x)] = mixed
            out[image, row] = arrays.narrowed(warped if channels_last else warped.transpose(2, 0, 1), out.dtype)


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
