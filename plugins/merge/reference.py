"""What RegionMerge computes: a sliding-window detector's boxes, merged greedily (OverFeat, arXiv:1312.6229, 4.3)."""

from typing import NamedTuple

import numpy as np

from .. import boxes as box_math


class MergedArrays(NamedTuple):
    """Fixed-size outputs: rows beyond num_detections hold zero boxes, score −1, label −1."""

    num_detections: np.ndarray  # int32 [N]
    boxes: np.ndarray  # float32 [N, D, 4], canvas px
    scores: np.ndarray  # float32 [N, D]
    labels: np.ndarray  # int32 [N, D], 1..K
    overflow: np.ndarray  # int32 [N]: (window, class) pairs above the threshold that the cap dropped


def merge(
    class_logits: np.ndarray,
    box_edges: np.ndarray,
    windows: np.ndarray,
    image_sizes: np.ndarray,
    *,
    window_threshold: float,
    merge_threshold: float,
    score_threshold: float,
    max_detections: int,
    candidates: int,
    min_size: float = 1e-2,
    class_agnostic: bool = False,
) -> MergedArrays:
    """Detections from `class_logits` float32 [N, Q, K+1] (0 is background) of Q `windows` float32 [Q, 4] (canvas px).

    box_edges: float32 [N, Q, 4K] or, class-agnostic, [N, Q, 4]: left, top, right and bottom edge, as parts of the
    window's sides from its left upper corner. image_sizes: int32 [N, 2], height and width of the canvas's valid part.
    Per image, of the windows `in_image`: the `candidates` (window, class) pairs with the highest probability, of them
    those above `window_threshold`; their boxes, clipped, freed of those smaller than `min_size` px. Then, class by
    class, the two boxes with the lowest `match_scores` become one, until that is above `merge_threshold`: the mean of
    both, each weighing what confidence it has, which is the sum of its windows' probabilities. A sum S is the score S /
    (1 + S); the `max_detections` best above `score_threshold` remain.
    """
    images, most, columns = class_logits.shape
    classes = columns - 1
    out = MergedArrays(
        np.zeros(images, np.int32),
        np.zeros((images, max_detections, 4), np.float32),
        np.full((images, max_detections), -1, np.float32),
        np.full((images, max_detections), -1, np.int32),
        np.zeros(images, np.int32),
    )
    for n in range(images):
        exponent = box_math.exp(class_logits[n] - class_logits[n].max(1, keepdims=True))
        softmax = (exponent / exponent.sum(1, keepdims=True)).astype(np.float32)
        counted = in_image(windows, *image_sizes[n])
        probabilities = np.where(counted[:, None], softmax[:, 1:], np.float32(0)).reshape(-1)  # 0 is above no threshold
        best = np.argsort(-probabilities, kind="stable")[: min(candidates, most * classes)]
        above = probabilities > np.float32(window_threshold)
        best = best[above[best]]
        out.overflow[n] = above.sum() - len(best)
        window, label = best // classes, best % classes + 1
        edges = box_edges[n].reshape(most, -1, 4)[window, 0 if class_agnostic else label - 1]
        boxes = box_math.clip(boxes_of(edges, windows[window]), *image_sizes[n])
        large = ((boxes[:, 2:] - boxes[:, :2]) >= np.float32(min_size)).all(1)
        boxes, label = boxes[large], label[large]
        confidences = probabilities[best[large]]
        alive = greedy_merge(boxes, label, confidences, merge_threshold)
        scores = confidences / (np.float32(1) + confidences)
        alive = alive[scores[alive] > np.float32(score_threshold)]
        alive = alive[np.argsort(-confidences[alive], kind="stable")][:max_detections]
        out.num_detections[n] = len(alive)
        rows = slice(0, len(alive))
        out.boxes[n, rows], out.scores[n, rows], out.labels[n, rows] = boxes[alive], scores[alive], label[alive]
    return out


def in_image(windows: np.ndarray, height: int, width: int) -> np.ndarray:
    """bool [Q]: `windows` [Q, 4] with their centre left of `width` and above `height`, or beginning at that edge.

    The others show mostly padding, which is not learnt as background. Those that begin at the edge are the first column
    or row: of a photo narrower than half a window they are all there is.
    """
    corner = windows[:, :2]
    center = (corner + windows[:, 2:]) * np.float32(0.5)
    return ((corner <= 0) | (center < np.array([width, height], np.float32))).all(1)


def boxes_of(edges: np.ndarray, windows: np.ndarray) -> np.ndarray:
    """xyxy boxes float32 [Q, 4] of `edges` [Q, 4], which are parts of the sides of `windows` [Q, 4]."""
    corner, side = windows[:, [0, 1, 0, 1]], (windows[:, 2:] - windows[:, :2])[:, [0, 1, 0, 1]]
    return corner + edges * side


def greedy_merge(boxes: np.ndarray, labels: np.ndarray, confidences: np.ndarray, threshold: float) -> np.ndarray:
    """Merges `boxes` [Q, 4] in place, and adds up their `confidences` [Q]; returns the indices of those that are left.

    A merged box takes the place of the first of the two. Of equal scores the pair that stands first is merged.
    """
    alive = list(range(len(boxes)))
    while True:
        least, pair = np.float32(threshold), None
        for at, i in enumerate(alive):
            others = [j for j in alive[at + 1 :] if labels[j] == labels[i]]
            if not others:
                continue
            scores = match_scores(boxes[i], boxes[others])
            j = int(scores.argmin())
            if scores[j] < least or (pair is None and scores[j] <= least):
                least, pair = scores[j], (i, others[j])
        if pair is None:
            return np.array(alive, np.int64)
        i, j = pair
        total = confidences[i] + confidences[j]
        boxes[i] = (boxes[i] * confidences[i] + boxes[j] * confidences[j]) / total
        confidences[i] = total
        alive.remove(j)


def match_scores(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """How unlike one box [4] is to `others` [M, 4]: float32 [M], 0 (the same) to 2 (far apart).

    The distance of the centres plus what the intersection lacks; for the paper's sum to have no unit, the one is a
    part of the diagonal of the box around both, the other a part of the union.
    """
    low, high = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])
    sides = np.maximum(high - low, np.float32(0))
    shared = sides[:, 0] * sides[:, 1]
    area = (box[2] - box[0]) * (box[3] - box[1])
    areas = (others[:, 2] - others[:, 0]) * (others[:, 3] - others[:, 1])
    joined = area + areas - shared
    around = np.maximum(box[2:], others[:, 2:]) - np.minimum(box[:2], others[:, :2])
    apart = (box[:2] + box[2:]) - (others[:, :2] + others[:, 2:])  # twice the distance
    distance = apart[:, 0] * apart[:, 0] + apart[:, 1] * apart[:, 1]
    diagonal = around[:, 0] * around[:, 0] + around[:, 1] * around[:, 1]
    half = np.float32(0.5)
    return half * np.sqrt(distance / diagonal) + (np.float32(1) - shared / joined)
