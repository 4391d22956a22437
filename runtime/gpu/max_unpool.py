"""RegionMaxPool and RegionMaxUnpool on a GPU (plugins/max_unpool/kernel.cu): windows along x, planes along y."""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import c_int32, c_void_p

from regionrt.runtime.backends.cuda import Argument
from regionrt.runtime.errors import BackendError

from .arrays import KINDS, SIZES, GpuArray, checked, within
from .kernels import Kernels, Launch

_BLOCK = 256
_FILLED = 4096
"""Blocks that fill a large GPU: of more planes each block takes several, with one division for all of them."""


def max_pool(
    kernels: Kernels, x: GpuArray, values: GpuArray, argmax: GpuArray, *, kernel: int, stride: int
) -> list[Launch]:
    """As `regionrt.runtime.native.max_pool`; the launch, ready for a stream.

    Args:
        x: [N, C, H, W], float32, float16 or bfloat16.
        values: of that type, [N, C, h, w], and argmax int32, likewise. All of it is written. h = (H − kernel) // stride
            + 1, or ⌈H / stride⌉, with windows that hang over the edge.

    Raises BackendError: another type or shape, or windows that overlap.
    """
    images, channels, height, width = checked("x", x, tuple(KINDS), (None, None, None, None)).shape
    _, _, rows, columns = checked("values", values, x.dtype, (images, channels, None, None)).shape
    checked("argmax", argmax, "int32", values.shape)
    windows = _windows((height, width), (rows, columns), kernel, stride, counts_fit=True)
    packed = _in_halves(windows) * (16 // SIZES[x.dtype]) // 2
    return _launch(
        kernels, "max_pool", x.dtype, (x, values, argmax), 1, windows, images * channels, rows * columns, packed
    )


def max_unpool(
    kernels: Kernels, x: GpuArray, argmax: GpuArray, out: GpuArray, *, kernel: int, stride: int
) -> list[Launch]:
    """As `regionrt.runtime.native.max_unpool`; the launch, ready for a stream.

    Args:
        x: [N, C, h, w], float32, float16 or bfloat16; argmax: int32, likewise.
        out: of the type of x, [N, C, H, W], of the size of the map that was pooled. All of it is written.

    Raises BackendError: another type or shape, or windows that overlap.
    """
    images, channels, rows, columns = checked("x", x, tuple(KINDS), (None, None, None, None)).shape
    checked("argmax", argmax, "int32", x.shape)
    _, _, height, width = checked("out", out, x.dtype, (images, channels, None, None)).shape
    windows = _windows((height, width), (rows, columns), kernel, stride, counts_fit=False)
    packed = _in_halves(windows) * (16 // SIZES[x.dtype]) * 2
    return _launch(
        kernels, "max_unpool", x.dtype, (x, argmax, out), 2, windows, images * channels, height * width, packed
    )


def _windows(
    sizes: tuple[int, int], counts: tuple[int, int], kernel: int, stride: int, counts_fit: bool
) -> tuple[int, ...]:
    """height, width, rows, columns, kernel, stride, as the kernels take them."""
    within("kernel", kernel, 1, stride)
    within("cells of a map", sizes[0] * sizes[1], 0, 2**31 - 1)
    for size, count in zip(sizes, counts, strict=True):
        whole, begun = (size - kernel) // stride + 1, -(-size // stride)
        least, most = (count - 1) * stride + 1, count * stride + kernel - 1
        if (counts_fit and count not in (whole, begun)) or not least <= size <= most:
            raise BackendError(
                f"expected {whole} or {begun} windows of {kernel} cells and stride {stride} along {size} cells, "
                f"found {count}"
            )
    return (*sizes, *counts, kernel, stride)


def _in_halves(windows: Sequence[int]) -> bool:
    """Whether the kernels take 2 × 2 windows in packs (of 16 bytes where these divide the width)."""
    _, width, _, columns, kernel, stride = windows
    return kernel == stride == 2 and 2 * columns == width


def _launch(
    kernels: Kernels,
    name: str,
    dtype: str,
    arrays: Sequence[GpuArray],
    inputs: int,
    windows: Sequence[int],
    planes: int,
    items: int,
    packed: int,
) -> list[Launch]:
    arguments: list[Argument] = [
        *(c_void_p(array.address) for array in arrays[:inputs]),
        *map(c_int32, (within("planes", planes, 0, 2**31 - 1), *windows)),
        *(c_void_p(array.address) for array in arrays[inputs:]),
    ]
    blocks = -(-items // (_BLOCK * max(packed, 1)))
    together = min(planes, 65535, max(1, -(-_FILLED // max(blocks, 1))))
    return [Launch(kernels, "max_unpool", f"{name}_{KINDS[dtype]}", (blocks, together), _BLOCK, arguments)]
