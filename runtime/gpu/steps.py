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
from .roi_align import roi_align

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
        *levels, rois, _ = step["inputs"]
        (name,) = step["outputs"]
        last = {feature in layouts.channels_last for feature in levels}
        if last != {name in layouts.channels_last}:
            raise BackendError(
                f"{name}: feature maps and RoI features lie in another order of axes, which the CUDA kernels do not "
                "change: export with --ops staged alone, or build engines, which take them channels last"
            )
        images, rows, _ = values[rois].shape
        size = (step["attributes"]["output_height"], step["attributes"]["output_width"])
        first = values[levels[0]]
        shape = (*size, first.shape[-1]) if last == {True} else (first.shape[1], *size)
        return {name: ((images, rows, *shape), first.dtype)}

    @staticmethod
    def workspace(step: Step, values: Arrays) -> int:
        return 0

    @staticmethod
    def launches(kernels: Kernels, step: Step, values: Arrays, layouts: Layouts, workspace: int) -> list[Launch]:
        *levels, rois, counts = (values[name] for name in step["inputs"])
        (name,) = step["outputs"]
        options = dict(step["attributes"])
        size = (options.pop("output_height"), options.pop("output_width"))
        options["aligned"] = bool(options["aligned"])
        last = name in layouts.channels_last
        return roi_align(kernels, levels, rois, counts, values[name], output_size=size, channels_last=last, **options)


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
    "RegionDetections": Detections,
}
