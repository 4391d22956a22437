"""Detections of a sliding-window net: boxes of windows, merged greedily (RegionMerge: plugins/merge)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from . import arrays, library
from . import boxes as box_math
from .calls import run


class MergedArrays(NamedTuple):
    """D rows for each image; those from the count on hold zero boxes, score −1, label −1."""

    num_detections: np.ndarray
    """int32 [N]."""
    boxes: np.ndarray
    """float32 [N, D, 4], xyxy in pixels of the canvas, best first."""
    scores: np.ndarray
    """float32 [N, D], S / (1 + S) of the sum S of the probabilities of the windows that a box was merged from."""
    labels: np.ndarray
    """int32 [N, D], 1…K."""
    overflow: np.ndarray
    """int32 [N]: (window, class) pairs above the threshold that the cap dropped."""


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
    out: MergedArrays | None = None,
    threads: int | None = None,
) -> MergedArrays:
    """Greedy merging of what windows predict (OverFeat, Sermanet et al., arXiv:1312.6229, section 4.3).

    Per image: softmax; of the windows whose centre is in the image (or that begin at the canvas's edge) the
    `candidates` (window, class) pairs of the highest probability, of them those above `window_threshold`; their boxes,
    clipped, freed of those smaller than `min_size` px. Class by class the nearest two become one, as long as their
    score (distance of the centres by the diagonal around both, plus 1 − IoU) is at most `merge_threshold`; the
    `max_detections` best above `score_threshold`. Ties by index.

    Args:
        class_logits: [N, Q, K+1], column 0 the background; box_edges: [N, Q, 4K] or, `class_agnostic`, [N, Q, 4], parts
            of the window's sides from its left upper corner; both float32, or both bf16.
        windows: float32 [Q, 4], xyxy in pixels of the canvas.
        image_sizes: int32 [N, 2], height and width of each image on the canvas.
        out: arrays to write to, whatever they hold.
        threads: for windows and images; None: one per usable core. The result does not depend on it.

    Raises:
        ValueError: another type or shape, or an option out of its range.
    """
    logit_type = arrays.kind_of("class_logits", class_logits)
    class_logits = arrays.checked("class_logits", class_logits, None, (None, None, None))
    images, rows, columns = class_logits.shape
    if columns < 2:
        raise ValueError(f"class_logits: expected the background and at least one class, got {columns} columns")
    shape = (images, rows, 4 if class_agnostic else 4 * (columns - 1))
    box_edges = arrays.checked("box_edges", box_edges, class_logits.dtype, shape)
    windows = arrays.checked("windows", windows, np.float32, (rows, 4))
    image_sizes = arrays.checked("image_sizes", image_sizes, np.int32, (images, 2))
    most = box_math.whole("max_detections", max_detections, 1)
    cap = box_math.whole("candidates", candidates, 1)
    if not 0 <= merge_threshold <= 2:
        raise ValueError(f"merge_threshold: expected 0 to 2, got {merge_threshold!r}")
    options = {
        "window_threshold": box_math.fraction("window_threshold", window_threshold),
        "merge_threshold": float(merge_threshold),
        "score_threshold": box_math.fraction("score_threshold", score_threshold),
        "min_size": float(min_size),
    }
    shapes = ((images,), (images, most, 4), (images, most), (images, most), (images,))
    types = (np.int32, np.float32, np.float32, np.int32, np.int32)
    found = arrays.outputs(MergedArrays, out, shapes, types)
    threads = arrays.thread_count(threads)
    native = library.handle()
    if native is None:
        for image in range(images):
            _in_numpy(image, class_logits, box_edges, windows, image_sizes[image], cap, class_agnostic, options, found)
        return found
    run(
        native,
        "merge",
        class_logits=class_logits.ctypes.data,
        box_edges=box_edges.ctypes.data,
        windows=windows.ctypes.data,
        image_sizes=image_sizes.ctypes.data,
        **{name: array.ctypes.data for name, array in found._asdict().items()},
        images=images,
        rows=rows,
        classes=columns - 1,
        candidates=cap,
        most=most,
        class_agnostic=class_agnostic,
        logit_type=logit_type,
        threads=threads,
        **options,
    )
    return found


def _in_numpy(
    image: int,
    class_logits: np.ndarray,
    box_edges: np.ndarray,
    windows: np.ndarray,
    size: np.ndarray,
    cap: int,
    class_agnostic: bool,
    options: dict[str, float],
    found: MergedArrays,
) -> None:
    rows, classes = class_logits.shape[1], class_logits.shape[2] - 1
    probabilities = box_math.softmax(arrays.widened(class_logits[image]))[:, 1:]
    probabilities = np.where(_in_image(windows, size)[:, None], probabilities, np.float32(0)).ravel()
    above = np.flatnonzero(probabilities > np.float32(options["window_threshold"]))
    best = above[np.argsort(-probabilities[above], kind="stable")][:cap]
    window, label = best // classes, (best % classes + 1).astype(np.int32)
    edges = arrays.widened(box_edges[image].reshape(rows, -1, 4)[window, 0 if class_agnostic else label - 1])
    corner, far = windows[window, :2], windows[window, 2:]
    boxes = np.concatenate([corner, corner], 1) + edges * np.concatenate([far - corner] * 2, 1)
    boxes = box_math.clip(boxes, (int(size[0]), int(size[1])))
    large = box_math.large_enough(boxes, options["min_size"])
    boxes, sums, label = boxes[large], probabilities[best[large]], label[large]
    alive = np.ones(len(boxes), bool)
    for one in np.unique(label):
        of_class = np.flatnonzero(label == one)
        boxes[of_class], sums[of_class], alive[of_class] = _merged(
            boxes[of_class], sums[of_class], options["merge_threshold"]
        )
    scores = sums / (np.float32(1) + sums)
    left = np.flatnonzero(alive & (scores > np.float32(options["score_threshold"])))
    left = left[np.argsort(-sums[left], kind="stable")][: found.scores.shape[1]]
    for values, padding in zip(found, (0, 0, -1, -1, 0), strict=True):
        values[image] = padding
    number = found.num_detections[image] = len(left)
    found.boxes[image, :number], found.scores[image, :number] = boxes[left], scores[left]
    found.labels[image, :number] = label[left]
    found.overflow[image] = len(above) - len(best)


def _in_image(windows: np.ndarray, size: np.ndarray) -> np.ndarray:
    """bool [Q], step by step as in plugins/merge/core.h."""
    center = np.float32(0.5) * (windows[:, :2] + windows[:, 2:])
    return ((windows[:, :2] <= 0) | (center < size[::-1].astype(np.float32))).all(1)


def _merged(boxes: np.ndarray, sums: np.ndarray, threshold: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes [M, 4] and sums [M] of one class after the merges, and which are left. All pairs' scores are kept."""
    alive = np.ones(len(boxes), bool)
    scores = np.stack([_match_scores(box, boxes) for box in boxes])
    np.fill_diagonal(scores, np.inf)
    while True:
        i, j = np.unravel_index(int(scores.argmin()), scores.shape)  # of equal ones the first: i < j
        if not scores[i, j] <= np.float32(threshold):
            return boxes, sums, alive
        total = sums[i] + sums[j]
        boxes[i] = (boxes[i] * sums[i] + boxes[j] * sums[j]) / total
        sums[i], alive[j] = total, False
        row = np.where(alive, _match_scores(boxes[i], boxes), np.float32(np.inf))
        row[i] = np.inf
        scores[i] = scores[:, i] = row
        scores[j] = scores[:, j] = np.inf


def _match_scores(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """float32 [M], step by step as in plugins/merge/core.h."""
    sides = np.maximum(np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2]), np.float32(0))
    shared = sides[:, 0] * sides[:, 1]
    areas = (others[:, 2] - others[:, 0]) * (others[:, 3] - others[:, 1])
    joined = (box[2] - box[0]) * (box[3] - box[1]) + areas - shared
    around = np.maximum(box[2:], others[:, 2:]) - np.minimum(box[:2], others[:, :2])
    apart = (box[:2] + box[2:]) - (others[:, :2] + others[:, 2:])
    distance = apart[:, 0] * apart[:, 0] + apart[:, 1] * apart[:, 1]
    diagonal = around[:, 0] * around[:, 0] + around[:, 1] * around[:, 1]
    return np.float32(0.5) * np.sqrt(distance / diagonal) + (np.float32(1) - shared / joined)
