"""Ops between dense stages on a CPU: what each gives, by the native library or NumPy, of the RoIs that are there.

To add an op: an entry in `OPS`, and in `POOLINGS` where it makes a row of each region.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from regionrt.runtime import native

from .staged_rows import PooledRows, share_alike

Step = Mapping[str, Any]
Values = Mapping[str, Any]
Windows = Callable[[np.ndarray, Sequence[int]], np.ndarray]
"""RoIs [R, 4], and height and width of the map -> int [R, 4], the same of those that are pooled alike."""


@dataclass(frozen=True)
class Setting:
    """What ops run with. feature_type: what stages take RoI features in; channels_last: values that stages hand over
    or take so."""

    threads: int
    feature_type: np.dtype
    channels_last: frozenset[str]


def _proposals(on: Setting, step: Step, values: Values) -> dict[str, Any]:
    *levels, sizes = (values[name] for name in step["inputs"])
    third = len(levels) // 3
    found = native.proposals(
        levels[:third], levels[third : 2 * third], levels[2 * third :], sizes, threads=on.threads,
        **step["attributes"],
    )  # fmt: skip
    return dict(zip(step["outputs"], found, strict=True))


def _roi_align(on: Setting, step: Step, values: Values) -> dict[str, Any]:
    options = {**step["attributes"], "aligned": bool(step["attributes"]["aligned"])}
    return _pooled_in_bins(on, step, values, native.roi_align, options)


def _roi_pool(on: Setting, step: Step, values: Values) -> dict[str, Any]:
    options = step["attributes"]
    return _pooled_in_bins(
        on, step, values, _of_one_map(native.roi_pool), options,
        lambda rois, side: native.cells_of(rois, options["spatial_scale"]),
    )  # fmt: skip


def _pyramid_pool(on: Setting, step: Step, values: Values) -> dict[str, Any]:
    channels = values[step["inputs"][0]].shape[-1]
    shape = (channels * sum(b * b for b in step["attributes"]["bins"]),)
    options = step["attributes"]
    return _pooled(
        on, step, values, _of_one_map(native.pyramid_pool), options, shape,
        lambda rois, side: native.windows_of(rois, options["spatial_scale"], side),
    )  # fmt: skip


def _warp(on: Setting, step: Step, values: Values) -> dict[str, Any]:
    return _pooled_in_bins(on, step, values, _of_one_map(native.warp), step["attributes"])


def _pooled_in_bins(
    on: Setting,
    step: Step,
    values: Values,
    pool: Callable[..., np.ndarray],
    attributes: Mapping[str, Any],
    windows: Windows | None = None,
) -> dict[str, Any]:
    """RoI features [R, C, h, w] or [R, h, w, C], by a native op that takes a list of maps."""
    options = dict(attributes)
    options["output_size"] = size = (options.pop("output_height"), options.pop("output_width"))
    last = options["channels_last"] = step["outputs"][0] in on.channels_last
    channels = values[step["inputs"][0]].shape[-1]
    shape = (*size, channels) if last else (channels, *size)
    return _pooled(on, step, values, pool, options, shape, windows)


def _pooled(
    on: Setting,
    step: Step,
    values: Values,
    pool: Callable[..., np.ndarray],
    options: Mapping[str, Any],
    shape: tuple[int, ...],
    windows: Windows | None = None,
) -> dict[str, Any]:
    """The RoIs of all images, packed, each pooled to `shape`; those with the same windows on the map once."""
    *levels, rois, counts = (values[name] for name in step["inputs"])
    (name,) = step["outputs"]
    of_images, places = [boxes[:count] for boxes, count in zip(rois, counts, strict=True)], None
    if windows is not None:
        side = levels[0].shape[1:3]
        with np.errstate(invalid="ignore"):  # a RoI with NaN has no window
            of_images, places = share_alike(of_images, [windows(boxes, side) for boxes in of_images])
    ends = np.cumsum([len(boxes) for boxes in of_images])

    def into(out: np.ndarray, start: int) -> None:
        stop = start + len(out)
        for image, (boxes, last) in enumerate(zip(of_images, ends, strict=True)):
            first = last - len(boxes)
            low, high = max(first, start), min(last, stop)
            if low < high:
                pool(
                    [level[image : image + 1] for level in levels],
                    boxes[None, low - first : high - first],
                    np.array([high - low], np.int32),
                    out=out[None, low - start : high - start],
                    threads=on.threads,
                    **options,
                )

    return {name: PooledRows(shape, on.feature_type, counts, into, int(ends[-1]), places)}


def _detections(on: Setting, step: Step, values: Values) -> dict[str, Any]:
    logits, deltas, rois, counts, sizes = (values[name] for name in step["inputs"])
    options = {**step["attributes"], "class_agnostic": bool(step["attributes"]["class_agnostic"])}
    found = [
        native.detections(
            logits.of(n)[None], deltas.of(n)[None], rois[n : n + 1, :count], counts[n : n + 1], sizes[n : n + 1],
            threads=on.threads, **options,
        )
        for n, count in enumerate(counts)
    ]  # fmt: skip
    whole = [values[0] if len(found) == 1 else np.concatenate(values) for values in zip(*found, strict=True)]
    return dict(zip(step["outputs"], whole, strict=True))


def _merge(on: Setting, step: Step, values: Values) -> dict[str, Any]:
    options = {**step["attributes"], "class_agnostic": bool(step["attributes"]["class_agnostic"])}
    found = native.merge(*(values[name] for name in step["inputs"]), threads=on.threads, **options)
    return dict(zip(step["outputs"], found, strict=True))


def _of_one_map(pool: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    """A native op that takes one map, as `_pooled` calls all: with a list of them."""
    return lambda levels, *rest, **options: pool(*levels, *rest, **options)


OPS: dict[str, Callable[[Setting, Step, Values], dict[str, Any]]] = {
    "RegionProposals": _proposals,
    "RegionRoiAlign": _roi_align,
    "RegionRoiPool": _roi_pool,
    "RegionPyramidPool": _pyramid_pool,
    "RegionWarp": _warp,
    "RegionDetections": _detections,
    "RegionMerge": _merge,
}
POOLINGS = ("RegionRoiAlign", "RegionRoiPool", "RegionPyramidPool", "RegionWarp")
"""What gives a row for each RoI, from maps that are channels last."""
