"""Average precision as Pascal VOC defines it (VOC2007 and VOC2012 devkits: VOCevaldet.m, VOCap.m).

Per class, detections of all images by falling score: each goes to the object it overlaps most; with IoU ≥ 0.5 it is
true if that object is not taken yet, false if it is, and does not count if the object is `difficult`. Boxes are edges,
so plain IoU equals the devkit's with its + 1 (see data/voc.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .coco_metrics import Truth


def voc_class_ap(
    truths: Sequence[Truth], predictions: Sequence[dict[str, Any]], label: int, iou: float = 0.5
) -> tuple[float, float]:
    """(11-point AP of VOC2007, all-point AP of VOC2010 on) of one class; NaN for both without objects that count.

    predictions: COCO results whose `category_id` is the label.
    """
    image_of = {truth.image_id: index for index, truth in enumerate(truths)}
    boxes = [truth.boxes[truth.labels == label].astype(np.float64) for truth in truths]
    difficult = [truth.ignore[truth.labels == label] for truth in truths]
    objects = sum(int((~one).sum()) for one in difficult)
    if objects == 0:
        return float("nan"), float("nan")

    own = [prediction for prediction in predictions if prediction["category_id"] == label]
    # The devkit goes through images in their order; among equal scores that order stays.
    own.sort(key=lambda prediction: (-prediction["score"], image_of[prediction["image_id"]]))
    taken = [np.zeros(len(one), dtype=bool) for one in boxes]
    outcomes = []
    for prediction in own:
        image = image_of[prediction["image_id"]]
        x, y, width, height = prediction["bbox"]
        overlaps = iou_with(np.array([x, y, x + width, y + height]), boxes[image])
        best = int(overlaps.argmax()) if len(overlaps) else -1
        if best < 0 or overlaps[best] < iou:
            outcomes.append(False)
        elif not difficult[image][best]:
            outcomes.append(not taken[image][best])
            taken[image][best] = True
    true = np.cumsum(outcomes, dtype=np.float64)
    recall = true / objects
    precision = true / np.arange(1, len(outcomes) + 1)
    return eleven_point_ap(recall, precision), all_point_ap(recall, precision)


def iou_with(box: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """IoU of one box [4] with boxes [n, 4], xyxy px -> [n]."""
    overlap = np.minimum(box[2:], boxes[:, 2:]) - np.maximum(box[:2], boxes[:, :2])
    shared = np.prod(np.clip(overlap, 0, None), axis=1)
    area = np.prod(box[2:] - box[:2])
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    return shared / (area + areas - shared)


def eleven_point_ap(recall: np.ndarray, precision: np.ndarray) -> float:
    """Mean over recall levels 0, 0.1, …, 1 of the best precision at that recall or a higher one."""
    levels = [level / 10 for level in range(11)]
    return float(np.mean([precision[recall >= level].max(initial=0) for level in levels]))


def all_point_ap(recall: np.ndarray, precision: np.ndarray) -> float:
    """Area under the curve of the best precision at each recall or a higher one."""
    best = np.maximum.accumulate(precision[::-1])[::-1]
    return float(np.sum(np.diff(recall, prepend=0) * best))
