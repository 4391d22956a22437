"""How accurate label maps are: pixel accuracy, mean accuracy, IoU; void is not counted (FCN, arXiv:1411.4038)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torchmetrics.functional.classification import multiclass_confusion_matrix

from regionrt.runtime.semantic import SemanticMap

from .answers import answers, figures_json
from .data.semantic import VOID, SemanticData


class Segmenter(Protocol):
    """What evaluation needs of a Predictor of segmentation."""

    @property
    def labels(self) -> tuple[str, ...]: ...

    @property
    def max_batch(self) -> int: ...

    def batch(self, images: Sequence[np.ndarray]) -> list[SemanticMap]: ...


@dataclass(frozen=True, eq=False)
class SemanticEvaluation:
    """Figures from 0 to 1; NaN where nothing was to be judged.

    metrics: mIoU (of the classes that occur), pixel_accuracy, mean_accuracy. per_class: IoU, accuracy, and `objects`:
    its pixels. confusion: int64 [I, K, K], of each image the pixels by true class (rows) and found class (columns).
    """

    metrics: dict[str, float]
    per_class: dict[str, dict[str, float]]
    confusion: np.ndarray
    image_ids: list[int | str]
    labels: tuple[str, ...]
    split: str

    @property
    def by_image(self) -> np.ndarray:
        """What was found, image by image."""
        return self.confusion

    def resampled(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """The metrics on resamples: weights int [R, I], how often each image is drawn -> float64 [R] each."""
        drawn = np.tensordot(weights, self.confusion, axes=1)  # [R, K, K]
        return {name: values for name, values in _figures(drawn).items() if values.ndim == 1}

    def to_json(self) -> dict[str, Any]:
        """For json.dump: NaN becomes None."""
        return figures_json(self)


def evaluate_maps(
    predict: Segmenter,
    data: SemanticData,
    *,
    max_images: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> SemanticEvaluation:
    """Run a segmenter over a split and measure it in the photos' own pixels.

    predict: a Predictor, of a checkpoint or a bundle; the data must have its labels. max_images: only the first ones.
    progress: called with (images done, images in all). Raises DataError, ImageError, BackendError.
    """
    confusion, image_ids = [], []
    for sample, found in answers(predict, data, max_images=max_images, progress=progress):
        confusion.append(confusion_of(sample.label_map(), found.labels, len(data.labels)))
        image_ids.append(sample.image_id)
    return measure_maps(np.stack(confusion), image_ids, data.labels, data.split)


def confusion_of(truth: np.ndarray, found: np.ndarray, classes: int) -> np.ndarray:
    """int64 [K, K]: pixels by true and by found class, without those that are void in `truth`."""
    truth_, found_ = (torch.from_numpy(values.astype(np.int64)) for values in (truth, found))
    return multiclass_confusion_matrix(found_, truth_, classes, ignore_index=VOID).numpy()


def measure_maps(
    confusion: np.ndarray, image_ids: Sequence[int | str], labels: Sequence[str], split: str
) -> SemanticEvaluation:
    """The figures of all images together; see `SemanticEvaluation`."""
    figures = {name: values[0] for name, values in _figures(confusion.sum(0, keepdims=True)).items()}
    pixels = confusion.sum((0, 2))
    per_class = {
        name: {"IoU": float(figures["IoU"][k]), "accuracy": float(figures["accuracy"][k]), "objects": int(pixels[k])}
        for k, name in enumerate(labels)
    }
    metrics = {name: float(values) for name, values in figures.items() if np.ndim(values) == 0}
    return SemanticEvaluation(metrics, per_class, confusion, list(image_ids), tuple(labels), split)


def _figures(confusion: np.ndarray) -> dict[str, np.ndarray]:
    """mIoU, pixel_accuracy, mean_accuracy [R], IoU and accuracy [R, K] of confusions [R, K, K]."""
    right = np.diagonal(confusion, axis1=1, axis2=2).astype(np.float64)  # [R, K]
    truth, found = confusion.sum(2), confusion.sum(1)
    iou, accuracy = np.full(right.shape, np.nan), np.full(right.shape, np.nan)
    occurs = truth > 0  # a class that no pixel has is not judged
    np.divide(right, truth + found - right, out=iou, where=occurs)
    np.divide(right, truth, out=accuracy, where=occurs)
    pixels = confusion.sum((1, 2))
    whole = np.divide(right.sum(1), pixels, out=np.full(len(pixels), np.nan), where=pixels > 0)
    return {
        "mIoU": _mean(iou, occurs),
        "pixel_accuracy": whole,
        "mean_accuracy": _mean(accuracy, occurs),
        "IoU": iou,
        "accuracy": accuracy,
    }


def _mean(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    counts = known.sum(1)
    sums = np.where(known, values, 0).sum(1)
    return np.divide(sums, counts, out=np.full(len(values), np.nan), where=counts > 0)
