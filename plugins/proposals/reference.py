"""What RegionProposals computes (Ren et al., Faster R-CNN, arXiv:1506.01497, section 3; per level as in FPN)."""

from collections.abc import Sequence

import numpy as np

from .. import boxes as box_math
from ..nms.reference import nms


def proposals(
    objectness: Sequence[np.ndarray],
    deltas: Sequence[np.ndarray],
    anchors: Sequence[np.ndarray],
    image_sizes: np.ndarray,
    *,
    pre_nms: int,
    post_nms: int,
    iou_threshold: float,
    score_threshold: float = 0.0,
    min_size: float = 1e-3,
    box_weights: Sequence[float] = (1.0, 1.0, 1.0, 1.0),
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Per level `objectness` float32 [N, A] (logits), `deltas` [N, A, 4], `anchors` [A, 4]; `image_sizes` int32 [N, 2].

    Per image and level: the `pre_nms` best anchors, decoded, clipped, freed of boxes smaller than `min_size` px or
    below `score_threshold`, NMS; then the `post_nms` best of all levels. Returns rois float32 [N, P, 4], scores
    float32 [N, P] (sigmoid), counts int32 [N], with P = post_nms; rows from counts[n] on are 0.
    """
    images = len(image_sizes)
    rois = np.zeros((images, post_nms, 4), np.float32)
    scores = np.zeros((images, post_nms), np.float32)
    counts = np.zeros(images, np.int32)
    for n in range(images):
        kept_boxes, kept_scores = [], []
        for logits, delta, anchor in zip(objectness, deltas, anchors, strict=True):
            best = np.argsort(-logits[n], kind="stable")[:pre_nms]
            boxes = box_math.clip(box_math.decode(delta[n, best], anchor[best], box_weights), *image_sizes[n])
            score = (1 / (1 + box_math.exp(-logits[n, best]))).astype(np.float32)
            large = ((boxes[:, 2:] - boxes[:, :2]) >= np.float32(min_size)).all(1)
            classes = np.where(large & (score >= np.float32(score_threshold)), 0, -1).astype(np.int32)
            keep = nms(boxes[None], classes[None], iou_threshold=iou_threshold)[0]
            kept_boxes.append(boxes[keep])
            kept_scores.append(score[keep])
        boxes, score = np.concatenate(kept_boxes), np.concatenate(kept_scores)
        best = np.argsort(-score, kind="stable")[:post_nms]
        counts[n] = len(best)
        rois[n, : len(best)], scores[n, : len(best)] = boxes[best], score[best]
    return rois, scores, counts
