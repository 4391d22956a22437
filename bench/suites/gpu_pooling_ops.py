"""RoIPool, pyramid pooling, warping, pooling with places: our kernels beside torchvision's and torch's, or what a user
of torch would write where neither has the op."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torchvision.ops import roi_align, roi_pool

from regionrt.plugins.pyramid_pool.torch_op import pyramid_pool as pyramid_pool_by_torch
from regionrt.plugins.warp.torch_op import warp as warp_by_torch

from .gpu_case import OURS, OpCase, OpSetting, error_of, named
from .gpu_clock import Call, Candidate
from .gpu_floor import pyramid_pool_bytes, roi_pool_bytes, warp_bytes
from .gpu_inputs import scattered_boxes

STRIDE = 16
"""Of the one map that Fast R-CNN and SPP-net pool from."""
BINS = (6, 3, 2, 1)
LAYOUTS = {True: torch.channels_last, False: torch.contiguous_format}
Candidates = dict[str, Callable[[], Candidate]]


def roi_pool_cases(setting: OpSetting) -> list[OpCase]:
    cases = [_roi_pool(setting, dtype, True) for dtype in setting.dtypes[:2]]
    return [*cases, _roi_pool(setting, setting.dtypes[0], False)]


def _roi_pool(setting: OpSetting, dtype: torch.dtype, channels_last: bool) -> OpCase:
    size, count, channels, bins = setting.sizes[0], setting.rois, 2 * setting.channels, 7
    boxes, rois, counts = _rois(setting, count, size)
    maps, copies, beyond = _maps(setting, channels, size, dtype, channels_last)
    shape = (bins, bins, channels) if channels_last else (channels, bins, bins)
    outs = [torch.empty(1, count, *shape, dtype=dtype, device=setting.device) for _ in range(copies)]
    plain = [m.contiguous() for m in maps]
    numbered = _numbered(rois, dtype)

    def ours(level: Tensor, out: Tensor) -> Call:
        return setting.kernels.roi_pool(level, rois[None], counts, out, scale=1 / STRIDE, channels_last=channels_last)

    def theirs(level: Tensor) -> Call:
        return lambda: roi_pool(level, numbered, bins, 1 / STRIDE)

    def agreement() -> str:
        outs[0].fill_(float("nan"))
        ours(maps[0], outs[0])()
        found = (outs[0][0].permute(0, 3, 1, 2) if channels_last else outs[0][0]).float()
        # In fp32: half boxes would move by half a pixel. What is chosen is exact in any type.
        return _same(found, roi_pool(plain[0].float(), [rois], bins, 1 / STRIDE), "torchvision's roi_pool")

    candidates: Candidates = {
        OURS: lambda: Candidate([ours(level, out) for level, out in zip(maps, outs, strict=True)]),
        "torchvision roi_pool": lambda: Candidate([theirs(level) for level in plain]),
    }
    name = f"RoIPool {count}×{channels}×{bins}×{bins}, {size[0]}×{size[1]}, {named(dtype)}, {_order(channels_last)}"
    side = (size[0] // STRIDE, size[1] // STRIDE)
    moved = roi_pool_bytes(boxes, side, 1 / STRIDE, bins, channels, _width(dtype))
    return OpCase(name, moved, copies, beyond, candidates, agreement)


def pyramid_pool_cases(setting: OpSetting) -> list[OpCase]:
    return [_pyramid_pool(setting, setting.dtypes[0], last) for last in (True, False)]


def _pyramid_pool(setting: OpSetting, dtype: torch.dtype, channels_last: bool) -> OpCase:
    size, count, channels = setting.sizes[0], setting.rois, setting.channels
    boxes, rois, counts = _rois(setting, count, size)
    maps, copies, beyond = _maps(setting, channels, size, dtype, channels_last)
    number = sum(b * b for b in BINS)
    shape = (number, channels) if channels_last else (number * channels,)
    outs = [torch.empty(1, count, *shape, dtype=dtype, device=setting.device) for _ in range(copies)]
    plain = [m.contiguous() for m in maps]
    numbered = _numbered(rois, dtype)

    def ours(level: Tensor, out: Tensor) -> Call:
        return setting.kernels.pyramid_pool(
            level, rois[None], counts, out, scale=1 / STRIDE, bins=BINS, channels_last=channels_last
        )

    def one_by_one(level: Tensor) -> Tensor:
        return pyramid_pool_by_torch(level, rois[None], counts, 1 / STRIDE, list(BINS))

    def by_level(level: Tensor) -> Call:
        return lambda: torch.cat([roi_pool(level, numbered, b, 1 / STRIDE).flatten(1) for b in BINS], 1)

    def agreement() -> str:
        outs[0].fill_(float("nan"))
        ours(maps[0], outs[0])()
        found = outs[0][0].float()
        if channels_last:
            levels = found.split([b * b for b in BINS], 1)
            found = torch.cat([level.transpose(1, 2).flatten(1) for level in levels], 1)
        return _same(found, one_by_one(plain[0].float())[0], "torch's adaptive_max_pool2d")

    candidates: Candidates = {
        OURS: lambda: Candidate([ours(level, out) for level, out in zip(maps, outs, strict=True)]),
        "torch adaptive_max_pool2d of each RoI and level": lambda: Candidate(
            [lambda level=level: one_by_one(level) for level in plain], graph=False  # type: ignore[misc]
        ),
        "torchvision roi_pool of each level (other edges)": lambda: Candidate([by_level(level) for level in plain]),
    }  # fmt: skip
    name = f"pyramid pooling {count}×{channels}×{number}, {size[0]}×{size[1]}, {named(dtype)}, {_order(channels_last)}"
    side = (size[0] // STRIDE, size[1] // STRIDE)
    moved = pyramid_pool_bytes(boxes, side, 1 / STRIDE, BINS, channels, _width(dtype))
    return OpCase(name, moved, copies, beyond, candidates, agreement)


def warp_cases(setting: OpSetting) -> list[OpCase]:
    return [_warp(setting, torch.float32, False), _warp(setting, setting.dtypes[0], True)]


def _warp(setting: OpSetting, dtype: torch.dtype, channels_last: bool) -> OpCase:
    """Peers run in fp32, channels first: coordinates of 16 bits would lie pixels away."""
    size, count, (crop, context) = setting.sizes[-1], max(setting.rois // 10, 1), setting.crop
    boxes, rois, counts = _rois(setting, count, size)
    width = _width(dtype)
    copies, beyond = setting.copies(3 * size[0] * size[1] * width + 3 * count * crop * crop * width)
    wide = [setting.normal(1, 3, *size) for _ in range(copies)]
    images = [image.to(dtype).to(memory_format=LAYOUTS[channels_last]) for image in wide]
    shape = (crop, crop, 3) if channels_last else (3, crop, crop)
    outs = [torch.empty(1, count, *shape, dtype=dtype, device=setting.device) for _ in range(copies)]

    def ours(image: Tensor, out: Tensor) -> Call:
        return setting.kernels.warp(image, rois[None], counts, out, context=context, channels_last=channels_last)

    middle, half = (rois[:, :2] + rois[:, 2:]) / 2, (rois[:, 2:] - rois[:, :2]) / 2 * crop / (crop - 2 * context)
    side = torch.tensor([size[1], size[0]], device=setting.device)
    enlarged = _numbered(torch.cat([middle - half, middle + half], 1), torch.float32)

    def by_grid_sample(image: Tensor) -> Call:
        def call() -> Tensor:
            scale, shift = 2 * half / side, 2 * middle / side - 1
            theta = torch.cat([torch.diag_embed(scale), shift[:, :, None]], 2)
            grid = functional.affine_grid(theta, [count, 3, crop, crop], align_corners=False)
            return functional.grid_sample(image.expand(count, -1, -1, -1), grid, align_corners=False)

        return call

    def by_roi_align(image: Tensor) -> Call:
        return lambda: roi_align(image, enlarged, crop, 1.0, 1, aligned=True)

    def agreement() -> str:
        outs[0].fill_(float("nan"))
        ours(images[0], outs[0])()
        found = (outs[0][0].permute(0, 3, 1, 2) if channels_last else outs[0][0]).float()
        expected = warp_by_torch(images[0].float().contiguous(), rois[None], counts, crop, crop, context)[0]
        return error_of(found, expected, "torch's grid_sample in float64")

    candidates: Candidates = {
        OURS: lambda: Candidate([ours(image, out) for image, out in zip(images, outs, strict=True)]),
        "torch affine_grid + grid_sample, fp32": lambda: Candidate([by_grid_sample(image) for image in wide]),
        "torchvision roi_align of enlarged RoIs, fp32": lambda: Candidate([by_roi_align(image) for image in wide]),
    }
    name = f"warping {count} RoIs of {size[0]}×{size[1]} to {crop}×{crop}, {named(dtype)}, {_order(channels_last)}"
    moved = warp_bytes(boxes, size, crop, context, 3, width)
    return OpCase(name, moved, copies, beyond, candidates, agreement)


def max_pool_cases(setting: OpSetting) -> list[OpCase]:
    makers = (_max_pool, _max_unpool)
    return [make(setting, dtype) for make in makers for dtype in setting.dtypes[:2]]


def _max_pool(setting: OpSetting, dtype: torch.dtype) -> OpCase:
    sets, copies, beyond = _planes(setting, dtype)

    def ours(x: Tensor, values: Tensor, argmax: Tensor) -> Call:
        return setting.kernels.max_pool(x, values, argmax)

    def theirs(x: Tensor) -> Call:
        return lambda: functional.max_pool2d(x, 2, 2, return_indices=True)

    def agreement() -> str:
        x, values, argmax = sets[0]
        values.fill_(float("nan"))
        ours(x, values, argmax)()
        return _same(values, functional.max_pool2d(x, 2, 2), "torch's max_pool2d")

    candidates: Candidates = {
        OURS: lambda: Candidate([ours(*one) for one in sets]),
        "torch max_pool2d with indices": lambda: Candidate([theirs(x) for x, _, _ in sets]),
    }
    x, values, argmax = sets[0]
    moved = x.nbytes + values.nbytes + argmax.nbytes
    return OpCase(f"pooling with places, {_sides(x)}, {named(dtype)}", moved, copies, beyond, candidates, agreement)


def _max_unpool(setting: OpSetting, dtype: torch.dtype) -> OpCase:
    sets, copies, beyond = _planes(setting, dtype)
    for x, values, argmax in sets:
        setting.kernels.max_pool(x, values, argmax)()
    flat = [functional.max_pool2d(x, 2, 2, return_indices=True)[1] for x, _, _ in sets]  # int64
    size = list(sets[0][0].shape[2:])

    def ours(x: Tensor, values: Tensor, argmax: Tensor) -> Call:
        return setting.kernels.max_unpool(values, argmax, x)  # over what was pooled: of that size and type

    def theirs(values: Tensor, indices: Tensor) -> Call:
        return lambda: functional.max_unpool2d(values, indices, 2, 2, output_size=size)

    def agreement() -> str:
        x, values, argmax = sets[0]
        x.fill_(float("nan"))
        ours(x, values, argmax)()
        return _same(x, theirs(values, flat[0])(), "torch's max_unpool2d")  # type: ignore[arg-type]

    candidates: Candidates = {
        OURS: lambda: Candidate([ours(*one) for one in sets]),
        "torch max_unpool2d, from int64 indices": lambda: Candidate(
            [theirs(values, indices) for (_, values, _), indices in zip(sets, flat, strict=True)]
        ),
    }
    x, values, argmax = sets[0]
    moved = x.nbytes + values.nbytes + argmax.nbytes
    return OpCase(f"max-unpooling, {_sides(x)}, {named(dtype)}", moved, copies, beyond, candidates, agreement)


def _planes(setting: OpSetting, dtype: torch.dtype) -> tuple[list[tuple[Tensor, Tensor, Tensor]], int, bool]:
    """(x, values, argmax) for each copy; copies; whether they exceed the cache."""
    images, channels, height, width = setting.planes
    pooled = (images, channels, height // 2, width // 2)
    copies, beyond = setting.copies(images * channels * height * width * _width(dtype))
    sets = [
        (
            setting.normal(images, channels, height, width, dtype=dtype),
            torch.empty(pooled, dtype=dtype, device=setting.device),
            torch.empty(pooled, dtype=torch.int32, device=setting.device),
        )
        for _ in range(copies)
    ]
    return sets, copies, beyond


def _rois(setting: OpSetting, count: int, size: tuple[int, int]) -> tuple[np.ndarray, Tensor, Tensor]:
    boxes = scattered_boxes(setting.rng, count, size, 32)
    return boxes, setting.tensor(boxes), torch.full((1,), count, dtype=torch.int32, device=setting.device)


def _maps(
    setting: OpSetting, channels: int, size: tuple[int, int], dtype: torch.dtype, channels_last: bool
) -> tuple[list[Tensor], int, bool]:
    side = (size[0] // STRIDE, size[1] // STRIDE)
    copies, beyond = setting.copies(side[0] * side[1] * channels * _width(dtype))
    maps = [
        setting.normal(1, channels, *side, dtype=dtype).to(memory_format=LAYOUTS[channels_last]) for _ in range(copies)
    ]
    return maps, copies, beyond


def _numbered(rois: Tensor, dtype: torch.dtype) -> Tensor:
    """With the image's number, as torchvision's ops take them: nothing is left to do but the kernel."""
    return torch.cat([torch.zeros_like(rois[:, :1]), rois], 1).to(dtype)


def _same(found: Tensor, expected: Tensor, whose: str) -> str:
    different = int((found != expected).sum())
    return f"{different} values differ from {whose}" if different else f"equal to {whose}"


def _sides(x: Tensor) -> str:
    return "×".join(map(str, x.shape))


def _width(dtype: torch.dtype) -> int:
    return torch.finfo(dtype).bits // 8


def _order(channels_last: bool) -> str:
    return "channels last" if channels_last else "channels first"
