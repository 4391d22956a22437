"""Ops between dense stages, as the manifest has them, on padded rows on the GPU: what each gives, and its launches.

To add an op: an entry in `OPS`; where it makes no row of each region, with a class of these three functions. An op that
has none there has no CUDA form: `why_no_kernels` says so at export, at the build and at load.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
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

    def outputs(self, step: Step, values: Arrays, layouts: Layouts) -> dict[str, tuple[tuple[int, ...], str]]:
        """(shape, type) of each output. BackendError for inputs that do not fit each other."""

    def workspace(self, step: Step, values: Arrays) -> int:
        """Bytes that it needs while it runs."""

    def launches(self, kernels: Kernels, step: Step, values: Arrays, layouts: Layouts, workspace: int) -> list[Launch]:
        """Ready for a stream; all of each output is written."""


class Proposals:
    def outputs(self, step: Step, values: Arrays, layouts: Layouts) -> dict[str, tuple[tuple[int, ...], str]]:
        images, most = values[step["inputs"][-1]].shape[0], step["attributes"]["post_nms"]
        shapes = (((images, most, 4), "float32"), ((images, most), "float32"), ((images,), "int32"))
        return dict(zip(step["outputs"], shapes, strict=True))

    def workspace(self, step: Step, values: Arrays) -> int:
        *levels, sizes = step["inputs"]
        anchors = [values[name].shape[0] for name in levels[2 * len(levels) // 3 :]]
        return proposals_workspace(values[sizes].shape[0], anchors, step["attributes"]["pre_nms"])

    def launches(self, kernels: Kernels, step: Step, values: Arrays, layouts: Layouts, workspace: int) -> list[Launch]:
        *levels, sizes = (values[name] for name in step["inputs"])
        third = len(levels) // 3
        rois, scores, counts = (values[name] for name in step["outputs"])
        return proposals(
            kernels, levels[:third], levels[third : 2 * third], levels[2 * third :], sizes, (rois, scores, counts),
            workspace, **step["attributes"],
        )  # fmt: skip


@dataclass(frozen=True)
class Pooling:
    """An op that makes a row of each region of maps: by `face`, which takes the one map, or all of its `levels`.

    Of channels-last maps a pyramid gives [N, P, Σb², C]: the stage behind it has to take that, and to say so.
    """

    face: Callable[..., list[Launch]]
    levels: bool = False

    def outputs(self, step: Step, values: Arrays, layouts: Layouts) -> dict[str, tuple[tuple[int, ...], str]]:
        last = _in_one_order(step, layouts)
        first, rois = values[step["inputs"][0]], values[step["inputs"][-2]]
        (name,) = step["outputs"]
        row = _row(step["attributes"], first.shape[-1 if last else 1], last)
        return {name: ((*rois.shape[:2], *row), first.dtype)}

    def workspace(self, step: Step, values: Arrays) -> int:
        return 0

    def launches(self, kernels: Kernels, step: Step, values: Arrays, layouts: Layouts, workspace: int) -> list[Launch]:
        *maps, rois, counts = (values[name] for name in step["inputs"])
        (name,) = step["outputs"]
        options = dict(step["attributes"])
        if "output_height" in options:
            options["output_size"] = (options.pop("output_height"), options.pop("output_width"))
        given = maps if self.levels else maps[0]
        last = name in layouts.channels_last
        return self.face(kernels, given, rois, counts, values[name], channels_last=last, **options)


def _row(attributes: Mapping[str, Any], channels: int, last: bool) -> tuple[int, ...]:
    """What an op makes of a region: h × w values of each channel, or those of a pyramid, level by level."""
    if "bins" in attributes:
        cells = sum(side * side for side in attributes["bins"])
        return (cells, channels) if last else (channels * cells,)
    size = (attributes["output_height"], attributes["output_width"])
    return (*size, channels) if last else (channels, *size)


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
    def outputs(self, step: Step, values: Arrays, layouts: Layouts) -> dict[str, tuple[tuple[int, ...], str]]:
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

    def workspace(self, step: Step, values: Arrays) -> int:
        images, rows, columns = values[step["inputs"][0]].shape
        return detections_workspace(images, rows, columns - 1, step["attributes"]["candidates"])

    def launches(self, kernels: Kernels, step: Step, values: Arrays, layouts: Layouts, workspace: int) -> list[Launch]:
        logits, deltas, rois, counts, sizes = (values[name] for name in step["inputs"])
        options = {**step["attributes"], "class_agnostic": bool(step["attributes"]["class_agnostic"])}
        out = [values[name] for name in step["outputs"]]
        return detections(kernels, logits, deltas, rois, counts, sizes, out, workspace, **options)


OPS: dict[str, Op] = {
    "RegionProposals": Proposals(),
    "RegionRoiAlign": Pooling(roi_align, levels=True),
    "RegionRoiPool": Pooling(roi_pool),
    "RegionPyramidPool": Pooling(pyramid_pool),
    "RegionWarp": Pooling(warp),
    "RegionDetections": Detections(),
}


def why_no_kernels(ops_between: Iterable[Any]) -> str | None:
    """Which ops between stages, names or entries of a manifest, have no CUDA form, and what to build instead; None if
    all have one."""
    names = {str(op["op"] if isinstance(op, Mapping) and "op" in op else op) for op in ops_between}
    lacking = sorted(names - OPS.keys())
    if not lacking:
        return None
    return (
        f"{', '.join(lacking)} has no CUDA form in this version of regionrt, so the form staged does not run on a GPU; "
        "build an engine of the form portable, which needs none: --ops portable"
    )
