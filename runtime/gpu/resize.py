"""The resize onto the canvas on a GPU (plugins/resize/kernel.cu), the CPU's to the byte."""

from __future__ import annotations

import math
from ctypes import c_int32, c_void_p

from regionrt.runtime.backends.cuda import Argument

from .arrays import GpuArray, checked, within
from .kernels import Kernels, Launch

_BLOCK, _ROWS = 256, 8


def resize_onto(kernels: Kernels, image: GpuArray, canvas: GpuArray, size: tuple[int, int]) -> list[Launch]:
    """As `regionrt.runtime.native.resize_bilinear` onto the upper left of a canvas; the launch, ready for a stream.

    Args:
        image: uint8 [h, w, 3]; canvas: uint8 [H, W, 3]. All of it is written, zeros where no photo is.
        size: (height, width) that the photo gets, at most the canvas's.

    Raises BackendError: another type or shape.
    """
    source = checked("image", image, "uint8", (None, None, 3)).shape[:2]
    whole = checked("canvas", canvas, "uint8", (None, None, 3)).shape[:2]
    for name, side, most in (("height", size[0], whole[0]), ("width", size[1], whole[1])):
        within(f"{name} on the canvas", side, 1, most)
    for name, (height, width) in (("image", source), ("canvas", whole)):
        within(f"pixels of the {name}", height * width, 1, 2**31 - 1)
    within("rows of the canvas", whole[0], 1, 65535 * _ROWS)
    grid = (math.ceil(whole[1] / _BLOCK), math.ceil(whole[0] / _ROWS))
    arguments: list[Argument] = [
        c_void_p(image.address),
        *map(c_int32, (*source, *size, *whole)),
        c_void_p(canvas.address),
    ]
    return [Launch(kernels, "resize", "resize", grid, _BLOCK, arguments)]
