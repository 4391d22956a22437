"""Where a dense net's windows lie on the canvas, at which scales, and how each is cut out: OverFeat's geometry."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .errors import ModelError

SCALES = 6  # the paper's number (arXiv:1312.6229, section 3.3 and table 5)


@dataclass(frozen=True)
class Scale:
    """The canvas at one scale. size: (height, width) in px that it is resized to; rows, columns: of its windows."""

    size: tuple[int, int]
    rows: int
    columns: int


@dataclass(frozen=True)
class Layout:
    """All windows of a canvas: float32 [Q, 4], xyxy in canvas px, scale by scale, row by row."""

    scales: tuple[Scale, ...]
    windows: Tensor


@dataclass(frozen=True)
class Sliding:
    """Windows of `side` px every `step` px, with `margin` px around them that the net sees too."""

    side: int
    step: int
    margin: int

    def layout(self, canvas: tuple[int, int], sides: Sequence[float]) -> Layout:
        """Of windows of each of `sides`, in canvas px."""
        scales = tuple(self.scale(canvas, side) for side in sides)
        return Layout(scales, torch.cat([self.windows(canvas, scale) for scale in scales]))

    def scale(self, canvas: tuple[int, int], window: float) -> Scale:
        """The scale at which windows are `window` canvas px a side: each side of the canvas the nearest that the
        windows fill without a rest. ModelError for windows that are larger than the canvas, or a hundredth of it."""
        if not max(canvas) / 100 <= window <= min(canvas):
            raise ModelError(
                f"windows of {window:g} px on a canvas of {canvas[0]}x{canvas[1]} px: give {max(canvas) / 100:g} to "
                f"{min(canvas)} px"
            )
        counts = [round((side * self.side / window - self.side) / self.step) + 1 for side in canvas]
        height, width = (self.side + self.step * (count - 1) for count in counts)
        return Scale((height, width), *counts)

    def windows(self, canvas: tuple[int, int], scale: Scale) -> Tensor:
        """xyxy in canvas px of all windows of a scale, row by row: float32 [rows · columns, 4]."""
        edges = []
        for side, resized, count in zip(canvas, scale.size, (scale.rows, scale.columns), strict=True):
            low = torch.arange(count, dtype=torch.float64) * self.step
            edges.append((low * side / resized, (low + self.side) * side / resized))
        (top, bottom), (left, right) = edges
        shape = (scale.rows, scale.columns)
        sides = [left[None], top[:, None], right[None], bottom[:, None]]
        return torch.stack([side.expand(shape) for side in sides], -1).reshape(-1, 4).float()

    def resized(self, x: Tensor, scale: Scale) -> Tensor:
        """Normalised canvas [N, 3, H, W] at a scale, with its margin of zeros (the mean colour) around."""
        if tuple(x.shape[2:]) != scale.size:
            x = F.interpolate(x, size=scale.size, mode="bilinear", align_corners=False)
        return F.pad(x, [self.margin] * 4)

    def crops(self, x: Tensor, scale: Scale, places: Sequence[int] | None = None) -> Tensor:
        """What the net sees of each window (of those at `places`, row by row) of one canvas [3, H, W].

        [Q, 3, side + 2·margin, side + 2·margin].
        """
        whole = self.resized(x[None], scale)[0]
        seen = self.side + 2 * self.margin
        wanted = range(scale.rows * scale.columns) if places is None else places
        corners = [(place // scale.columns * self.step, place % scale.columns * self.step) for place in wanted]
        return torch.stack([whole[:, y : y + seen, x_ : x_ + seen] for y, x_ in corners])


def usual_windows(canvas: tuple[int, int]) -> tuple[float, ...]:
    """Six sides of windows in canvas px, each √2 of the next, the largest half of the canvas's shorter side."""
    return tuple(min(canvas) / 2 ** (1 + k / 2) for k in reversed(range(SCALES)))
