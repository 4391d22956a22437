"""What RegionDetections computes: the final boxes of a two-stage detector (Girshick, Fast R-CNN, arXiv:1504.08083,
section 2.3: softmax, per-class box regression, per-class NMS)."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from .. import boxes as box_math
from ..nms.reference import nms


class DetectionArrays(NamedTuple):
    """Fixed-size outputs: rows beyond num_detections hold zero boxes, score −1, label −1, roi −1."""

    num_detections: np.ndarray  # int32 [N]
    boxes: np.ndarray  # float32 [N, D, 4], canvas px
    scores: np.ndarray  # float32 [N, D]
    labels: np.ndarray  # int32 [N, D], 1..K
    roi_index: np.ndarray  # int32 [N, D]
    overflow: np.ndarray  # int32 [N]: candidates above the threshold that the cap dropped


def detections(
    class_logits: np.ndarray,
    box_deltas: np.ndarray,
    rois: np.ndarray,
    counts: np.ndarray,
    image_sizes: np.ndarray,
    *,
    score_threshold: float,
    iou_threshold: float,
    max_detections: int,
    candidates: int,
    min_size: float = 1e-2,
    box_weights: Sequence[float] = (10.0, 10.0, 5.0, 5.0),
    class_agnostic: bool = False,
) -> DetectionArrays:
    """`class_logits` float32 [N, P, K+1] (0 is background), `box_deltas` [N, P, 4(K+1)] or, class-agnostic, [N, P, 4].

    Per image: the `candidates` (RoI, class) pairs with the highest probability, of them those above `score_threshold`,
    decoded, clipped, freed of boxes smaller than `min_size` px, exact NMS per class, the `max_detections` best.
    """
    images, most, columns = class_logits.shape
    classes = columns - 1
    out = DetectionArrays(
        np.zeros(images, np.int32),
        np.zeros((images, max_detections, 4), np.float32),
        np.full((images, max_detections), -1, np.float32),
        np.full((images, max_detections), -1, np.int32),
        np.full((images, max_detections), -1, np.int32),
        np.zeros(images, np.int32),
    )
    for n in range(images):
        real = int(counts[n])
        exponent = box_math.exp(class_logits[n, :real] - class_logits[n, :real].max(1, keepdims=True))
        softmax = (exponent / exponent.sum(1, keepdims=True)).astype(np.float32)
        probabilities = softmax[:, 1:].reshape(-1)
        best = np.argsort(-probabilities, kind="stable")[: min(candidates, most * classes)]
        out.overflow[n] = (probabilities > np.float32(score_threshold)).sum() - (
            probabilities[best] > np.float32(score_threshold)
        ).sum()
        best = best[probabilities[best] > np.float32(score_threshold)]
        roi, label = best // classes, best % classes + 1
        deltas = box_deltas[n].reshape(most, -1, 4)[roi, 0 if class_agnostic else label]
        boxes = box_math.clip(box_math.decode(deltas, rois[n, roi], box_weights), *image_sizes[n])
        large = ((boxes[:, 2:] - boxes[:, :2]) >= np.float32(min_size)).all(1)
        keep = nms(boxes[None], np.where(large, label, -1)[None], iou_threshold=iou_threshold)[0]
        kept = np.flatnonzero(keep)[:max_detections]
        out.num_detections[n] = len(kept)
        rows = slice(0, len(kept))
        out.boxes[n, rows], out.scores[n, rows] = boxes[kept], probabilities[best[kept]]
        out.labels[n, rows], out.roi_index[n, rows] = label[kept], roi[kept]
    return out
