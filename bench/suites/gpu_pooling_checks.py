"""Checks of RoIPool, pyramid pooling, warping and pooling with places: exactly, where the op only chooses values."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch.nn import functional
from torchvision.ops import roi_pool as torchvision_roi_pool

from regionrt.bench.torch_kernels import TorchKernels
from regionrt.plugins.max_unpool import reference as max_unpool_reference
from regionrt.plugins.pyramid_pool import reference as pyramid_pool_reference
from regionrt.plugins.roi_pool import reference as roi_pool_reference
from regionrt.plugins.warp import reference as warp_reference

from .gpu_compare import LIMITS, REFERENCE, TORCHVISION, equal, layout_of, name_of, relative, tensors
from .gpu_inputs import scattered_boxes
from .gpu_schema import Check

SIZE, SCALE = (128, 160), 1 / 16
LAYOUTS = {True: torch.channels_last, False: torch.contiguous_format}
TORCH = "torch"


def check_roi_pool(kernels: TorchKernels, device: str, rng: np.random.Generator) -> Iterator[Check]:
    rois, counts = _rois(rng)
    boxes, numbers = tensors(torch.device(device), rois, counts)
    for dtype in LIMITS:
        for last, channels in ((True, 16), (False, 16), (True, 5), (False, 5)):
            x = torch.randn(2, channels, SIZE[0] // 16, SIZE[1] // 16, device=device).to(dtype)
            shape = (7, 7, channels) if last else (channels, 7, 7)
            out = torch.full((*rois.shape[:2], *shape), float("nan"), dtype=dtype, device=device)
            placed = x.contiguous(memory_format=LAYOUTS[last])
            kernels.roi_pool(placed, boxes, numbers, out, scale=SCALE, channels_last=last)()
            found = (out.permute(0, 1, 4, 2, 3) if last else out).double().cpu().numpy()
            expected = roi_pool_reference.roi_pool(
                x.double().cpu().numpy(), rois, counts, spatial_scale=SCALE, output_size=(7, 7)
            )
            case = f"{channels} channels, 7×7, {name_of(dtype)}, {layout_of(last)}"
            yield equal("roi_pool", case, REFERENCE, found, expected, "values that differ")
    boxes = torch.from_numpy(scattered_boxes(rng, 200, (800, 1088))).to(device)
    x = torch.randn(1, 64, 50, 68, device=device)
    out = torch.full((1, 200, 64, 7, 7), float("nan"), device=device)
    kernels.roi_pool(x, boxes[None], torch.tensor([200], dtype=torch.int32, device=device), out, scale=SCALE)()
    theirs = torchvision_roi_pool(x, [boxes], 7, SCALE).cpu().numpy()
    yield equal(
        "roi_pool", "200×64×7×7 on 800×1088, fp32", TORCHVISION, out[0].cpu().numpy(), theirs, "values that differ"
    )


def check_pyramid_pool(kernels: TorchKernels, device: str, rng: np.random.Generator) -> Iterator[Check]:
    rois, counts = _rois(rng)
    boxes, numbers = tensors(torch.device(device), rois, counts)
    bins = (6, 3, 2, 1)
    number = sum(b * b for b in bins)
    for dtype in LIMITS:
        for last, channels in ((True, 8), (False, 8), (True, 5)):
            x = torch.randn(2, channels, SIZE[0] // 16, SIZE[1] // 16, device=device).to(dtype)
            shape = (number, channels) if last else (number * channels,)
            out = torch.full((*rois.shape[:2], *shape), float("nan"), dtype=dtype, device=device)
            placed = x.contiguous(memory_format=LAYOUTS[last])
            kernels.pyramid_pool(placed, boxes, numbers, out, scale=SCALE, bins=bins, channels_last=last)()
            if last:
                levels = out.split([b * b for b in bins], 2)
                out = torch.cat([level.transpose(2, 3).flatten(2) for level in levels], 2)
            expected = pyramid_pool_reference.pyramid_pool(
                x.double().cpu().numpy(), rois, counts, spatial_scale=SCALE, bins=bins
            )
            case = f"{channels} channels, {number} bins, {name_of(dtype)}, {layout_of(last)}"
            yield equal("pyramid_pool", case, REFERENCE, out.double().cpu().numpy(), expected, "values that differ")


def check_warp(kernels: TorchKernels, device: str, rng: np.random.Generator) -> Iterator[Check]:
    rois, counts = _rois(rng)
    boxes, numbers = tensors(torch.device(device), rois, counts)
    for dtype, limit in LIMITS.items():
        x = torch.randn(2, 3, *SIZE, device=device).to(dtype)
        expected = warp_reference.warp(x.double().cpu().numpy(), rois, counts, output_size=(19, 15), context=2)
        for last in (True, False):
            shape = (19, 15, 3) if last else (3, 19, 15)
            out = torch.full((*rois.shape[:2], *shape), float("nan"), dtype=dtype, device=device)
            placed = x.contiguous(memory_format=LAYOUTS[last])
            kernels.warp(placed, boxes, numbers, out, context=2, channels_last=last)()
            found = (out.permute(0, 1, 4, 2, 3) if last else out).double().cpu().numpy()
            yield relative("warp", f"19×15, {name_of(dtype)}, {layout_of(last)}", REFERENCE, found, expected, limit)


def check_max_unpool(kernels: TorchKernels, device: str, rng: np.random.Generator) -> Iterator[Check]:
    """Values of few levels, so that windows are full of ties."""
    for size, kernel in (((24, 64), 2), ((45, 61), 2), ((20, 31), 3)):
        for dtype in LIMITS:
            x = torch.from_numpy(rng.integers(-3, 4, (2, 5, *size))).to(device, dtype)
            expected, places = max_unpool_reference.max_pool(x.float().cpu().numpy(), kernel=kernel, stride=kernel)
            values = torch.full(expected.shape, float("nan"), dtype=dtype, device=device)
            argmax = torch.full(expected.shape, -7, dtype=torch.int32, device=device)
            kernels.max_pool(x, values, argmax, kernel=kernel, stride=kernel)()
            back = torch.full(x.shape, float("nan"), dtype=dtype, device=device)
            kernels.max_unpool(values, argmax, back, kernel=kernel, stride=kernel)()
            case = f"{size[0]}×{size[1]}, windows of {kernel}, {name_of(dtype)}"
            unit = "values that differ"
            yield equal("max_unpool", f"pooled, {case}", REFERENCE, values.float().cpu().numpy(), expected, unit)
            yield equal("max_unpool", f"places, {case}", REFERENCE, argmax.cpu().numpy(), places, "places that differ")
            unpooled = max_unpool_reference.max_unpool(
                expected, places, kernel=kernel, stride=kernel, height=size[0], width=size[1]
            )
            yield equal("max_unpool", f"unpooled, {case}", REFERENCE, back.float().cpu().numpy(), unpooled, unit)
            pooled, flat = functional.max_pool2d(x, kernel, kernel, return_indices=True)
            theirs = functional.max_unpool2d(pooled, flat, kernel, kernel, output_size=list(size)).float().cpu().numpy()
            yield equal("max_unpool", f"unpooled, {case}", TORCH, back.float().cpu().numpy(), theirs, unit)


def _rois(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Of two images, the second with fewer than there is room for; one RoI reaches out, one is a point."""
    rois = np.stack([scattered_boxes(rng, 12, SIZE, 4) for _ in range(2)])
    rois[0, 0], rois[0, 1, 2:] = (-40, -30, 10, 20), rois[0, 1, :2]
    return rois, np.array([12, 7], np.int32)
