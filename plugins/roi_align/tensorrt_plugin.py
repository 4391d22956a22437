"""RegionRoiAlign as TensorRT plugins, one for each number of feature levels: all levels in one launch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from regionrt.runtime.engine_plugins.declaration import (
    BF16,
    CHANNELS_LAST,
    FLOATS,
    FP16,
    FP32,
    INT,
    INT32,
    LINEAR,
    NAN_BITS,
    Combination,
    EnginePlugin,
    Launch,
    Shape,
    Size,
    Tensor,
    bits,
)
from regionrt.runtime.gpu.regions import BLOCK, slices

MOST_LEVELS = 5

_TYPES = {FP32: "f32", FP16: "f16", BF16: "bf16"}
_LAYOUTS = {LINEAR: "nchw", CHANNELS_LAST: "nhwc"}
_VECTOR = {FP32: 4, FP16: 8, BF16: 8}  # channels in 16 bytes, which the channels-last kernels read at once


def _output_shape(inputs: Sequence[Shape], fields: Mapping[str, Any]) -> Shape:
    """[N·P, C, h, w]: of rank 4, for which TensorRT's layouts say plainly where the channels are."""
    feature, rois = inputs[0], inputs[-2]
    return rois[0] * rois[1], feature[1], fields["output_height"], fields["output_width"]


def _combinations(shapes: Sequence[Shape]) -> Sequence[Combination]:
    levels, channels = len(shapes) - 3, shapes[0][1]

    def of(dtype: str, layout: str) -> Combination:
        image = (dtype, layout)
        return (*[image] * levels, (FP32, LINEAR), (INT32, LINEAR), image)

    found = [of(dtype, LINEAR) for dtype in _TYPES]
    found += [of(dtype, CHANNELS_LAST) for dtype, vector in _VECTOR.items() if channels > 0 and channels % vector == 0]
    return found


def _grid(rows: Size, images: Size, values: Size) -> tuple[Size, Size, Size]:
    """One block for each RoI and slice of its `values`; where the number of images is not known, as for one."""
    if not (isinstance(rows, int) and isinstance(values, int)):
        return rows, images, 1
    return rows, images, slices(rows * images if isinstance(images, int) else rows, values)


def _launch(inputs: Sequence[Tensor], output: Tensor, fields: Mapping[str, Any]) -> Launch:
    *features, rois, _ = inputs
    images, rows = rois.shape[0], rois.shape[1]
    _, channels, height, width = output.shape
    sizes = [size for feature in features for size in (feature.shape[2], feature.shape[3])]
    thresholds = [bits(area) for area in fields["level_areas"][1:]] + [NAN_BITS]
    return Launch(
        kernel=f"roi_align_{_LAYOUTS[output.layout]}_{_TYPES[output.dtype]}_{len(features)}",
        grid=_grid(rows, images, channels * height * width),
        block=BLOCK,
        scalars=(
            *sizes,
            *(bits(scale) for scale in fields["spatial_scales"]),
            *thresholds,
            channels,
            height,
            width,
            fields["sampling_ratio"],
            fields["aligned"],
            fields["maximum"],
        ),
    )


PLUGINS = tuple(
    EnginePlugin(
        name=f"RegionRoiAlignPlugin{levels}",
        op="roi_align",
        inputs=(*(f"features_{level}" for level in range(levels)), "rois", "counts"),
        fields={
            "spatial_scales": FLOATS,
            "level_areas": FLOATS,
            "output_height": INT,
            "output_width": INT,
            "sampling_ratio": INT,
            "aligned": INT,
            "maximum": INT,
        },
        output_dtype=lambda inputs: inputs[0],
        output_shape=_output_shape,
        combinations=_combinations,
        launch=_launch,
    )
    for levels in range(1, MOST_LEVELS + 1)
)
