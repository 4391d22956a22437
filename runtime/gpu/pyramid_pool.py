"""RegionPyramidPool on a GPU (plugins/pyramid_pool/kernel.cu): all levels in one launch."""

from __future__ import annotations

from collections.abc import Sequence

from regionrt.runtime.native.pyramid_pool import MOST_BINS, MOST_LEVELS
from regionrt.runtime.native.roi_pool import MOST_CELLS

from .arrays import GpuArray, within
from .kernels import Kernels, Launch
from .regions import bits, regions


def pyramid_pool(
    kernels: Kernels,
    feature: GpuArray,
    rois: GpuArray,
    counts: GpuArray,
    out: GpuArray,
    *,
    spatial_scale: float,
    bins: Sequence[int],
    channels_last: bool = False,
) -> list[Launch]:
    """As `regionrt.runtime.native.pyramid_pool`, exactly; the launch, ready for a stream.

    Args:
        feature: [N, C, H, W], or with `channels_last` [N, H, W, C]; float32, float16 or bfloat16, H and W at most 4096.
        rois: float32 [N, P, 4]; counts: int32 [N].
        bins: b of each level, 1 to 64; 1 to 8 levels.
        out: of the feature's type, [N, P, C · Σb²], level by level [C, b, b], or with `channels_last` [N, P, Σb², C].
            All of it is written.

    Raises BackendError: another type, shape or number of levels.
    """
    levels = within("levels of the pyramid", len(bins), 1, MOST_LEVELS)
    sides = [within("bins of a level", side, 1, MOST_BINS) for side in bins]
    channels, number = feature.shape[-1 if channels_last else 1], sum(side * side for side in sides)
    pooled = (number, channels) if channels_last else (number * channels,)
    numbers = (bits(spatial_scale), *sides, *[0] * (MOST_LEVELS - levels))
    return regions(kernels, "pyramid_pool", feature, rois, counts, out, pooled, numbers, channels_last, MOST_CELLS)
