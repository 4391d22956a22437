"""A net's answers to the images of a split, and the plain figures of an evaluation: the same for every task."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from regionrt.runtime.errors import OptionError

from .data.errors import DataError
from .data.proposals import kept_for
from .models import BACKGROUND


def answers(
    predict: Any, data: Any, *, max_images: int | None = None, progress: Callable[[int, int], None] | None = None
) -> Iterator[tuple[Any, Any]]:
    """(sample, what the net found in it), in the order of the data, in batches of the net's own size.

    max_images: only the first ones. progress: called with (images done, images in all), first with 0. Nets that take
    proposals are given those that are kept in the user's cache, or that are searched for now. Raises DataError where
    net and data have different labels; OptionError for a `max_images` below 1.
    """
    if tuple(predict.labels) != tuple(data.labels):
        raise DataError(
            f"the net has the classes {_names(predict.labels)}, the data {_names(data.labels)}: "
            "open the data with the net's labels"
        )
    if max_images is not None and max_images < 1:
        raise OptionError(f"max_images: expected at least 1, found {max_images}")
    tell = progress or (lambda done, total: None)
    total = len(data) if max_images is None else min(max_images, len(data))
    tell(0, total)
    for start in range(0, total, predict.max_batch):
        samples = [data[index] for index in range(start, min(start + predict.max_batch, total))]
        images = [sample.image() for sample in samples]
        yield from zip(samples, predict.batch(images, *kept_for(predict, images)), strict=True)
        tell(start + len(samples), total)


def figures_json(evaluation: Any) -> dict[str, Any]:
    """An evaluation's split, images, labels, metrics and figures per class, for json.dump: NaN becomes None."""
    return {
        "split": evaluation.split,
        "images": len(evaluation.image_ids),
        "labels": list(evaluation.labels),
        "metrics": _known(evaluation.metrics),
        "per_class": {name: _known(values) for name, values in evaluation.per_class.items()},
    }


def _known(values: Mapping[str, float]) -> dict[str, float | None]:
    return {key: None if value != value else value for key, value in values.items()}


def _names(labels: Sequence[str]) -> str:
    return ", ".join(name for name in labels if name != BACKGROUND)
