"""One image of `shapes`: a photo as background, shapes placed, filled and painted over it, and what stays visible."""

from __future__ import annotations

import colorsys
import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from .outlines import POLYGONS, signed_distance
from .photos import PHOTOS, photo

EMPTY_SHARE = 1 / 12  # images with nothing in them
MOST_SHAPES = 6
DIAMETERS = (0.2, 0.5)  # of the image's shorter side
MOST_HIDDEN = 0.6  # of a shape, by later ones or the border: a shape cannot be told from a smaller piece
LEAST_VISIBLE_PX = 40
TRIES = 12


@dataclass(frozen=True)
class _Placed:
    kind: str
    x: float
    y: float
    radius: float
    angle: float
    window: tuple[slice, slice]  # rows and columns of the canvas that the shape and its shadow can touch
    dx: np.ndarray  # float32 [h, w]: pixel centres of the window relative to (x, y)
    dy: np.ndarray
    distance: np.ndarray  # float32 [h, w]: signed distance to the outline
    mask: np.ndarray  # bool [H, W]: the whole shape, before later ones hide some of it


def draw_scene(
    rng: np.random.Generator, size: tuple[int, int], split: str, turn: float = 180, most: int = MOST_SHAPES
) -> tuple[np.ndarray, list[tuple[str, np.ndarray]]]:
    """RGB uint8 [H, W, 3] and, from back to front, each shape's name with its visible mask, bool [H, W].

    turn: degrees by which a shape leans at most to either side. most: shapes in one image.
    """
    canvas = _background(rng, size, split)
    count = 0 if rng.random() < EMPTY_SHARE else int(rng.integers(1, most + 1))
    placed: list[_Placed] = []
    visible: list[np.ndarray] = []
    for _ in range(count):
        shape = _place(rng, size, math.radians(turn), placed, visible)
        if shape is None:
            continue
        visible = [mask & ~shape.mask for mask in visible] + [shape.mask]
        placed.append(shape)
        _paint(rng, canvas, shape)
    pixels = np.clip(np.rint(canvas * 255), 0, 255).astype(np.uint8)
    return pixels, [(shape.kind, mask) for shape, mask in zip(placed, visible, strict=True)]


def _background(rng: np.random.Generator, size: tuple[int, int], split: str) -> np.ndarray:
    """A random part of one of the split's photos, float32 [H, W, 3] in 0..1, perhaps mirrored, darker or lighter."""
    height, width = size
    image = photo(PHOTOS[split][int(rng.integers(len(PHOTOS[split])))])
    scale = min(image.width / width, image.height / height) * rng.uniform(0.5, 1.0)
    w, h = scale * width, scale * height
    left, top = rng.uniform(0, image.width - w), rng.uniform(0, image.height - h)
    part = image.resize((width, height), Image.Resampling.BILINEAR, box=(left, top, left + w, top + h))
    pixels = np.asarray(part, dtype=np.float32) / 255
    if rng.random() < 0.5:
        pixels = pixels[:, ::-1]
    return np.clip((pixels - 0.5) * rng.uniform(0.6, 1.0) + rng.uniform(0.4, 0.6), 0, 1).astype(np.float32)


def _place(
    rng: np.random.Generator,
    size: tuple[int, int],
    turn: float,
    placed: list[_Placed],
    visible: list[np.ndarray],
) -> _Placed | None:
    """A shape that leaves enough of itself and of every earlier one to be seen, or None after some tries."""
    height, width = size
    kind = list(POLYGONS)[int(rng.integers(len(POLYGONS)))]
    for _ in range(TRIES):
        low, high = DIAMETERS
        radius = 0.5 * min(size) * low * (high / low) ** rng.random()
        margin = 0.6 * radius
        x, y = rng.uniform(margin, width - margin), rng.uniform(margin, height - margin)
        angle = rng.uniform(-turn, turn)
        reach = 1.35 * radius + 3
        rows = slice(max(0, int(y - reach)), min(height, int(y + reach) + 1))
        columns = slice(max(0, int(x - reach)), min(width, int(x + reach) + 1))
        dy, dx = np.mgrid[rows, columns].astype(np.float32)
        dx, dy = dx + np.float32(0.5 - x), dy + np.float32(0.5 - y)
        distance = signed_distance(kind, dx, dy, radius, angle)
        inside = distance < 0
        if np.count_nonzero(inside) < _least_visible(kind, radius):
            continue
        remain = (np.count_nonzero(seen) - np.count_nonzero(seen[rows, columns] & inside) for seen in visible)
        if all(left >= _least_visible(p.kind, p.radius) for left, p in zip(remain, placed, strict=True)):
            mask = np.zeros(size, dtype=bool)
            mask[rows, columns] = inside
            return _Placed(kind, x, y, radius, angle, (rows, columns), dx, dy, distance, mask)
    return None


def _least_visible(kind: str, radius: float) -> float:
    """Area in px² that must stay visible of a shape (the whole by the shoelace formula)."""
    points = POLYGONS[kind]
    area = math.pi
    if points is not None:
        pairs = zip(points, points[1:] + points[:1], strict=True)
        area = abs(sum(ax * by - bx * ay for (ax, ay), (bx, by) in pairs)) / 2
    return max(LEAST_VISIBLE_PX, (1 - MOST_HIDDEN) * area * radius * radius)


def _paint(rng: np.random.Generator, canvas: np.ndarray, shape: _Placed) -> None:
    """Shadow, filling and rim, with smooth edges, in place."""
    window, x, y, distance = canvas[shape.window], shape.dx, shape.dy, shape.distance
    if rng.random() < 0.6:
        shift, blur = np.float32(0.12 * shape.radius), np.float32(0.15 * shape.radius + 1)
        away = signed_distance(shape.kind, x - shift, y - shift, shape.radius, shape.angle)
        window *= (1 - 0.5 * np.clip(0.5 - away / blur, 0, 1))[..., None]

    first, second = _colours(rng, window[distance < 0].mean(axis=0))
    mix = _texture(rng, x, y, shape.radius)[..., None]
    fill = first + (second - first) * mix
    light = 1 + 0.18 * (-x - y) / np.float32(shape.radius)  # as if lit from the upper left
    fill = fill * light[..., None]
    if rng.random() < 0.7:
        rim = max(1.2, 0.06 * shape.radius)
        shade = np.float32(0.35) * first if rng.random() < 0.5 else 1 - np.float32(0.25) * (1 - first)
        on_rim = np.clip(distance + np.float32(rim), 0, 1)[..., None]
        fill = fill + (shade - fill) * on_rim
    cover = np.clip(0.5 - distance, 0, 1)[..., None]
    window += (np.clip(fill, 0, 1) - window) * cover


def _colours(rng: np.random.Generator, behind: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Two colours for a filling; the one of eight random pairs that stands out best from the mean colour behind it."""
    best, best_contrast = None, -1.0
    for _ in range(8):
        hue, saturation, value = rng.random(), rng.uniform(0.55, 1.0), rng.uniform(0.45, 1.0)
        other = (
            (hue + rng.uniform(-0.12, 0.12)) % 1.0,
            saturation * rng.uniform(0.5, 1.0),
            value * rng.uniform(0.5, 0.9),
        )
        pair = (
            np.array(colorsys.hsv_to_rgb(hue, saturation, value), dtype=np.float32),
            np.array(colorsys.hsv_to_rgb(*other), dtype=np.float32),
        )
        contrast = float(np.linalg.norm((pair[0] + pair[1]) / 2 - behind))
        if contrast > best_contrast:
            best, best_contrast = pair, contrast
        if contrast > 0.5:
            break
    assert best is not None  # eight tries were made
    return best


def _texture(rng: np.random.Generator, x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    """How the two colours mix at each point, float32 0..1: a gradient, arcs, stripes, checks or clouds."""
    turn = rng.uniform(0, 2 * math.pi)
    c, s = np.float32(math.cos(turn) / radius), np.float32(math.sin(turn) / radius)
    u, v = c * x + s * y, c * y - s * x  # about -1..1
    frequency = np.float32(math.pi * rng.uniform(2.0, 4.5))
    kind = int(rng.integers(5))
    if kind == 0:
        return np.clip(0.5 + 0.5 * u, 0, 1)
    if kind == 1:  # around a point outside: rings within a square would look like a circle on it
        return np.clip(0.5 + np.sin(frequency * np.hypot(u + 1.5, v)) * 2, 0, 1)
    if kind == 2:
        return np.clip(0.5 + np.sin(frequency * u) * 2, 0, 1)
    if kind == 3:
        return np.clip(0.5 + np.sin(frequency * u) * np.sin(frequency * v) * 4, 0, 1)
    grid = rng.random((9, 9), dtype=np.float32)
    return _smooth(grid, (u + 1.5) * (8 / 3), (v + 1.5) * (8 / 3))


def _smooth(grid: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Bilinear look-up of grid [n, n] at float positions, clamped."""
    last = grid.shape[0] - 1
    x, y = np.clip(x, 0, last - 1e-3), np.clip(y, 0, last - 1e-3)
    column, row = x.astype(np.intp), y.astype(np.intp)
    fx, fy = x - column, y - row
    top = grid[row, column] * (1 - fx) + grid[row, column + 1] * fx
    bottom = grid[row + 1, column] * (1 - fx) + grid[row + 1, column + 1] * fx
    return (top * (1 - fy) + bottom * fy).astype(np.float32)
