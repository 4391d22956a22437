"""RegionWarp on a GPU (plugins/warp/kernel.cu): where samples lie is worked out once per RoI."""

from __future__ import annotations

from .arrays import GpuArray, within
from .kernels import Kernels, Launch
from .regions import regions


def warp(
    kernels: Kernels,
    images: GpuArray,
    rois: GpuArray,
    counts: GpuArray,
    out: GpuArray,
    *,
    output_size: tuple[int, int],
    context: int,
    channels_last: bool = False,
) -> list[Launch]:
    """As `regionrt.runtime.native.warp`; the launch, ready for a stream.

    Args:
        images: normalised, [N, C, H, W], or with `channels_last` [N, H, W, C]; float32, float16 or bfloat16.
        rois: float32 [N, P, 4]; counts: int32 [N].
        context: in pixels of the output, less than half of h and of w.
        out: of the images' type, [N, P, C, h, w], or with `channels_last` [N, P, h, w, C]. All of it is written.

    Raises BackendError: another type, shape or context.
    """
    height, width = (within("output_size", side, 1, 2**15) for side in output_size)
    within("context", context, 0, (min(height, width) - 1) // 2)
    channels = images.shape[-1 if channels_last else 1]
    pooled = (height, width, channels) if channels_last else (channels, height, width)
    return regions(kernels, "warp", images, rois, counts, out, pooled, (height, width, context), channels_last)
