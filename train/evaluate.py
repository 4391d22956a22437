"""How accurate a detector is: COCO AP and VOC mAP, by the same code for a checkpoint and for a bundle."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from regionrt.runtime.results import Detections

from .answers import answers
from .coco_metrics import Matches, Truth, truth_of
from .data.errors import DataError
from .data.sample import DetectionData
from .voc_metrics import voc_class_ap

Predictions = Sequence[Mapping[str, Any]]
"""COCO results: "image_id", "category_id" (the label), "bbox" [x, y, width, height], "score", "segmentation" (RLE)."""


class Detector(Protocol):
    """What evaluation needs of a `regionrt.runtime.predictor.Predictor`."""

    @property
    def labels(self) -> tuple[str, ...]: ...

    @property
    def max_batch(self) -> int: ...

    def batch(self, images: Sequence[np.ndarray], proposals: Any = None) -> list[Detections]: ...


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Figures from 0 to 1; NaN where there is no object to find.

    metrics: AP (IoU 0.50:0.95), AP50, AP75, AP_small, AP_medium, AP_large, AR1, AR10, AR100, voc07_AP50 (11-point),
    voc_AP50 (all-point); with masks the COCO figures again as mask_AP, mask_AP50, ….
    per_class: by name: AP, AP50, voc07_AP50, voc_AP50, with masks mask_AP, mask_AP50; objects: how many count.
    predictions: all that the detector returned, from which `match_predictions` and `ap_from_predictions` work.
    image_ids: the images evaluated, in order.
    """

    metrics: dict[str, float]
    per_class: dict[str, dict[str, float]]
    predictions: list[dict[str, Any]]
    image_ids: list[int | str]
    labels: tuple[str, ...]
    split: str

    def to_json(self, predictions: bool = False) -> dict[str, Any]:
        """For json.dump: NaN becomes None. predictions: with them and the ids of the images (large, with masks)."""
        content: dict[str, Any] = {
            "split": self.split,
            "images": len(self.image_ids),
            "labels": list(self.labels),
            "metrics": _without_nan(self.metrics),
            "per_class": {name: _without_nan(values) for name, values in self.per_class.items()},
        }
        if predictions:
            content |= {"image_ids": self.image_ids, "predictions": self.predictions}
        return content


def evaluate(
    predict: Detector,
    data: DetectionData,
    *,
    max_images: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Run a detector over a split and measure it.

    predict: a Predictor, of a checkpoint or a bundle; the data must have its labels (`open_data(…, predict.labels)`).
    max_images: only the first ones. progress: called with (images done, images in all), first with 0.
    Nets that take proposals are given them as `answers` does.
    Images are decoded as the runtime does it. COCO figures count at most 100 detections per image.
    Raises DataError (labels, data), ImageError, BackendError.
    """
    truths: list[Truth] = []
    predictions: list[dict[str, Any]] = []
    with_masks = data.has_masks
    for sample, found in answers(predict, data, max_images=max_images, progress=progress):
        truths.append(truth_of(sample))
        predictions += found.to_coco(sample.image_id)
        with_masks = with_masks and found.roi_masks is not None
    return measure(truths, predictions, data, with_masks)


def measure(
    truths: Sequence[Truth], predictions: list[dict[str, Any]], data: DetectionData, with_masks: bool
) -> Evaluation:
    """The figures for predictions on images whose objects are known; see `Evaluation`. with_masks: judge masks too."""
    names = data.labels[1:]
    metrics, by_label = Matches(truths, predictions, data.labels).summary()
    counts = Counter(int(label) for truth in truths for label in truth.labels[~truth.ignore])
    for label, values in enumerate(by_label, start=1):
        values["voc07_AP50"], values["voc_AP50"] = voc_class_ap(truths, predictions, label)
        values["objects"] = counts[label]
    for key in ("voc07_AP50", "voc_AP50"):
        metrics[key] = _mean_of_known([values[key] for values in by_label])
    if with_masks:
        of_masks, masks_by_label = Matches(truths, predictions, data.labels, "segm").summary()
        metrics |= {f"mask_{key}": value for key, value in of_masks.items()}
        for values, of_mask in zip(by_label, masks_by_label, strict=True):
            values |= {f"mask_{key}": value for key, value in of_mask.items()}
    per_class = dict(zip(names, by_label, strict=True))
    return Evaluation(metrics, per_class, predictions, [truth.image_id for truth in truths], data.labels, data.split)


class MatchedPredictions:
    """Predictions matched to the data once, for AP on many resamples of the images (a paired bootstrap).

    image_ids: the images, in the order in which weights are given.
    """

    def __init__(self, truths: Sequence[Truth], predictions: Predictions, data: DetectionData) -> None:
        self.image_ids = [truth.image_id for truth in truths]
        own = set(self.image_ids)
        results = [dict(prediction) for prediction in predictions if prediction["image_id"] in own]
        self._matches = {"": Matches(truths, results, data.labels)}
        # Nothing found at all counts as masks not found: a paired comparison needs the same figures from both.
        if data.has_masks and all("segmentation" in result for result in results):
            self._matches["mask_"] = Matches(truths, results, data.labels, "segm")

    def ap(self, weights: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """AP, AP50, AP75, with masks mask_AP, mask_AP50, mask_AP75: each float64 [R].

        weights: int [R, I], how often each of `image_ids` is drawn in each resample, such as
        `rng.multinomial(I, np.full(I, 1 / I), size=R)`; None: every image once (R = 1).
        A class without objects in a resample is left out of its mean; NaN where none has any.
        """
        if weights is None:
            weights = np.ones((1, len(self.image_ids)), dtype=int)
        found: dict[str, np.ndarray] = {}
        for prefix, matches in self._matches.items():
            found |= {prefix + key: values for key, values in matches.resampled(weights).items()}
        return found


def match_predictions(
    data: DetectionData, predictions: Predictions, image_ids: Sequence[int | str] | None = None
) -> MatchedPredictions:
    """Match predictions (of `Evaluation`) to the objects of the data, on these different images only, or on all.

    Raises DataError for a prediction or an id of an image that the data does not have.
    """
    truths = {truth.image_id: truth for truth in (truth_of(data[index]) for index in range(len(data)))}
    wanted = list(truths) if image_ids is None else list(image_ids)
    if len(set(wanted)) != len(wanted):
        raise ValueError("image_ids: expected different ids; say by weights how often each is drawn")
    for what, ids in (("image_ids", wanted), ("predictions", (one["image_id"] for one in predictions))):
        unknown = next((image_id for image_id in ids if image_id not in truths), None)
        if unknown is not None:
            raise DataError(
                f"{what}: the data ({data.split}) has no image {unknown!r}; give the split they were made on"
            )
    return MatchedPredictions([truths[image_id] for image_id in wanted], predictions, data)


def ap_from_predictions(
    data: DetectionData,
    predictions: Predictions,
    image_ids: Sequence[int | str] | None = None,
    weights: Sequence[int] | np.ndarray | None = None,
) -> dict[str, float]:
    """AP, AP50, AP75 (and mask_AP, …) of kept predictions on a multiset of images.

    image_ids: the images; one that stands there w times counts w times. None: all of the data.
    weights: int [I] instead of repetitions: how often each of `image_ids` (or of the data's images) counts.
    For many resamples use `match_predictions` once and `MatchedPredictions.ap`.
    """
    if weights is not None:
        matched = match_predictions(data, predictions, image_ids)
        drawn = np.asarray(weights)[None, :]
    elif image_ids is not None:
        counts = Counter(image_ids)
        matched = match_predictions(data, predictions, list(counts))
        drawn = np.array([list(counts.values())], dtype=int)
    else:
        matched, drawn = match_predictions(data, predictions), None
    return {key: float(values[0]) for key, values in matched.ap(drawn).items()}


def _mean_of_known(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else float("nan")


def _without_nan(values: Mapping[str, float]) -> dict[str, float | None]:
    return {key: None if math.isnan(value) else value for key, value in values.items()}
