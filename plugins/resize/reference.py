"""What the resize onto the canvas computes, in plain loops: torch's `interpolate(mode="bilinear", align_corners=False)`
without antialias, of uint8, rounded half to even."""

import numpy as np


def linear_tap(index: int, source: int, target: int) -> tuple[int, int, np.float32]:
    """The two of `source` samples behind sample `index` of `target`: lower, upper, the upper one's weight (float32)."""
    if source == target:
        return index, index, np.float32(0)
    ratio = np.float32(source) / np.float32(target)
    # One rounding, at the end, as torch's kernels have it (they fuse multiply and add).
    position = max(np.float32(np.float64(ratio) * (index + 0.5) - 0.5), np.float32(0))
    lower = min(int(position), source - 1)
    weight = min(max(position - np.float32(lower), np.float32(0)), np.float32(1))
    return lower, min(lower + 1, source - 1), weight


def resize_bilinear(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """uint8 [h, w, C] -> uint8 [height, width, C]; across first, then down, each product and sum rounded to float32."""
    values = image.astype(np.float32)
    out = np.empty((height, width, image.shape[2]), np.uint8)
    for y in range(height):
        top, bottom, down = linear_tap(y, image.shape[0], height)
        for x in range(width):
            left, right, across = linear_tap(x, image.shape[1], width)
            upper = values[top, left] * (1 - across) + values[top, right] * across
            lower = values[bottom, left] * (1 - across) + values[bottom, right] * across
            out[y, x] = np.rint(upper * (1 - down) + lower * down)
    return out
