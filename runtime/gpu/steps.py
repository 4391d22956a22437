"""Ops between dense stages, as the manifest has them, on padded rows on the GPU: what each gives, and its launches.

To add an op: a class with these three functions and an entry in `OPS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from regionrt.runtime.errors import BackendError

from .arrays import GpuArray
from .detections import detections, detections_workspace
from .kernels import Kernels, Launch
from .proposals import proposals, proposals_workspace
from .pyramid_pool import pyramid_pool
from .roi_align import roi_align
from .roi_pool import roi_pool
from .warp import warp

Step = Mapping[str, Any]
Arrays = Mapping[str, GpuArray]


@dataclass(frozen=True)
class Layouts:
    """Which values lie channels last: feature maps [N, H, W, C], RoI features [N, P, h, w, C]."""

    channels_last: frozenset[str]


class Op(Protocol):
    """An op of a step; the addresses of its inputs matter to `launches` only."""

    @staticmethod
    def outputs(step: Step, values: Arrays, layouts: Layouts) -> dict[str, tuple[tuple[int, ...], str]]:
        """(shape, type) of each output. BackendError for inputs that do not fit each other."""

    @staticmethod
    def workspace(step: Step, values: Arrays) -> int:
        """Bytes that it needs while it runs."""

    @staticmethod
    def launches(kernels: Kernels, step: Step, values: Arrays, layouts: Layouts, workspace: int) -> list[Launch]:
        """Ready for a stream; all of each output is written."""


class Proposals:
    @staticmethod
    def outputs(step: Step, values: Arrays, layouts: Layouts) -> dict[str, tuple[tuple[int, ...], str]]:
        images, most = values[step["inputs"][-1]].shape[0], step["attributes"]["post_nms"]
        shapes = (((images, most, 4), "float32"), ((images, most), "float32"), ((images,), "int32"))
        return dict(zip(step["outputs"], shapes, strict=True))

    @staticmethod
    def workspace(step: Step, values: Arrays) -> int:
        *levels, sizes = step["inputs"]
        anchors = [values[name].shape[0] for name in levels[2 * len(levels) // 3 :]]
        return proposals_workspace(values[sizes].shape[0], anchors, step["attributes"]["pre_nms"])

    @staticmethod
    def launches(kernels: Kernels, step: Step, values: Arrays, layouts: Layouts, workspace: int) -> list[Launch]:
        *levels, sizes = (values[name] for name in step["inputs"])
        third = len(levels) // 3
        rois, scores, counts = (values[name] for name in step["outputs"])
        return proposals(
            kernels, levels[:third], levels[third : 2 * third], levels[2 * third :], sizes, (rois, scores, counts),
            workspace, **step["attributes"],
        )  # fmt: skip


class RoiAlign:
    @staticmethod
    def outputs(step: Step, values: Arrays, layouts: Layouts) -> dict[str, tuple[tuple[int, ...], str]]:
        return _bins_of_regions(step, values, layouts)

    @staticmethod
    def workspace(step: Step, values: Arrays) -> int:
        return 0

    @staticmethod
    def launches(kernels: Kernels, step: Step, values: Arrays, layouts: Layouts, workspace: int) -> list[Launch]:
        *levels, rois, counts = (values[name] for name in step["inputs"])
        out, options = _pooled(step, values, layouts)
        options["aligned"] = bool(options["aligned"])
        return roi_align(kernels, levels, rois, counts, out, **options)


class RoiPool:
    @staticmethod
    def outputs(step: Step, values: Arrays, layouts: Layouts) -> dict[str, tuple[tuple[int, ...], str]]:
        return _bins_of_regions(step, values, layouts)

    @staticmethod
    def workspace(step: Step, values: Arrays) -> int:
        return 0

    @staticmethod
    def launches(kernels: Kernels, step: Step, values: Arrays, layouts: Layouts, workspace: int) -> list[Launch]:
        feature, rois, counts = (values[name] for name in step["inputs"])
        out, options = _pooled(step, values, layouts)
        return roi_pool(kernels, feature, rois, counts, out, **options)


class Warp:
    @staticmethod
    def outputs(step: Step, values: Arrays, layouts: Layouts) -> dict[str, tuple[tuple[int, ...], str]]:
        return _bins_of_regions(step, values, layouts)

    @staticmethod
    def workspace(step: Step, values: Arrays) -> int:
        return 0

    @staticmethod
    def launches(kernels: Kernels, step: Step, values: Arrays, layouts: Layouts, workspace: int) -> list[Launch]:
        images, rois, counts = (values[name] for name in step["inputs"])
        out, options = _pooled(step, values, layouts)
        return warp(kernels, images, rois, counts, out, **options)


class PyramidPool:
    """Of channels-last maps it gives [N, P, Σb², C]: the stage behind it has to take that, and to say so."""

    @staticmethod
    def outputs(step: Step, values: Arrays, layouts: Layouts) -> dict[str, tuple[tuple[int, ...], str]]:
        _in_one_order(step, layouts)
        name, rois, _ = step["inputs"]
        feature, number = values[name], sum(side * side for side in step["attributes"]["bins"])
        (pooled,) = step["outputs"]
        last = pooled in layouts.channels_last
        shape = (number, feature.shape[-1]) if last else (feature.shape[1] * number,)
        return {pooled: ((*values[rois].shape[:2], *shape), feature.dtype)}

    @staticmethod
    def workspace(step: Step, values: Arrays) -> int:
        return 0

    @staticmethod
    def launches(kernels: Kernels, step: Step, values: Arrays, layouts: Layouts, workspace: int) -> list[Launch]:
        feature, rois, counts = (values[name] for name in step["inputs"])
        (name,) = step["outputs"]
        last = name in layouts.channels_last
        return pyramid_pool(
            kernels, feature, rois, counts, values[name], channels_last=last, **step["attributes"]
        )  # fmt: skip


def _bins_of_regions(step: Step, values: Arrays, layouts: Layouts) -> dict[str, tuple[tuple[int, ...], str]]:
    """Output of an op that makes h × w values of each region and channel."""
    last = _in_one_order(step, layouts)
    first, rois = values[step["inputs"][0]], values[step["inputs"][-2]]
    size = (step["attributes"]["output_height"], step["attributes"]["output_width"])
    shape = (*size, first.shape[-1]) if last else (first.shape[1], *size)
    (name,) = step["outputs"]
    return {name: ((*rois.shape[:2], *shape), first.dtype)}


def _pooled(step: Step, values: Arrays, layouts: Layouts) -> tuple[GpuArray, dict[str, Any]]:
    """Its array, and the options of the kernels' face."""
    (name,) = step["outputs"]
    options = dict(step["attributes"])
    options["output_size"] = (options.pop("output_height"), options.pop("output_width"))
    return values[name], {**options, "channels_last": name in layouts.channels_last}


def _in_one_order(step: Step, layouts: Layouts) -> bool:
    """Whether maps and what is pooled from them lie channels last; BackendError where the kernels cannot."""
    *levels, _, _ = step["inputs"]
    (name,) = step["outputs"]
    last = {feature in layouts.channels_last for feature in levels}
    if last != {name in layouts.channels_last}:
        raise BackendError(
            f"{name}: feature maps and RoI features lie in another order of axes, which the CUDA kernels do not "
            "change: export with --ops staged alone, or build engines, which take them channels last"
        )
    return last == {True}


class Detections:
    @staticmethod
    def outputs(step: Step, values: Arrays, layouts: Layouts) -> dict[str, tuple[tuple[int, ...], str]]:
        images, most = values[step["inputs"][-1]].shape[0], step["attributes"]["max_detections"]
        rows = (images, most)
        floats, whole = "float32", "int32"
        shapes = (
            ((images,), whole),
            ((*rows, 4), floats),
            (rows, floats),
            (rows, whole),
            (rows, whole),
            ((images,), whole),
        )
        return dict(zip(step["outputs"], shapes, strict=True))

    @staticmethod
    def workspace(step: Step, values: Arrays) -> int:
        images, rows, columns = values[step["inputs"][0]].shape
        return detections_workspace(images, rows, columns - 1, step["attributes"]["candidates"])

    @staticmethod
    def launches(kernels: Kernels, step: Step, values: Arrays, layouts: Layouts, workspace: int) -> list[Launch]:
        logits, deltas, rois, counts, sizes = (values[name] for name in step["inputs"])
        options = {**step["attributes"], "class_agnostic": bool(step["attributes"]["class_agnostic"])}
        out = [values[name] for name in step["outputs"]]
        return detections(kernels, logits, deltas, rois, counts, sizes, out, workspace, **options)


OPS: dict[str, type[Op]] = {
    "RegionProposals": Proposals,
    "RegionRoiAlign": RoiAlign,
    "RegionRoiPool": RoiPool,
    "RegionPyramidPool": PyramidPool,
    "RegionWarp": Warp,
    "RegionDetections": Detections,
}
