"""Pasting masks on a GPU (plugins/mask_paste/kernel.cu): a thread takes pixels of the photo."""

from __future__ import annotations

from ctypes import c_float, c_int32, c_void_p

from regionrt.runtime.backends.cuda import Argument

from .arrays import GpuArray, checked, within
from .kernels import Kernels, Launch

THRESHOLD = 0.5
_BLOCK, _MOST_BLOCKS = 256, 256


def mask_paste(kernels: Kernels, roi_masks: GpuArray, boxes: GpuArray, out: GpuArray) -> list[Launch]:
    """As `regionrt.runtime.native.paste_masks`; the launch, ready for a stream.

    Args:
        roi_masks: float32 [D, M, M] probabilities; boxes: float32 [D, 4], xyxy in pixels of the photo, finite and
            below 1e9 (which is not looked at here).
        out: uint8 [D, H, W], 1 where the probability is above 0.5. All of it is written.

    Raises BackendError: another type or shape, or a limit beyond the kernel's.
    """
    count, side, _ = checked("roi_masks", roi_masks, "float32", (None, None, None)).shape
    checked("roi_masks", roi_masks, "float32", (count, side, side))
    checked("boxes", boxes, "float32", (count, 4))
    _, height, width = checked("out", out, "uint8", (count, None, None)).shape
    within("side of a mask", side, 1, 2**15)
    within("masks", count, 0, 65535)
    threshold = c_int32.from_buffer(c_float(THRESHOLD))
    arguments: list[Argument] = [
        *map(c_void_p, (roi_masks.address, boxes.address)),
        *(c_int32(side), c_int32(height), c_int32(width), threshold),
        c_void_p(out.address),
    ]
    blocks = min(-(-height * width // _BLOCK), _MOST_BLOCKS)
    return [Launch(kernels, "mask_paste", "mask_paste", (blocks, count), _BLOCK, arguments)]
