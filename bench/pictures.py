"""Sample photos with each candidate's detections drawn on them, as small JPEGs that go into the report."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from regionrt.runtime.predictor import Predictor
from regionrt.runtime.results import Detections
from regionrt.runtime.semantic import SemanticMap
from regionrt.train.data.proposals import kept_for

from .schema import Panel, Picture

SIDE_PX = 640
QUALITY = 82
SAME_IOU = 0.5


def pictures(
    predictors: Mapping[str, Predictor],
    photos: Sequence[np.ndarray],
    names: Sequence[str],
    *,
    count: int,
    score: float = 0.5,
) -> tuple[Picture, ...]:
    """`count` of the photos with the detections above `score` of every predictor (the first is the reference).

    Chosen are the photo on which the first and the last predictor disagree most (if they do), then those with most
    detections. Without a predictor (nothing ran here) there are none.
    """
    if not predictors:
        return ()
    found = {
        name: [one.above(score) for one in predict.batch(photos, *kept_for(predict, photos))]
        for name, predict in predictors.items()
    }
    (first, *_), last = found.values(), list(found.values())[-1]
    apart = [disagreement(a, b) for a, b in zip(first, last, strict=True)]
    order = sorted(range(len(photos)), key=lambda i: -len(first[i]))
    worst = max(range(len(photos)), key=lambda i: apart[i], default=None)
    chosen: list[tuple[int, str]] = []
    if worst is not None and apart[worst]:
        chosen.append((worst, f"where the two differ most: {_difference(first[worst], last[worst], apart[worst])}"))
    for index in order:
        if len(chosen) < count and index not in [i for i, _ in chosen]:
            chosen.append((index, _agreement(first[index], apart[index], len(predictors) > 1)))
    return tuple(
        Picture(
            names[index],
            why,
            tuple(_panel(candidate, photos[index], results[index]) for candidate, results in found.items()),
        )
        for index, why in chosen[:count]
    )


def disagreement(one: Detections | SemanticMap, other: Detections | SemanticMap) -> int:
    """Detections without a partner on the other side: same label, IoU ≥ 0.5, each used once, best scores first.

    Of label maps: pixels that differ.
    """
    if isinstance(one, SemanticMap) or isinstance(other, SemanticMap):
        return int(np.count_nonzero(one.labels != other.labels))
    free = list(range(len(other)))
    matched = 0
    for box, label in zip(one.boxes_xyxy, one.labels, strict=True):
        overlaps = [(iou(box, other.boxes_xyxy[j]), j) for j in free if other.labels[j] == label]
        best = max(overlaps, default=(0.0, -1))
        if best[0] >= SAME_IOU:
            matched += 1
            free.remove(best[1])
    return len(one) + len(other) - 2 * matched


def iou(one: np.ndarray, other: np.ndarray) -> float:
    """Intersection over union of two xyxy boxes; 0 for boxes without area."""
    width, height = np.minimum(one[2:], other[2:]) - np.maximum(one[:2], other[:2])
    inside = max(float(width), 0.0) * max(float(height), 0.0)
    areas = float(np.prod(one[2:] - one[:2])) + float(np.prod(other[2:] - other[:2]))
    return inside / (areas - inside) if areas > inside else 0.0


def _difference(one: Detections | SemanticMap, other: Detections | SemanticMap, apart: int) -> str:
    if isinstance(one, SemanticMap):
        return f"{apart:,} of {one.labels.size:,} pixels ({apart / one.labels.size:.2%})"
    partner = f"partner (same class, IoU ≥ {SAME_IOU:g})"
    return f"{apart} of both sides' {len(one) + len(other)} detections have no {partner}"


def _agreement(found: Detections | SemanticMap, apart: int, several: bool) -> str:
    if not several:
        return ""
    if isinstance(found, SemanticMap):
        return f"{apart:,} of {found.labels.size:,} pixels differ" if apart else "every pixel has the same class"
    if apart:
        return f"{apart} detection{'s' if apart > 1 else ''} without a partner"
    return "every detection has its partner" if len(found) else "nothing found by either"


def _panel(candidate: str, photo: np.ndarray, found: Detections | SemanticMap) -> Panel:
    picture = Image.fromarray(found.draw(photo, score=0.0))
    picture.thumbnail((SIDE_PX, SIDE_PX), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=QUALITY, optimize=True)
    return Panel(
        candidate, len(found), picture.width, picture.height, base64.b64encode(stream.getvalue()).decode("ascii")
    )
