"""Inputs of the GPU suite: boxes as a detector makes them, and pictures; on any device, the same for the same seed."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate


def scattered_boxes(rng: np.random.Generator, count: int, size: tuple[int, int], least: float = 16) -> np.ndarray:
    """float32 [count, 4], xyxy inside a canvas of `size` (height, width): of all places, of sides from `least` to half
    the canvas, evenly spread on a logarithmic scale, so that every level of a pyramid is read."""
    height, width = size
    center = rng.uniform(0, 1, (count, 2)) * (width, height)
    side = np.exp(rng.uniform(math.log(least), math.log(max(least, min(size) / 1.6)), (count, 2)))
    return _inside(center - side / 2, center + side / 2, size)


def clustered_boxes(
    rng: np.random.Generator, count: int, size: tuple[int, int], classes: int, objects: int = 40
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes [count, 4] around `objects` objects, their scores (falling) and classes 0…classes − 1, as before NMS.

    Most boxes of an object are of its class; a fifth is of any.
    """
    found = scattered_boxes(rng, objects, size, 24)
    of = rng.integers(objects, size=count)
    sides = found[of, 2:] - found[of, :2]
    jitter = rng.normal(0, 0.08, (count, 4)) * np.concatenate([sides, sides], 1)
    boxes = _inside(found[of, :2] + jitter[:, :2], found[of, 2:] + jitter[:, 2:], size)
    labels = rng.integers(classes, size=objects)[of]
    strays = rng.random(count) < 0.2
    labels[strays] = rng.integers(classes, size=int(strays.sum()))
    scores = np.sort(rng.random(count).astype(np.float32))[::-1].copy()
    return boxes, scores, labels.astype(np.int32)


def pictures(count: int, size: tuple[int, int], seed: int, device: str) -> Tensor:
    """uint8 [count, H, W, 3]: a smooth ground, texture, and rectangles of other colours on it."""
    generator = torch.Generator().manual_seed(seed)
    height, width = size
    ground = torch.rand(count, 3, 6, 8, generator=generator)
    texture = torch.rand(count, 3, height // 8, width // 8, generator=generator) * 0.3
    made = interpolate(ground, size, mode="bicubic") + interpolate(texture, size, mode="bilinear")
    for picture in made:
        for _ in range(24):
            box = torch.rand(4, generator=generator)
            tall, wide = int(height * (0.04 + 0.4 * box[0] ** 2)), int(width * (0.04 + 0.4 * box[1] ** 2))
            top, left = int((height - tall) * box[2]), int((width - wide) * box[3])
            colour = torch.rand(3, 1, 1, generator=generator)
            part = picture[:, top : top + tall, left : left + wide]
            part.mul_(0.25).add_(0.75 * colour)
    return (made.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).contiguous().to(device)


def _inside(corner: np.ndarray, opposite: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    height, width = size
    both = np.concatenate([np.minimum(corner, opposite), np.maximum(corner, opposite)], 1).astype(np.float32)
    return np.clip(both, 0, np.array([width, height, width, height], np.float32))
