"""Pasting masks, resizing photos, and pooling with places and back, beside torch and torchvision on a CPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torchvision.models.detection import roi_heads

from regionrt.runtime import native

from .ops_case import HEIGHT, WIDTH, Case, boxes_on_canvas


def mask_cases(threads: int) -> list[Case]:
    from pycocotools import mask as coco

    rng = np.random.default_rng(4)
    number, size = 70, (HEIGHT, WIDTH)
    boxes = boxes_on_canvas(rng, number, 30, 600)
    y, x = np.mgrid[-1:1:28j, -1:1:28j]
    masks = np.stack([1 / (1 + np.exp(8 * (x**2 + y**2 - r))) for r in rng.uniform(0.4, 1, number)]).astype(np.float32)
    tensors = torch.from_numpy(masks)[:, None], torch.from_numpy(boxes)
    out = np.empty((number, *size), np.uint8)

    def theirs():
        return roi_heads.paste_masks_in_image(*tensors, size) > 0.5

    def encoded():
        pasted = theirs()[:, 0].numpy()
        return [coco.encode(np.asfortranarray(mask.view(np.uint8)))["counts"].decode() for mask in pasted]

    dense = {"ours": lambda: native.paste_masks(masks, boxes, size, out=out, threads=threads), "torchvision": theirs}
    crops = {"ours": lambda: native.paste_crops(masks, boxes, size, threads=threads), "torchvision": theirs}
    text = {"ours": lambda: native.paste_rles(masks, boxes, size, threads=threads), "torchvision": encoded}
    return [
        Case(f"pasting {number} masks, dense", "ours", dense,
             lambda: f"{(dense['ours']() == theirs()[:, 0].numpy()).mean():.4%} of the pixels"),
        Case(f"pasting {number} masks, cut out", "ours", crops, lambda: "as dense"),
        Case(f"pasting {number} masks to RLE", "ours", text,
             lambda: f"{sum(a == b for a, b in zip(text['ours'](), encoded(), strict=True))} of {number} texts"),
    ]  # fmt: skip


def resize_cases(threads: int) -> list[Case]:
    rng = np.random.default_rng(5)
    cases = []
    for (h, w), (height, width) in (((480, 640), (800, 1066)), ((3024, 4032), (800, 1066))):
        image = rng.integers(0, 256, (h, w, 3), dtype=np.uint8)
        out = np.empty((height, width, 3), np.uint8)

        def ours(image=image, height=height, width=width, out=out):
            return native.resize_bilinear(image, height, width, out=out, threads=threads)

        def theirs(image=image, size=(height, width)):
            values = torch.from_numpy(image).permute(2, 0, 1)[None].float()
            resized = torch.nn.functional.interpolate(values, size, mode="bilinear", align_corners=False)
            return resized.round_().byte()[0].permute(1, 2, 0).contiguous()

        calls = {"ours": ours, "torchvision": theirs}
        same = lambda calls=calls: f"{(calls['ours']() == calls['torchvision']().numpy()).mean():.3%} of the values"  # noqa: E731
        cases.append(Case(f"resize {h}×{w} → {height}×{width}", "ours", calls, same))
    return cases


def unpool_cases(threads: int) -> list[Case]:
    """The first pooling of SegNet on half a CamVid frame, and the way back."""
    x = np.random.default_rng(6).standard_normal((1, 64, 180, 240), np.float32)
    tensor = torch.from_numpy(x)
    values, argmax = native.max_pool(x, kernel=2, stride=2, threads=threads)
    held, out = native.MaxPooled(np.empty_like(values), np.empty_like(argmax)), np.empty_like(x)
    pooled, flat = torch.nn.functional.max_pool2d(tensor, 2, 2, return_indices=True)
    pooling = {
        "ours": lambda: native.max_pool(x, kernel=2, stride=2, out=held, threads=threads).values,
        "torchvision": lambda: torch.nn.functional.max_pool2d(tensor, 2, 2, return_indices=True)[0],
    }
    back = {
        "ours": lambda: native.max_unpool(
            values, argmax, kernel=2, stride=2, size=x.shape[2:], out=out, threads=threads
        ),
        "torchvision": lambda: torch.nn.functional.max_unpool2d(pooled, flat, 2, 2),
    }

    def same(calls: Mapping[str, Callable[[], Any]]) -> str:
        return "equal" if np.array_equal(calls["ours"](), calls["torchvision"]().numpy()) else "different values"

    return [
        Case("max pooling with places 64×180×240", "ours", pooling, lambda: same(pooling)),
        Case("max unpooling 64×180×240", "ours", back, lambda: same(back)),
    ]
