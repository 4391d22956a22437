"""Random objects and predictions for tests of the metrics: hits, near misses, doubles, wrong classes, ties, crowds."""

from __future__ import annotations

from typing import Any

import numpy as np

from regionrt.train.coco_metrics import Truth

SIZE = (120, 160)


def make_truths(rng: np.random.Generator, images: int, classes: int, ignored: float = 0.15) -> list[Truth]:
    """Up to five objects per image, classes 1…classes − 1 only: the last class has none."""
    truths = []
    for image in range(images):
        count = int(rng.integers(0, 6))
        corners = rng.uniform(0, 90, (count, 2))
        sides = rng.uniform(4, 60, (count, 2))
        boxes = np.concatenate([corners, corners + sides], axis=1).astype(np.float32)
        truths.append(
            Truth(
                image_id=f"image {image}",
                size=SIZE,
                boxes=boxes,
                labels=rng.integers(1, classes, count),
                ignore=rng.random(count) < ignored,
                areas=np.prod(sides, axis=1).astype(np.float32),
                masks=None,
            )
        )
    return truths


def make_predictions(
    rng: np.random.Generator, truths: list[Truth], classes: int, ties: bool, most: int = 3
) -> list[dict[str, Any]]:
    """ties: scores in steps of 0.1, so that many are equal, within an image and across."""
    predictions = []
    for truth in truths:
        for box, label in zip(truth.boxes.astype(float), truth.labels, strict=True):
            for _ in range(int(rng.integers(0, most + 1))):
                x1, y1, x2, y2 = box + rng.normal(0, 0.07, 4) * np.tile(box[2:] - box[:2], 2)
                score = rng.random()
                predictions.append(
                    {
                        "image_id": truth.image_id,
                        "category_id": int(label if rng.random() < 0.8 else rng.integers(1, classes + 1)),
                        "bbox": [x1, y1, max(x2 - x1, 1.0), max(y2 - y1, 1.0)],
                        "score": float(round(score, 1) if ties else score),
                    }
                )
    return predictions
