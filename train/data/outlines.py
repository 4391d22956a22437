"""The outlines of `shapes`: signed distances, from which come exact masks and smooth edges alike."""

from __future__ import annotations

import math

import numpy as np


def _star_points() -> list[tuple[float, float]]:
    radii = (1.0, 0.46)
    return [(radii[k % 2] * math.sin(math.pi * k / 5), -radii[k % 2] * math.cos(math.pi * k / 5)) for k in range(10)]


def _cross_points() -> list[tuple[float, float]]:
    arm = 0.3  # half the width of an arm; the tips then lie at sqrt(1 − arm²), on the unit circle
    tip = math.sqrt(1 - arm * arm)
    quarter = [(arm, arm), (tip, arm), (tip, -arm), (arm, -arm)]
    points = []
    for turn in range(4):
        c, s = round(math.cos(turn * math.pi / 2)), round(math.sin(-turn * math.pi / 2))
        points += [(c * x - s * y, s * x + c * y) for x, y in quarter[:3]]
    return points


POLYGONS: dict[str, list[tuple[float, float]] | None] = {
    "circle": None,
    "square": [(-0.79, -0.79), (0.79, -0.79), (0.79, 0.79), (-0.79, 0.79)],
    "triangle": [(0.0, -1.0), (math.sqrt(0.75), 0.5), (-math.sqrt(0.75), 0.5)],
    "star": _star_points(),
    "cross": _cross_points(),
}
"""Corners in units of the radius, y down; None: the unit circle."""


def signed_distance(kind: str, x: np.ndarray, y: np.ndarray, radius: float, angle: float) -> np.ndarray:
    """Distance in px to the outline, negative inside, for points (x, y) relative to the centre; float32, any shape.

    kind: a key of POLYGONS. radius: px, of the circle around the shape. angle: radians.
    For polygons: distance to the nearest edge, with the sign by counting crossings (even-odd).
    """
    points = POLYGONS[kind]
    if points is None:
        return np.hypot(x, y) - np.float32(radius)
    c, s = radius * math.cos(angle), radius * math.sin(angle)
    corners = [(c * px - s * py, s * px + c * py) for px, py in points]
    nearest = np.full(x.shape, np.inf, dtype=np.float32)
    inside = np.zeros(x.shape, dtype=bool)
    for (ax, ay), (bx, by) in zip(corners, corners[1:] + corners[:1], strict=True):
        ex, ey = bx - ax, by - ay
        wx, wy = x - np.float32(ax), y - np.float32(ay)
        along = np.clip((wx * np.float32(ex) + wy * np.float32(ey)) / np.float32(ex * ex + ey * ey), 0, 1)
        dx, dy = wx - along * np.float32(ex), wy - along * np.float32(ey)
        np.minimum(nearest, dx * dx + dy * dy, out=nearest)
        if ay != by:
            crosses = (y < np.float32(ay)) != (y < np.float32(by))
            inside ^= crosses & (wx < wy * np.float32(ex / ey))
    distance = np.sqrt(nearest)
    return np.where(inside, -distance, distance)
