"""Half-pixel bilinear resizing, as torch does it: the taps, and the resize of uint8 images (plugins/resize)."""

from __future__ import annotations

import numpy as np

from . import arrays, library
from .calls import run

_ROWS_PER_BLOCK = 32  # keeps the float32 temporaries of a resize inside the L2 cache


def linear_taps(source: int, target: int, start: int = 0, stop: int | None = None) -> tuple[np.ndarray, ...]:
    """The two source samples behind each target sample of a half-pixel bilinear resize: lower, upper, upper's weight.

    The arithmetic of torch's `interpolate(mode="bilinear", align_corners=False)` in float32, for targets start…stop−1.
    """
    index = np.arange(start, target if stop is None else stop)
    if source == target:
        return index, index, np.zeros(len(index), np.float32)
    ratio = np.float32(source) / np.float32(target)
    # float64 until the last step: torch's kernels compute this with one rounding (fused multiply-add)
    position = np.maximum((np.float64(ratio) * (index + 0.5) - 0.5).astype(np.float32), np.float32(0))
    lower = np.minimum(position.astype(np.int64), source - 1)
    weight = np.clip(position - lower.astype(np.float32), np.float32(0), np.float32(1))
    return lower, np.minimum(lower + 1, source - 1), weight


def resize_bilinear(
    image: np.ndarray, height: int, width: int, out: np.ndarray | None = None, threads: int | None = None
) -> np.ndarray:
    """uint8 [h, w, C] -> uint8 [height, width, C]: torch's half-pixel bilinear without antialias, rounded half to even.

    Equal to torch's float32 result but for about one value in 10,000, off by one level: torch's kernels fuse multiply
    and add where this rounds twice, which matters only for values that lie on the border between two levels.

    Args:
        out: uint8 [height, width, C] to write to, whatever it holds; of a larger array a part may be given, as long as
            each row is in C order (a canvas's upper left corner).
        threads: for blocks of rows; None: one per usable core. The result does not depend on it, nor on whether the
            compiled library or NumPy computes.

    Raises:
        ValueError: another type or shape, an image without pixels, or a target without.
    """
    if image.dtype != np.uint8 or image.ndim != 3:
        raise ValueError(f"resize_bilinear expects uint8 [h, w, C], got {image.dtype} {list(image.shape)}")
    if height < 1 or width < 1 or 0 in image.shape:
        raise ValueError(f"resize_bilinear cannot turn {list(image.shape[:2])} into {[height, width]}")
    channels = image.shape[2]
    if out is None:
        out = np.empty((height, width, channels), np.uint8)
    elif out.dtype != np.uint8 or out.shape != (height, width, channels) or not out.flags.writeable:
        found = f"{out.dtype} {list(out.shape)}"
        raise ValueError(f"resize_bilinear expects writable uint8 {[height, width, channels]} as out, got {found}")
    elif not _rows_in_order(out):
        raise ValueError("resize_bilinear expects an out whose rows are in C order")
    threads = arrays.thread_count(threads)
    native = library.handle()
    if native is None:
        _in_numpy(image, height, width, out)
        return out
    if not _rows_in_order(image):
        image = np.ascontiguousarray(image)
    run(
        native,
        "resize",
        image=image.ctypes.data,
        out=out.ctypes.data,
        row_bytes=image.strides[0],
        out_row_bytes=out.strides[0],
        height=image.shape[0],
        width=image.shape[1],
        channels=channels,
        out_height=height,
        out_width=width,
        threads=threads,
    )
    return out


def _rows_in_order(image: np.ndarray) -> bool:
    """Whether each row of [h, w, C] is contiguous."""
    _, width, channels = image.shape
    return (channels == 1 or image.strides[2] == 1) and (width == 1 or image.strides[1] == channels)


def _in_numpy(image: np.ndarray, height: int, width: int, out: np.ndarray) -> None:
    top, bottom, down = linear_taps(image.shape[0], height)
    left, right, across = linear_taps(image.shape[1], width)
    across = across[None, :, None]
    for start in range(0, height, _ROWS_PER_BLOCK):
        block = slice(start, start + _ROWS_PER_BLOCK)
        used, where = np.unique(np.concatenate([top[block], bottom[block]]), return_inverse=True)
        rows = image[used]  # only these are touched: shrinking a large photo reads few of its rows
        mixed = np.take(rows, left, axis=1).astype(np.float32)
        mixed *= 1 - across
        second = np.take(rows, right, axis=1).astype(np.float32)
        second *= across
        mixed += second
        upper, lower = mixed[where[: len(where) // 2]], mixed[where[len(where) // 2 :]]
        weight = down[block, None, None]
        upper *= 1 - weight
        lower *= weight
        upper += lower
        # No clip: weights lie in 0…1 and sum to 1 within an ulp, so that 255 cannot become 255.5.
        out[block] = np.rint(upper, out=upper)
