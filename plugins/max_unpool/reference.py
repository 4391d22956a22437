"""What RegionMaxPool and RegionMaxUnpool compute: max pooling with the place of each maximum, and the way back.

SegNet (arXiv:1511.00561, section 3) and DeconvNet (arXiv:1505.04366, section 3.2.1) unpool by the places that their
encoders' poolings stored. Here a place counts within its window (row · kernel + column), not within the map, so that it
means the same whatever the size of the map.
"""

import numpy as np


def window_count(size: int, kernel: int, stride: int, ceil_mode: bool) -> int:
    """Windows along an axis of `size` cells: the whole ones, with `ceil_mode` all that begin inside.

    ValueError where windows overlap (two maxima could claim one cell), or none fits.
    """
    if not 1 <= kernel <= stride:
        raise ValueError(f"expected windows that do not overlap, 1 ≤ kernel ≤ stride, got {kernel} and {stride}")
    count = -(-size // stride) if ceil_mode else (size - kernel) // stride + 1
    if count < 1:
        raise ValueError(f"expected a map of at least {1 if ceil_mode else kernel} cells each way, got {size}")
    return count


def unpooled_from(size: tuple[int, int], windows: tuple[int, int], kernel: int, stride: int) -> None:
    """ValueError unless a map of `size` cells has so many `windows`, rounded down or up."""
    for cells, count in zip(size, windows, strict=True):
        least, most = (count - 1) * stride + 1, count * stride + kernel - 1
        if not (1 <= kernel <= stride and least <= cells <= most):
            raise ValueError(
                f"expected the size of the map that was pooled, {least} to {most} cells for {count} windows of "
                f"{kernel} cells and stride {stride}, got {cells}"
            )


def max_pool(x: np.ndarray, *, kernel: int, stride: int, ceil_mode: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Maxima of windows of `x` [N, C, H, W] -> values [N, C, h, w], and their places in the window, int32 [N, C, h, w].

    Window (i, j) begins at row i · stride, column j · stride; with `ceil_mode` the last ones may hang over the edge,
    and what is outside is no candidate. Of equal values the first counts, row by row; of NaN, which beats every number,
    the last (both as in torch). ValueError where windows overlap or a map is smaller than one.
    """
    images, channels, height, width = x.shape
    h, w = (window_count(size, kernel, stride, ceil_mode) for size in (height, width))
    values, argmax = np.empty((images, channels, h, w), x.dtype), np.empty((images, channels, h, w), np.int32)
    for n, c, i, j in np.ndindex(values.shape):
        top, left = i * stride, j * stride
        best, place = x[n, c, top, left], 0
        for row in range(min(kernel, height - top)):
            for column in range(min(kernel, width - left)):
                value = x[n, c, top + row, left + column]
                if value > best or np.isnan(value):
                    best, place = value, row * kernel + column
        values[n, c, i, j], argmax[n, c, i, j] = best, place
    return values, argmax


def max_unpool(x: np.ndarray, argmax: np.ndarray, *, kernel: int, stride: int, height: int, width: int) -> np.ndarray:
    """[N, C, height, width]: each of `x` [N, C, h, w] at its place `argmax` (int32, likewise) in its window, else zero.

    `height` and `width` are the pooled map's, with or without a rest behind the last whole window (`unpooled_from`).
    What would lie outside the map, and places that no window has, are left out.
    """
    unpooled_from((height, width), x.shape[2:], kernel, stride)
    out = np.zeros((*x.shape[:2], height, width), x.dtype)
    for n, c, i, j in np.ndindex(x.shape):
        place = argmax[n, c, i, j]
        if not 0 <= place < kernel * kernel:
            continue
        row, column = i * stride + place // kernel, j * stride + place % kernel
        if row < height and column < width:
            out[n, c, row, column] = x[n, c, i, j]
    return out
