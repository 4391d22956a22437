"""What plots are drawn with, as strings of SVG: axes with round ticks, text, names placed where they cover nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

Box = tuple[float, float, float, float]
_LIFTS = (0, -13, 13, -20, 20, -30, 30, -44, 44, -58, 58)  # px above and below a point at which its name may stand


@dataclass(frozen=True)
class Axis:
    """Values → pixels, linear or logarithmic."""

    low: float
    high: float
    start: float
    stop: float
    log: bool = False

    def __call__(self, value: float) -> float:
        if self.log:
            share = math.log(max(value, 1e-9) / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.stop - self.start)

    def ticks(self, most: int) -> list[float]:
        """At most so many round values within the axis (of a logarithmic one a few more, where it is short)."""
        if self.log:
            values: list[float] = []
            for steps in ((1, 1.5, 2, 3, 5, 7), (1, 2, 3, 5), (1, 2, 5), (1, 3), (1,)):
                values = [s * 10.0**e for e in range(-4, 8) for s in steps]
                values = [v for v in values if self.low <= v <= self.high * 1.0001]
                if len(values) <= most:
                    break
            return values
        raw = (self.high - self.low) / max(most, 1)
        power = 10.0 ** math.floor(math.log10(raw))
        step = next(s * power for s in (1, 2, 2.5, 5, 10) if s * power >= raw)
        first = math.ceil(self.low / step - 1e-9)
        return [i * step for i in range(first, math.floor(self.high / step + 1e-9) + 1)]


def value_axis(values: Sequence[float], start: float, stop: float, *, zero: bool) -> Axis:
    """An axis around values: logarithmic where they span more than a factor of six, else from zero if asked."""
    low, high = min(values), max(values)
    if low > 0 and high / low > 6:
        return Axis(low / 1.15, high * 1.15, start, stop, log=True)
    if zero:
        return Axis(0.0, high * 1.05 or 1.0, start, stop)
    margin = (high - low) * 0.12 or max(abs(high) * 0.05, 1e-3)
    return Axis(low - margin, high + margin, start, stop)


def columns(axis: Axis, ticks: Sequence[float], top: float, bottom: float, title: str, width: int) -> str:
    """Upright grid lines with their values below, and the axis's title."""
    lines = "".join(line("grid", axis(t), top, axis(t), bottom) for t in ticks)
    values = "".join(text(axis(t), bottom + 15, f"{t:g}" if t < 1000 else f"{t:,.0f}", "middle", "tick") for t in ticks)
    return lines + values + text(width - 8, bottom + 30, title, "end", "tick")


def line(kind: str, x0: float, y0: float, x1: float, y1: float) -> str:
    return f'<line class="{kind}" x1="{x0:.1f}" y1="{y0:.1f}" x2="{x1:.1f}" y2="{y1:.1f}"/>'


def rectangle(x: float, y: float, width: float, height: float, more: str, hint: str = "") -> str:
    title = f"<title>{escape(hint)}</title>" if hint else ""
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" {more}>{title}</rect>'


def circle(x: float, y: float, radius: float, more: str, hint: str = "") -> str:
    title = f"<title>{escape(hint)}</title>" if hint else ""
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}" {more}>{title}</circle>'


def text(x: float, y: float, content: str, anchor: str, kind: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{kind}">{escape(content)}</text>'


def drawing(width: int, height: float, parts: Sequence[str]) -> str:
    return f'<svg viewBox="0 0 {width} {height:.0f}" width="{width}" height="{height:.0f}">{"".join(parts)}</svg>'


@dataclass(frozen=True)
class Name:
    """A name to be written beside the point (x, y)."""

    x: float
    y: float
    text: str
    kind: str


def place_names(names: Sequence[Name], frame: Box, obstacles: Sequence[Box]) -> list[str]:
    """Each name at the place around its point that covers least of other names, points, obstacles and the frame."""
    taken = [(n.x - 8, n.y - 8, n.x + 8, n.y + 8) for n in names] + list(obstacles)
    parts = []
    for name in sorted(names, key=lambda n: n.x):
        width = (7.6 if "strong" in name.kind else 7.1) * len(name.text)  # px, of wide fonts
        places = []
        for lift in _LIFTS:
            y = name.y + lift
            places.append(((name.x + 11, y - 8, name.x + 11 + width, y + 8), "start"))
            places.append(((name.x - 11 - width, y - 8, name.x - 11, y + 8), "end"))
        box, anchor = min(places, key=lambda place: _covered(place[0], taken, frame))
        taken.append(box)
        parts.append(text(box[0] if anchor == "start" else box[2], box[1] + 12, name.text, anchor, name.kind))
    return parts


def _covered(box: Box, taken: Sequence[Box], frame: Box) -> float:
    outside = sum(max(0.0, d) for d in (frame[0] - box[0], box[2] - frame[2], frame[1] - box[1], box[3] - frame[3]))
    return 40 * outside + sum(
        max(0.0, min(box[2], b[2]) - max(box[0], b[0])) * max(0.0, min(box[3], b[3]) - max(box[1], b[1])) for b in taken
    )
