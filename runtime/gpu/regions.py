"""What kernels that make something of each region of one map share: their arrays, and how they are launched."""

from __future__ import annotations

import math
from collections.abc import Sequence
from ctypes import c_float, c_int32, c_void_p

from regionrt.runtime.backends.cuda import Argument

from .arrays import KINDS, GpuArray, checked, within
from .kernels import Kernels, Launch

BLOCK = 256
_FILLED = 1024
"""Blocks that fill a large GPU: fewer RoIs are cut into slices."""
_LARGEST = 2**31 - 1


def regions(
    kernels: Kernels,
    op: str,
    image: GpuArray,
    rois: GpuArray,
    counts: GpuArray,
    out: GpuArray,
    pooled: Sequence[int],
    numbers: Sequence[int],
    channels_last: bool,
    most_cells: int = _LARGEST,
) -> list[Launch]:
    """The launch of `{op}_{layout}_{type}`: a block is a RoI and a slice of it; [N, P, `pooled`] is written.

    Args:
        image: [N, C, H, W], or with `channels_last` [N, H, W, C]; sides of at most `most_cells`.
        numbers: the kernel's scalars behind C, H and W.

    Raises BackendError: another type or shape, or too many of something.
    """
    dtype = checked("maps", image, tuple(KINDS), (None, None, None, None)).dtype
    images, *sides = image.shape
    channels, height, width = (sides[2], *sides[:2]) if channels_last else sides
    within("cells of a side of a map", max(height, width), 0, most_cells)
    within("values of a map of one image", math.prod(sides), 0, _LARGEST)
    rows = checked("rois", rois, "float32", (images, None, 4)).shape[1]
    checked("counts", counts, "int32", (images,))
    checked("out", out, dtype, (images, rows, *pooled))
    within("values of a RoI", math.prod(pooled), 0, _LARGEST)
    within("images", images, 0, 65535)
    for name, array in (("maps", image), ("out", out)):
        within(f"address of {name} beyond a multiple of 16", array.address % 16, 0, 0)
    arguments: list[Argument] = [
        *(c_void_p(array.address) for array in (image, rois, counts)),
        *map(c_int32, (channels, height, width, *numbers)),
        c_void_p(out.address),
    ]
    grid = (rows, images, slices(rows * images, math.prod(pooled)))
    return [Launch(kernels, op, f"{op}_{'nhwc' if channels_last else 'nchw'}_{KINDS[dtype]}", grid, BLOCK, arguments)]


def slices(rois: int, values: int) -> int:
    """Blocks per RoI, of `values` values each: a few RoIs alone would leave most of a GPU idle."""
    return max(1, min(-(-_FILLED // max(rois, 1)), values // BLOCK))


def bits(value: float) -> int:
    """A float as the int32 that carries it to a kernel."""
    return c_int32.from_buffer(c_float(value)).value
