"""RegionNms as a TensorRT plugin: greedy NMS of sorted boxes, one block for each class and image, in one launch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from regionrt.runtime.engine_plugins.declaration import (
    BOOL,
    FLOAT,
    FP32,
    INT,
    INT32,
    LINEAR,
    Combination,
    EnginePlugin,
    Launch,
    Shape,
    Tensor,
    bits,
)

MOST_BOXES = 4096
"""Boxes of one image that the kernel takes: what its shared memory holds."""


def _output_shape(inputs: Sequence[Shape], fields: Mapping[str, Any]) -> Shape:
    _, classes = inputs
    return classes[0], classes[1]


def _combinations(shapes: Sequence[Shape]) -> Sequence[Combination]:
    return [((FP32, LINEAR), (INT32, LINEAR), (BOOL, LINEAR))]


def _launch(inputs: Sequence[Tensor], output: Tensor, fields: Mapping[str, Any]) -> Launch:
    images, rows = inputs[1].shape
    return Launch(
        kernel="nms",
        grid=(fields["num_classes"], images, 1),
        block=1024,
        scalars=(rows, fields["num_classes"], bits(fields["iou_threshold"])),
    )


PLUGINS = (
    EnginePlugin(
        name="RegionNmsPlugin",
        op="nms",
        inputs=("boxes", "classes"),
        fields={"iou_threshold": FLOAT, "num_classes": INT},
        output_dtype=lambda inputs: BOOL,
        output_shape=_output_shape,
        combinations=_combinations,
        launch=_launch,
    ),
)
