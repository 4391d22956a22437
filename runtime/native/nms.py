"""Greedy NMS per class on boxes sorted by score (RegionNms: plugins/nms)."""

from __future__ import annotations

import numpy as np

from . import arrays, library
from . import boxes as box_math
from .calls import run


def nms(
    boxes: np.ndarray,
    classes: np.ndarray,
    *,
    iou_threshold: float,
    out: np.ndarray | None = None,
    threads: int | None = None,
) -> np.ndarray:
    """Exactly greedy NMS of `boxes` float32 [N, Q, 4] (xyxy, best first) with `classes` int32 [N, Q] -> bool [N, Q].

    A box is dropped when an earlier, kept box of its class overlaps it with IoU > `iou_threshold` (0…1), the IoU in
    float32. Negative classes mark padding: never kept, never suppressing. So do not boxes of NaN: they overlap nothing.

    Args:
        out: bool [N, Q] to write to, whatever it holds.
        threads: for images and classes; None: one per usable core. The result does not depend on it.

    Raises:
        ValueError: another type or shape, or a threshold outside 0…1.
    """
    boxes = arrays.checked("boxes", boxes, np.float32, (None, None, 4))
    images, rows = boxes.shape[:2]
    classes = arrays.checked("classes", classes, np.int32, (images, rows))
    threshold = box_math.fraction("iou_threshold", iou_threshold)
    keep = arrays.output("out", out, bool, (images, rows))
    threads = arrays.thread_count(threads)
    native = library.handle()
    if native is None:
        _in_numpy(boxes, classes, threshold, keep)
        return keep
    run(
        native,
        "nms",
        boxes=boxes.ctypes.data,
        classes=classes.ctypes.data,
        keep=keep.ctypes.data,
        iou_threshold=threshold,
        images=images,
        rows=rows,
        threads=threads,
    )
    return keep


def _in_numpy(boxes: np.ndarray, classes: np.ndarray, threshold: float, keep: np.ndarray) -> None:
    keep[:] = False
    for image in range(len(boxes)):
        valid = np.flatnonzero(classes[image] >= 0)
        kept = box_math.greedy(boxes[image, valid], classes[image, valid], threshold, len(valid))
        keep[image, valid[kept]] = True
