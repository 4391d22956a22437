"""How accurate a localiser is: right class, and IoU of the box with the image's main object of at least 0.5."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torchvision.ops import box_iou

from .answers import answers, figures_json
from .data.sample import DetectionData, Sample
from .evaluate import Detector

LEAST_IOU = 0.5
_COLUMNS = ("localisation", "class_accuracy", "box_IoU50", "IoU")


@dataclass(frozen=True, eq=False)
class LocalisationEvaluation:
    """Figures from 0 to 1; NaN where no image has an object.

    metrics: localisation (right class and IoU ≥ 0.5), class_accuracy, box_IoU50 (the box alone), IoU (its mean).
    per_class: the same, by the class of the main object, and `objects`: how many images have it. images: float64
    [I, 4], the same of each image; NaN for images without an object, which are not judged.
    """

    metrics: dict[str, float]
    per_class: dict[str, dict[str, float]]
    images: np.ndarray
    image_ids: list[int | str]
    labels: tuple[str, ...]
    split: str

    @property
    def by_image(self) -> np.ndarray:
        """What was found, image by image."""
        return self.images

    def resampled(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """The metrics on resamples: weights int [R, I], how often each image is drawn -> float64 [R] each."""
        known = ~np.isnan(self.images[:, 0])
        counts = weights[:, known].sum(1)
        sums = weights[:, known] @ self.images[known]
        means = np.divide(sums, counts[:, None], out=np.full(sums.shape, np.nan), where=counts[:, None] > 0)
        return dict(zip(_COLUMNS, means.T, strict=True))

    def to_json(self) -> dict[str, Any]:
        """For json.dump: NaN becomes None."""
        return figures_json(self)


def main_object(sample: Sample) -> int | None:
    """Which object is to be found: the largest box of those that count, the first of equals; None: there is none."""
    sizes = sample.boxes[:, 2:] - sample.boxes[:, :2]
    areas = np.where(sample.ignore, -1, sizes.prod(1))
    return int(areas.argmax()) if len(areas) and areas.max() > 0 else None


def evaluate_localiser(
    predict: Detector,
    data: DetectionData,
    *,
    max_images: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> LocalisationEvaluation:
    """Run a localiser over a split; arguments and errors as of `evaluate`."""
    rows, truths, image_ids = [], [], []
    for sample, found in answers(predict, data, max_images=max_images, progress=progress):
        wanted = main_object(sample)
        truths.append(0 if wanted is None else int(sample.labels[wanted]))
        image_ids.append(sample.image_id)
        if wanted is None or not len(found):
            rows.append([np.nan if wanted is None else 0.0] * 4)
            continue
        pair = (torch.from_numpy(boxes.astype(np.float64)) for boxes in (sample.boxes[[wanted]], found.boxes_xyxy[:1]))
        iou = float(box_iou(*pair))
        right, near = int(found.labels[0]) == truths[-1], iou >= LEAST_IOU
        rows.append([float(right and near), float(right), float(near), iou])
    images, classes = np.array(rows, np.float64).reshape(-1, 4), np.array(truths)
    per_class = {
        name: {**_means(images[classes == label]), "objects": int((classes == label).sum())}
        for label, name in enumerate(data.labels)
        if label
    }
    return LocalisationEvaluation(_means(images[classes > 0]), per_class, images, image_ids, data.labels, data.split)


def _means(images: np.ndarray) -> dict[str, float]:
    if not len(images):
        return dict.fromkeys(_COLUMNS, float("nan"))
    return {name: float(value) for name, value in zip(_COLUMNS, images.mean(0), strict=True)}
