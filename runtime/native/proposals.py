"""Region proposals from RPN outputs (RegionProposals: plugins/proposals)."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from . import arrays, library
from . import boxes as box_math
from .calls import run


class Proposals(NamedTuple):
    """P rows for each image; those from the count on are zero."""

    rois: np.ndarray
    """float32 [N, P, 4], xyxy in pixels of the canvas, best first."""
    scores: np.ndarray
    """float32 [N, P], probabilities."""
    counts: np.ndarray
    """int32 [N]."""


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
    out: Proposals | None = None,
    threads: int | None = None,
) -> Proposals:
    """Proposals of Faster R-CNN (Ren et al., arXiv:1506.01497, section 3; per level as in FPN, arXiv:1612.03144).

    Per image and level: the `pre_nms` anchors of the highest logits (ties by index), decoded, clipped, freed of boxes
    smaller than `min_size` px or below `score_threshold`, greedy NMS; then the P = `post_nms` best of all levels.

    Args:
        objectness: per level logits [N, A]; deltas: per level [N, A, 4]; all float32, or all bf16.
        anchors: per level float32 [A, 4], xyxy in pixels of the canvas.
        image_sizes: int32 [N, 2], height and width of each image on the canvas.
        out: arrays to write to, whatever they hold.
        threads: for images and levels; None: one per usable core. The result does not depend on it.

    Raises:
        ValueError: another type or shape, or an option out of its range.
    """
    if not len(objectness) == len(deltas) == len(anchors) > 0:
        levels = f"{len(objectness)}, {len(deltas)} and {len(anchors)}"
        raise ValueError(f"proposals: expected as many levels of objectness, deltas and anchors, ≥ 1, got {levels}")
    images, dtype = len(objectness[0]), objectness[0].dtype
    logit_type = arrays.kind_of("objectness", objectness[0])
    anchors = [arrays.checked(f"anchors[{i}]", level, np.float32, (None, 4)) for i, level in enumerate(anchors)]
    counts = [len(level) for level in anchors]
    objectness = [
        arrays.checked(f"objectness[{i}]", level, dtype, (images, count))
        for i, (level, count) in enumerate(zip(objectness, counts, strict=True))
    ]
    deltas = [
        arrays.checked(f"deltas[{i}]", level, dtype, (images, count, 4))
        for i, (level, count) in enumerate(zip(deltas, counts, strict=True))
    ]
    image_sizes = arrays.checked("image_sizes", image_sizes, np.int32, (images, 2))
    options = {
        "pre_nms": box_math.whole("pre_nms", pre_nms, 1),
        "post_nms": box_math.whole("post_nms", post_nms, 1),
        "iou_threshold": box_math.fraction("iou_threshold", iou_threshold),
        "score_threshold": box_math.fraction("score_threshold", score_threshold),
        "min_size": float(min_size),
    }
    weights = box_math.four("box_weights", box_weights)
    rois, scores, number = out or (None, None, None)
    found = Proposals(
        arrays.output("out.rois", rois, np.float32, (images, post_nms, 4)),
        arrays.output("out.scores", scores, np.float32, (images, post_nms)),
        arrays.output("out.counts", number, np.int32, (images,)),
    )
    threads = arrays.thread_count(threads)
    native = library.handle()
    if native is None:
        _in_numpy(objectness, deltas, anchors, image_sizes, options, weights, found)
        return found
    run(
        native,
        "proposals",
        objectness=ctypes.addressof(objectness_at := arrays.pointers(objectness)),
        deltas=ctypes.addressof(deltas_at := arrays.pointers(deltas)),
        anchors=ctypes.addressof(anchors_at := arrays.pointers(anchors)),
        anchor_counts=ctypes.addressof(counts_at := (ctypes.c_int32 * len(counts))(*counts)),
        image_sizes=image_sizes.ctypes.data,
        rois=found.rois.ctypes.data,
        scores=found.scores.ctypes.data,
        counts=found.counts.ctypes.data,
        box_weights=weights,
        levels=len(anchors),
        images=images,
        logit_type=logit_type,
        threads=threads,
        **options,
    )
    del objectness_at, deltas_at, anchors_at, counts_at  # alive until here
    return found


def _in_numpy(
    objectness: Sequence[np.ndarray],
    deltas: Sequence[np.ndarray],
    anchors: Sequence[np.ndarray],
    image_sizes: np.ndarray,
    options: dict[str, float],
    weights: Sequence[float],
    found: Proposals,
) -> None:
    most = int(options["post_nms"])
    for values in found:
        values[:] = 0
    for image, size in enumerate(image_sizes):
        kept_boxes, kept_scores = [], []
        for logits, delta, anchor in zip(objectness, deltas, anchors, strict=True):
            level_logits = arrays.widened(logits[image])
            best = np.argsort(-level_logits, kind="stable")[: int(options["pre_nms"])]
            boxes = box_math.clip(box_math.decode(arrays.widened(delta[image, best]), anchor[best], weights), size)
            scores = box_math.sigmoid(level_logits[best])
            enough = box_math.large_enough(boxes, options["min_size"]) & (
                scores >= np.float32(options["score_threshold"])
            )
            boxes, scores = boxes[enough], scores[enough]
            kept = box_math.greedy(boxes, np.zeros(len(boxes), np.int32), options["iou_threshold"], most)
            kept_boxes.append(boxes[kept])
            kept_scores.append(scores[kept])
        boxes, scores = np.concatenate(kept_boxes), np.concatenate(kept_scores)
        best = np.argsort(-scores, kind="stable")[:most]
        found.counts[image] = len(best)
        found.rois[image, : len(best)], found.scores[image, : len(best)] = boxes[best], scores[best]
