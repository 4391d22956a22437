"""RegionRoiAlign on a GPU (plugins/roi_align/kernel.cu): all levels in one launch, without workspace."""

from __future__ import annotations

import math
from collections.abc import Sequence
from ctypes import c_int32, c_void_p

from regionrt.runtime.backends.cuda import Argument
from regionrt.runtime.errors import BackendError
from regionrt.runtime.native.roi_align import level_thresholds

from .arrays import KINDS, GpuArray, checked, within
from .kernels import Kernels, Launch
from .regions import BLOCK, bits, slices

MOST_LEVELS = 5
_MOST_SAMPLES = 65536


def roi_align(
    kernels: Kernels,
    features: Sequence[GpuArray],
    rois: GpuArray,
    counts: GpuArray,
    out: GpuArray,
    *,
    spatial_scales: Sequence[float],
    output_size: tuple[int, int],
    sampling_ratio: int = 2,
    aligned: bool = False,
    mode: str = "avg",
    canonical_scale: float = 224.0,
    canonical_level: int = 4,
    channels_last: bool = False,
) -> list[Launch]:
    """As `regionrt.runtime.native.roi_align`; the launches, ready for a stream.

    Args:
        features: one to five levels, fine to coarse, float32, float16 or bfloat16: [N, C, Hl, Wl], or with
            `channels_last` [N, Hl, Wl, C].
        rois: float32 [N, P, 4]; counts: int32 [N].
        out: of the features' type, [N, P, C, h, w], or with `channels_last` [N, P, h, w, C]. All of it is written.

    Raises BackendError: another type, shape or number of levels.
    """
    levels = within("levels of RoIAlign", len(features), 1, MOST_LEVELS)
    if len(spatial_scales) != levels:
        raise BackendError(f"expected a spatial scale for each of {levels} levels, found {len(spatial_scales)}")
    if mode not in ("avg", "max"):
        raise BackendError(f"mode: expected 'avg' or 'max', found {mode!r}")
    ratio = within("sampling_ratio", max(int(sampling_ratio), 0), 0, _MOST_SAMPLES)
    height, width = output_size
    channel_axis, row_axis = (3, 1) if channels_last else (1, 2)
    images, channels = features[0].shape[0], features[0].shape[channel_axis]
    dtype = checked("features", features[0], tuple(KINDS), (images, None, None, None)).dtype
    open_shape: list[int | None] = [images, None, None, None]
    open_shape[channel_axis] = channels
    for index, level in enumerate(features):
        checked(f"features[{index}]", level, dtype, open_shape)
        within(f"values of features[{index}] of one image", math.prod(level.shape[1:]), 0, 2**31 - 1)
        if level.address % 16:
            raise BackendError(f"features[{index}]: expected an address that is a multiple of 16")
    rows = checked("rois", rois, "float32", (images, None, 4)).shape[1]
    checked("counts", counts, "int32", (images,))
    pooled = (height, width, channels) if channels_last else (channels, height, width)
    checked("out", out, dtype, (images, rows, *pooled))
    within("images", images, 0, 65535)
    try:
        thresholds = level_thresholds(spatial_scales, canonical_scale, canonical_level)
    except ValueError as error:
        raise BackendError(str(error)) from error
    thresholds += [math.nan] * (levels - len(thresholds))  # which no area reaches
    sizes = [side for level in features for side in level.shape[row_axis : row_axis + 2]]
    numbers = [
        *sizes,
        *map(bits, spatial_scales),
        *map(bits, thresholds),
        *(channels, height, width, ratio, int(aligned), int(mode == "max")),
    ]
    arguments: list[Argument] = [
        *(c_void_p(level.address) for level in features),
        c_void_p(rois.address),
        c_void_p(counts.address),
        *map(c_int32, numbers),
        c_void_p(out.address),
    ]
    layout = "nhwc" if channels_last else "nchw"
    grid = (rows, images, slices(rows * images, math.prod(pooled)))
    return [Launch(kernels, "roi_align", f"roi_align_{layout}_{KINDS[dtype]}_{levels}", grid, BLOCK, arguments)]
