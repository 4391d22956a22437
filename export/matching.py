"""Two sets of boxes compared without regard to order: how many of one are found in the other."""

import numpy as np
from numpy.typing import NDArray


def iou_matrix(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float64]:
    """IoU of each box of `a` [M, 4] with each of `b` [K, 4] (xyxy) -> [M, K], in float64."""
    one, other = a.astype(np.float64)[:, None], b.astype(np.float64)[None]
    sides = np.clip(np.minimum(one[..., 2:], other[..., 2:]) - np.maximum(one[..., :2], other[..., :2]), 0, None)
    intersection = sides.prod(-1)
    union = (one[..., 2:] - one[..., :2]).prod(-1) + (other[..., 2:] - other[..., :2]).prod(-1) - intersection
    return np.divide(intersection, union, out=np.zeros_like(intersection), where=union > 0)


def match(
    boxes_a: np.ndarray, boxes_b: np.ndarray, allowed: np.ndarray, min_iou: float
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """One-to-one pairs (rows of a, rows of b) with IoU ≥ `min_iou` where `allowed` bool [M, K] permits.

    Greedy in the order of `a`, each with the partner of the highest IoU: exact where no two boxes of a set are that
    alike, which NMS sees to.
    """
    overlap = np.where(allowed, iou_matrix(boxes_a, boxes_b), -1.0)
    pairs = []
    for row in range(len(boxes_a)):
        column = int(overlap[row].argmax()) if overlap.shape[1] else 0
        if overlap.shape[1] and overlap[row, column] >= min_iou:
            pairs.append((row, column))
            overlap[:, column] = -1.0
    rows, columns = np.array(pairs, np.int64).reshape(-1, 2).T
    return rows, columns


def match_scored(
    a: tuple[np.ndarray, np.ndarray, np.ndarray],
    b: tuple[np.ndarray, np.ndarray, np.ndarray],
    *,
    min_iou: float,
    max_score_error: float,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pairs of the same box: label, score and IoU must agree. `a`, `b`: (boxes [·, 4], scores [·], labels [·])."""
    same = a[2][:, None] == b[2][None]
    near = np.abs(a[1][:, None].astype(np.float64) - b[1][None]) <= max_score_error
    return match(a[0], b[0], same & near, min_iou)
