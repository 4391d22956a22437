"""RegionRoiPool on a GPU (plugins/roi_pool/kernel.cu)."""

from __future__ import annotations

from regionrt.runtime.native.roi_pool import MOST_CELLS

from .arrays import GpuArray, within
from .kernels import Kernels, Launch
from .regions import bits, regions


def roi_pool(
    kernels: Kernels,
    feature: GpuArray,
    rois: GpuArray,
    counts: GpuArray,
    out: GpuArray,
    *,
    spatial_scale: float,
    output_size: tuple[int, int],
    channels_last: bool = False,
) -> list[Launch]:
    """As `regionrt.runtime.native.roi_pool`, exactly; the launch, ready for a stream.

    Args:
        feature: [N, C, H, W], or with `channels_last` [N, H, W, C]; float32, float16 or bfloat16, H and W at most 4096.
        rois: float32 [N, P, 4]; counts: int32 [N].
        out: of the feature's type, [N, P, C, h, w], or with `channels_last` [N, P, h, w, C]. All of it is written.

    Raises BackendError: another type or shape.
    """
    height, width = (within("output_size", side, 1, 2**15) for side in output_size)
    channels = feature.shape[-1 if channels_last else 1]
    pooled = (height, width, channels) if channels_last else (channels, height, width)
    numbers = (height, width, bits(spatial_scale))
    return regions(kernels, "roi_pool", feature, rois, counts, out, pooled, numbers, channels_last, MOST_CELLS)
