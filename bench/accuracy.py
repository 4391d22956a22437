"""Accuracy of each candidate on the same images, and its difference to the baseline with a bootstrap interval."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from regionrt.runtime.predictor import Predictor
from regionrt.train.tasks import TASKS, Task

from .schema import Accuracy, Difference

CONFIDENCE = 0.95
Progress = Callable[[str, int, int], None]


def judge(
    predictors: Mapping[str, Predictor],
    data: Any,
    *,
    task: Task | None = None,
    reference: str | None,
    max_images: int | None = None,
    resamples: int = 1000,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Accuracy]:
    """Accuracy by name, as the `task` judges it (None: as of detection).

    reference: the candidate that the differences refer to (None: no differences).

    The bootstrap draws images with replacement, the same ones for both candidates, so that an image that is hard for
    both does not widen the interval (paired, percentile interval; Efron and Tibshirani, An Introduction to the
    Bootstrap, 1993, chapter 13).

    progress: told (name, images done, images in all). Raises DataError, ImageError, BackendError; ValueError for fewer
    than 500 resamples, whose 2.5th percentile means little.
    """
    if resamples < 500:
        raise ValueError(f"resamples: at least 500 expected, {resamples} given")
    task = task or TASKS["detection"]
    found: dict[str, Any] = {}
    for name, predict in predictors.items():

        def tell(done: int, total: int, name: str = name) -> None:
            if progress is not None:
                progress(name, done, total)

        found[name] = task.evaluate(predict, data, max_images=max_images, progress=tell)
    differences: dict[str, tuple[Difference, ...]] = dict.fromkeys(found, ())
    if reference is not None:
        others = {name: evaluation for name, evaluation in found.items() if name != reference}
        differences |= differences_to(found[reference], others, data, task, resamples, seed)
    return {name: _accuracy(evaluation, differences[name]) for name, evaluation in found.items()}


def differences_to(
    reference: Any, others: Mapping[str, Any], data: Any, task: Task, resamples: int = 1000, seed: int = 0
) -> dict[str, tuple[Difference, ...]]:
    """How far each of the `others` is from the `reference`, both as `task.evaluate` found them on the same images of
    `data`; the interval as `judge` says."""
    images = len(reference.image_ids)
    weights = np.random.default_rng(seed).multinomial(images, np.full(images, 1 / images), size=resamples)

    def resampled(evaluation: Any) -> dict[str, np.ndarray]:
        return task.resampled(evaluation, data, reference.image_ids, weights)

    base = resampled(reference)
    differences = {}
    for name, evaluation in others.items():
        same = task.same(evaluation, reference)
        draws = base if same else resampled(evaluation)
        entries = []
        for metric in task.contract:
            both = [e.metrics.get(metric, math.nan) for e in (evaluation, reference)]
            if any(math.isnan(value) for value in both):
                continue
            spread = 100 * (draws[metric] - base[metric])
            tail = 50 * (1 - CONFIDENCE)
            low, high = np.nanpercentile(spread, [tail, 100 - tail])
            points = 100 * (both[0] - both[1])
            entries.append(Difference(metric, points, float(low), float(high), CONFIDENCE, resamples, seed))
        differences[name] = tuple(entries)
    return differences


def _accuracy(evaluation: Any, differences: tuple[Difference, ...]) -> Accuracy:
    def known(values: Mapping[str, float]) -> dict[str, float | None]:
        return {name: None if math.isnan(value) else float(value) for name, value in values.items()}

    per_class = {name: known(values) for name, values in evaluation.per_class.items()}
    return Accuracy(len(evaluation.image_ids), known(evaluation.metrics), per_class, differences)
