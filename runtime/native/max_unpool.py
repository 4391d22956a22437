"""Max pooling with the place of each maximum, and unpooling (RegionMaxPool, RegionMaxUnpool: plugins/max_unpool)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from . import arrays, library
from .boxes import whole
from .calls import run


class MaxPooled(NamedTuple):
    """Maxima [N, C, h, w] and their places in the windows, row · kernel + column, int32 [N, C, h, w]."""

    values: np.ndarray
    argmax: np.ndarray


def max_pool(
    x: np.ndarray,
    *,
    kernel: int,
    stride: int,
    ceil_mode: bool = False,
    out: MaxPooled | None = None,
    threads: int | None = None,
) -> MaxPooled:
    """Maxima of windows of `x` [N, C, H, W], float32 or bf16 (ml_dtypes' type, or the bits as uint16).

    Windows are whole; with `ceil_mode` the last may hang over the edge. Of equal values the first counts, of NaN, which
    beats every number, the last. `out`, where given, is written to.

    Raises:
        ValueError: another type or shape, windows that overlap (kernel > stride), or a map without a window.
    """
    kind = arrays.kind_of("x", x)
    x = arrays.checked("x", x, None, (None, None, None, None))
    kernel, stride = _windows(kernel, stride)
    images, channels, height, width = x.shape
    least = 1 if ceil_mode else kernel
    if min(height, width) < least:
        raise ValueError(f"x: expected a map of at least {least} cells each way, got {height} × {width}")
    rows, columns = (-(-n // stride) if ceil_mode else (n - kernel) // stride + 1 for n in (height, width))
    values, argmax = out or (None, None)
    shape = (images, channels, rows, columns)
    found = MaxPooled(
        arrays.output("out.values", values, x.dtype, shape), arrays.output("out.argmax", argmax, np.int32, shape)
    )
    threads = arrays.thread_count(threads)
    native = library.handle()
    if native is None:
        _pool_in_numpy(x, kernel, stride, found)
        return found
    run(
        native,
        "max_pool",
        x=x.ctypes.data,
        values=found.values.ctypes.data,
        argmax=found.argmax.ctypes.data,
        planes=images * channels,
        height=height,
        width=width,
        rows=rows,
        columns=columns,
        kernel=kernel,
        stride=stride,
        type=kind,
        threads=threads,
    )
    return found


def max_unpool(
    x: np.ndarray,
    argmax: np.ndarray,
    *,
    kernel: int,
    stride: int,
    size: tuple[int, int],
    out: np.ndarray | None = None,
    threads: int | None = None,
) -> np.ndarray:
    """[N, C, H, W]: each of `x` [N, C, h, w], float32 or bf16, at its place `argmax` int32 in its window, else zero.

    `size` is (H, W) of the map that was pooled, with or without a rest behind the last whole window. What would lie
    outside the map, and places that no window has, are left out.

    Raises:
        ValueError: another type or shape, windows that overlap, or a size that does not have h × w of them.
    """
    kind = arrays.kind_of("x", x)
    x = arrays.checked("x", x, None, (None, None, None, None))
    argmax = arrays.checked("argmax", argmax, np.int32, x.shape)
    kernel, stride = _windows(kernel, stride)
    height, width = (whole("size", side, 1) for side in size)
    for cells, count in zip((height, width), x.shape[2:], strict=True):
        least, most = (count - 1) * stride + 1, count * stride + kernel - 1
        if not least <= cells <= most:
            raise ValueError(f"size: expected {least} to {most} cells for {count} windows, got {cells}")
    out = arrays.output("out", out, x.dtype, (*x.shape[:2], height, width))
    threads = arrays.thread_count(threads)
    native = library.handle()
    if native is None:
        _unpool_in_numpy(x, argmax, kernel, stride, out)
        return out
    run(
        native,
        "max_unpool",
        x=x.ctypes.data,
        argmax=argmax.ctypes.data,
        out=out.ctypes.data,
        planes=x.shape[0] * x.shape[1],
        height=height,
        width=width,
        rows=x.shape[2],
        columns=x.shape[3],
        kernel=kernel,
        stride=stride,
        type=kind,
        threads=threads,
    )
    return out


def _windows(kernel: int, stride: int) -> tuple[int, int]:
    kernel, stride = whole("kernel", kernel, 1), whole("stride", stride, 1)
    if kernel > stride:
        raise ValueError(
            f"stride: expected at least the kernel, {kernel}, so that windows do not overlap, got {stride}"
        )
    return kernel, stride


def _pool_in_numpy(x: np.ndarray, kernel: int, stride: int, found: MaxPooled) -> None:
    found.values[:], found.argmax[:] = (
        x[:, :, ::stride, ::stride][..., : found.values.shape[2], : found.values.shape[3]],
        0,
    )
    best = arrays.widened(found.values)
    for place in range(1, kernel * kernel):
        value = x[:, :, place // kernel :: stride, place % kernel :: stride]  # [N, C, ≤ h, ≤ w]: the edge cuts it
        part = (..., slice(value.shape[2]), slice(value.shape[3]))
        value = value[..., : best.shape[2], : best.shape[3]]
        wide = arrays.widened(np.ascontiguousarray(value))
        better = (wide > best[part]) | np.isnan(wide)
        np.copyto(best[part], wide, where=better)
        np.copyto(found.values[part], value, where=better)
        found.argmax[part][better] = place


def _unpool_in_numpy(x: np.ndarray, argmax: np.ndarray, kernel: int, stride: int, out: np.ndarray) -> None:
    out[:] = np.zeros((), out.dtype)
    for place in range(kernel * kernel):
        cells = out[:, :, place // kernel :: stride, place % kernel :: stride][..., : x.shape[2], : x.shape[3]]
        part = (..., slice(cells.shape[2]), slice(cells.shape[3]))
        np.copyto(cells, x[part], where=argmax[part] == place)
