"""RegionNms on a GPU (plugins/nms/kernel.cu): one block a class of an image, exactly greedy, without workspace."""

from __future__ import annotations

from ctypes import c_float, c_int32, c_void_p

from regionrt.runtime.backends.cuda import Argument

from .arrays import GpuArray, checked, within
from .kernels import Kernels, Launch
from .proposals import MOST_BOXES

_BLOCK = 1024


def nms(
    kernels: Kernels, boxes: GpuArray, classes: GpuArray, keep: GpuArray, *, iou_threshold: float, num_classes: int
) -> list[Launch]:
    """As `regionrt.runtime.native.nms`; the launch, ready for a stream.

    Args:
        boxes: float32 [N, Q, 4], best first, at most 4096; classes: int32 [N, Q], −1 for padding.
        keep: uint8 [N, Q], 0 or 1. All of it is written.

    Raises BackendError: another type or shape, or a limit beyond the kernel's.
    """
    images, rows = checked("classes", classes, "int32", (None, None)).shape
    checked("boxes", boxes, "float32", (images, rows, 4))
    checked("keep", keep, "uint8", (images, rows))
    within("boxes of NMS", rows, 0, MOST_BOXES)
    within("num_classes", num_classes, 1, 2**31 - 1)
    within("images", images, 0, 65535)
    threshold = c_int32.from_buffer(c_float(iou_threshold))
    arguments: list[Argument] = [
        *map(c_void_p, (boxes.address, classes.address)),
        *(c_int32(rows), c_int32(num_classes), threshold),
        c_void_p(keep.address),
    ]
    grid = (num_classes if rows else 0, images)
    return [Launch(kernels, "nms", "nms", grid, _BLOCK, arguments)]
