"""Final detections from box-head outputs (RegionDetections: plugins/detections)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from . import arrays, library
from . import boxes as box_math
from .calls import run


class DetectionArrays(NamedTuple):
    """D rows for each image; those from the count on hold zero boxes, score −1, label −1, RoI −1."""

    num_detections: np.ndarray
    """int32 [N]."""
    boxes: np.ndarray
    """float32 [N, D, 4], xyxy in pixels of the canvas, best first."""
    scores: np.ndarray
    """float32 [N, D], probabilities."""
    labels: np.ndarray
    """int32 [N, D], 1…K."""
    roi_index: np.ndarray
    """int32 [N, D]: which of the image's RoIs it came from."""
    overflow: np.ndarray
    """int32 [N]: candidates above the threshold that the cap dropped."""


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
    out: DetectionArrays | None = None,
    threads: int | None = None,
) -> DetectionArrays:
    """Detections of Fast R-CNN (Girshick, arXiv:1504.08083, section 2.3).

    Per image: softmax; the `candidates` (RoI, class) pairs of the highest probability, of them those above
    `score_threshold`, decoded, clipped, freed of boxes smaller than `min_size` px, greedy NMS per class, the
    D = `max_detections` best. Ties by index.

    Args:
        class_logits: [N, P, K+1], column 0 the background; box_deltas: [N, P, 4(K+1)] or, `class_agnostic`, [N, P, 4];
            both float32, or both bf16.
        rois: float32 [N, P, 4], xyxy in pixels of the canvas; counts: int32 [N], how many of them are real.
        image_sizes: int32 [N, 2], height and width of each image on the canvas.
        out: arrays to write to, whatever they hold.
        threads: for RoIs and images; None: one per usable core. The result does not depend on it.

    Raises:
        ValueError: another type or shape, or an option out of its range.
    """
    logit_type = arrays.kind_of("class_logits", class_logits)
    class_logits = arrays.checked("class_logits", class_logits, None, (None, None, None))
    images, rows, columns = class_logits.shape
    if columns < 2:
        raise ValueError(f"class_logits: expected the background and at least one class, got {columns} columns")
    shape = (images, rows, 4 if class_agnostic else 4 * columns)
    box_deltas = arrays.checked("box_deltas", box_deltas, class_logits.dtype, shape)
    rois = arrays.checked("rois", rois, np.float32, (images, rows, 4))
    counts = arrays.counts_in_range(counts, images, rows)
    image_sizes = arrays.checked("image_sizes", image_sizes, np.int32, (images, 2))
    most = box_math.whole("max_detections", max_detections, 1)
    cap = box_math.whole("candidates", candidates, 1)
    options = {
        "score_threshold": box_math.fraction("score_threshold", score_threshold),
        "iou_threshold": box_math.fraction("iou_threshold", iou_threshold),
        "min_size": float(min_size),
        "box_weights": box_math.four("box_weights", box_weights),
    }
    shapes = ((images,), (images, most, 4), (images, most), (images, most), (images, most), (images,))
    types = (np.int32, np.float32, np.float32, np.int32, np.int32, np.int32)
    found = arrays.outputs(DetectionArrays, out, shapes, types)
    threads = arrays.thread_count(threads)
    native = library.handle()
    if native is None:
        _in_numpy(class_logits, box_deltas, rois, counts, image_sizes, cap, class_agnostic, options, found)
        return found
    run(
        native,
        "detections",
        class_logits=class_logits.ctypes.data,
        box_deltas=box_deltas.ctypes.data,
        rois=rois.ctypes.data,
        counts=counts.ctypes.data,
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
    class_logits: np.ndarray,
    box_deltas: np.ndarray,
    rois: np.ndarray,
    counts: np.ndarray,
    image_sizes: np.ndarray,
    cap: int,
    class_agnostic: bool,
    options: dict,
    found: DetectionArrays,
) -> None:
    rows, classes = class_logits.shape[1], class_logits.shape[2] - 1
    for values, padding in zip(found, (0, 0, -1, -1, -1, 0), strict=True):
        values[:] = padding
    for image, real in enumerate(counts):
        probabilities = box_math.softmax(arrays.widened(class_logits[image, :real]))[:, 1:].ravel()
        above = np.flatnonzero(probabilities > np.float32(options["score_threshold"]))
        best = above[np.argsort(-probabilities[above], kind="stable")][:cap]
        found.overflow[image] = len(above) - len(best)
        roi, label = best // classes, (best % classes + 1).astype(np.int32)
        deltas = box_deltas[image].reshape(rows, -1, 4)[roi, 0 if class_agnostic else label]
        boxes = box_math.decode(arrays.widened(deltas), rois[image, roi], options["box_weights"])
        boxes = box_math.clip(boxes, image_sizes[image])
        large = np.flatnonzero(box_math.large_enough(boxes, options["min_size"]))
        most = found.scores.shape[1]
        kept = large[box_math.greedy(boxes[large], label[large], options["iou_threshold"], most)]
        number = found.num_detections[image] = len(kept)
        found.boxes[image, :number], found.scores[image, :number] = boxes[kept], probabilities[best[kept]]
        found.labels[image, :number], found.roi_index[image, :number] = label[kept], roi[kept]
