"""What RegionNms computes: exact greedy non-maximum suppression, per class, on boxes sorted by score."""

import numpy as np

from ..boxes import iou_one_to_many


def nms(boxes: np.ndarray, classes: np.ndarray, *, iou_threshold: float) -> np.ndarray:
    """Greedy NMS of `boxes` float32 [N, Q, 4] (xyxy, best first) with `classes` int32 [N, Q] -> keep, bool [N, Q].

    A box is dropped when an earlier, kept box of its class overlaps it with IoU > `iou_threshold`. Negative classes
    mark padding: never kept, never suppressing.
    """
    keep = classes >= 0
    for image in range(boxes.shape[0]):
        for i in range(boxes.shape[1]):
            if not keep[image, i]:
                continue
            later = slice(i + 1, None)
            overlaps = iou_one_to_many(boxes[image, i], boxes[image, later]) > np.float32(iou_threshold)
            keep[image, later] &= ~(overlaps & (classes[image, later] == classes[image, i]))
    return keep
