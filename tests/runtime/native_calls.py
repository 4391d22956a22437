"""One call of each native op, with arguments that reach its corners."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from regionrt.runtime import native

VARIANTS = native.usable_variants()
Arrays = tuple[np.ndarray, ...]


def maps(dtype: type = np.float32, channels: int = 37, images: int = 2) -> list[np.ndarray]:
    """Channels last; 37 is two vectors of 16 lanes and a rest."""
    rng = np.random.default_rng(0)
    return [rng.standard_normal((images, h, w, channels), np.float32).astype(dtype) for h, w in ((40, 50), (20, 25))]


def rois(images: int = 2, rows: int = 23) -> Arrays:
    rng = np.random.default_rng(1)
    center, half = rng.uniform(-10, 210, (images, rows, 2)), np.exp(rng.uniform(0, 4.5, (images, rows, 2)))
    boxes = np.concatenate([center - half, center + half], -1).astype(np.float32)
    return boxes, np.array([rows, 11][:images], np.int32)


def align(features: list[np.ndarray] | None = None, **options) -> np.ndarray:
    settings = {"spatial_scales": [1 / 4, 1 / 8], "output_size": (3, 5), "canonical_scale": 60.0, "canonical_level": 2}
    return native.roi_align(features or maps(), *rois(), **settings | options)


def pool(feature: np.ndarray | None = None, **options) -> np.ndarray:
    settings = {"spatial_scale": 1 / 4, "output_size": (3, 5)}
    return native.roi_pool(maps()[0] if feature is None else feature, *rois(), **settings | options)


def pyramid(feature: np.ndarray | None = None, **options) -> np.ndarray:
    settings = {"spatial_scale": 1 / 4, "bins": (6, 4, 3, 2, 1)}
    return native.pyramid_pool(maps()[0] if feature is None else feature, *rois(), **settings | options)


def crop(images: np.ndarray | None = None, **options) -> np.ndarray:
    settings = {"output_size": (19, 23), "context": 3}
    return native.warp(maps(channels=3)[0] if images is None else images, *rois(), **settings | options)


def crowd(images: int = 2, rows: int = 700, classes: int = 3) -> Arrays:
    rng = np.random.default_rng(2)
    low = rng.uniform(0, 300, (images, rows, 2))
    boxes = np.concatenate([low, low + rng.uniform(5, 90, (images, rows, 2))], -1).astype(np.float32)
    return boxes, rng.integers(-1, classes, (images, rows)).astype(np.int32)


def suppress(**options) -> Arrays:
    return (native.nms(*crowd(), iou_threshold=0.45, **options),)


def rpn(dtype: type = np.float32) -> tuple[list[np.ndarray], ...]:
    """One level so large that only a part of it is sorted, one of fewer anchors than are asked for."""
    rng = np.random.default_rng(3)
    counts = (30_000, 1_500, 40)
    logits = [(rng.normal(0, 2, (2, a)) * 64).round() / 64 for a in counts]  # many ties
    deltas = [rng.normal(0, 0.4, (2, a, 4)) for a in counts]
    anchors = []
    for count in counts:
        center, half = rng.uniform(-20, 420, (count, 2)), rng.uniform(4, 60, (count, 2))
        anchors.append(np.concatenate([center - half, center + half], 1).astype(np.float32))
    return [v.astype(dtype) for v in logits], [v.astype(dtype) for v in deltas], anchors


def propose(dtype: type = np.float32, **options) -> Arrays:
    sizes = np.array([[300, 400], [250, 333]], np.int32)
    settings = {"pre_nms": 300, "post_nms": 200, "iou_threshold": 0.7}
    return tuple(native.proposals(*rpn(dtype), sizes, **settings | options))


def heads(dtype: type = np.float32) -> Arrays:
    rng = np.random.default_rng(4)
    boxes, counts = rois(2, 150)
    logits = rng.normal(0, 2, (2, 150, 22)).astype(dtype)
    return (
        logits,
        rng.normal(0, 1, (2, 150, 88)).astype(dtype),
        boxes,
        counts,
        np.array([[190, 200], [99, 222]], np.int32),
    )


def detect(dtype: type = np.float32, **options) -> Arrays:
    settings = {"score_threshold": 0.05, "iou_threshold": 0.5, "max_detections": 60, "candidates": 900}
    return tuple(native.detections(*heads(dtype), **settings | options))


def slide(dtype: type = np.float32) -> Arrays:
    rng = np.random.default_rng(8)
    low = rng.uniform(0, 150, (150, 2))
    windows = np.concatenate([low, low + 40], 1).astype(np.float32)
    logits = rng.normal(0, 2, (2, 150, 4)).astype(dtype)
    edges = (np.array([0, 0, 1, 1]) + rng.normal(0, 0.1, (2, 150, 4))).astype(dtype)
    return logits, edges, windows, np.array([[190, 200], [99, 222]], np.int32)


def merge(dtype: type = np.float32, **options) -> Arrays:
    settings = {"window_threshold": 0.2, "merge_threshold": 0.7, "score_threshold": 0.1, "max_detections": 60}
    settings |= {"candidates": 200, "class_agnostic": True}
    return tuple(native.merge(*slide(dtype), **settings | options))


def paste(**options) -> Arrays:
    rng = np.random.default_rng(5)
    boxes = rng.uniform(-20, 300, (12, 4)).astype(np.float32)
    return (native.paste_masks(rng.random((12, 28, 28), np.float32), boxes, (260, 333), **options),)


def resize(**options) -> Arrays:
    image = np.random.default_rng(6).integers(0, 256, (211, 307, 3), dtype=np.uint8)
    return (native.resize_bilinear(image, 301, 207, **options),)


def max_pool(**options) -> Arrays:
    x = np.random.default_rng(7).integers(-9, 9, (2, 5, 75, 133)).astype(np.float32)
    x[0, 0, ::3] = np.nan
    return tuple(native.max_pool(x, kernel=2, stride=2, ceil_mode=True, **options))


def unpool(**options) -> Arrays:
    values, argmax = max_pool()
    argmax[0, 1, ::2] += 5
    return (native.max_unpool(values, argmax, kernel=2, stride=2, size=(75, 133), **options),)


OPS: dict[str, Callable[..., Arrays]] = {
    "roi_align": lambda **options: (align(**options),),
    "roi_align max": lambda **options: (align(mode="max", **options),),
    "roi_pool": lambda **options: (pool(**options),),
    "pyramid_pool": lambda **options: (pyramid(**options),),
    "warp": lambda **options: (crop(**options),),
    "nms": suppress,
    "proposals": propose,
    "detections": detect,
    "merge": merge,
    "paste": paste,
    "resize": resize,
    "max_pool": max_pool,
    "max_unpool": unpool,
}
