"""The accuracy–latency front of a search as inline SVG: every setting that was measured, the front, the budget."""

from __future__ import annotations

from markupsafe import Markup

from .. import figures, svg
from ..plots import NARROW, both
from .result import SearchResult
from .settings import FP32, Setting
from .trial import Trial

KINDS = ("ranks", "precision", "size", "proposals", "several together")
"""What a point's colour says; --series-0 … of the page's style."""
_DEEPEST = 4  # points are drawn down to so many times the budget, and what loses more at the edge


def kind_of(setting: Setting) -> str:
    """The one knob that a setting turns, or the last of KINDS."""
    turned = [
        name
        for name, is_turned in zip(
            KINDS,
            (bool(setting.ranks), setting.precision != FP32, setting.size is not None, setting.proposals is not None),
            strict=False,
        )
        if is_turned
    ]
    return turned[0] if len(turned) == 1 else KINDS[-1]


def colour_of(setting: Setting) -> str:
    return f"var(--series-{KINDS.index(kind_of(setting))})"


def front_plot(result: SearchResult) -> Markup:
    """Points lost over latency; up and to the left is better."""
    return both(lambda width: _front(result, width), "Points lost over latency, by setting")


def _front(result: SearchResult, width: int) -> str:
    narrow = width == NARROW
    height = 320 if narrow else 400
    left, right, top, bottom = 52, width - 14, 14, height - 40
    shown = [t for t in result.trials if t.drop is not None and t.faster is not None]
    budget = result.options.searched_drop
    drops = [t.drop or 0.0 for t in shown]
    deepest = max(_DEEPEST * budget, 2.0)
    low = min(max([*drops, budget]), deepest)
    high = min([*drops, 0.0])
    margin = max(0.08 * (low - high), 0.1)
    y = svg.Axis(-low - margin, -high + margin, bottom, top)
    x = svg.value_axis([result.base_ms, *(result.base_ms / t.ratio for t in shown)], left + 16, right - 16, zero=False)
    unit = "p50 of a request, ms" + (", logarithmic" if x.log else "")
    parts = [svg.columns(x, x.ticks(5 if narrow else 8), top, bottom, unit, width)]
    for level in y.ticks(6):
        parts.append(svg.line("grid", left, y(level), right, y(level)))
        parts.append(svg.text(left - 6, y(level) + 4, figures.points(level, sign=True), "end", "tick"))
    parts.append(svg.line("reference", left, y(0), right, y(0)))
    parts.append(svg.line("limit", left, y(-budget), right, y(-budget)))
    parts.append(svg.text(right, y(-budget) - 5, f"budget of the search: {budget:g} points", "end", "limit-text"))

    def place(trial: Trial) -> tuple[float, float]:
        return x(result.base_ms / trial.ratio), y(-min(trial.drop or 0.0, low + 0.6 * margin))

    steps = [(x(result.base_ms), y(0)), *map(place, result.front())]
    path = "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in steps)
    parts.append(f'<path d="{path}" stroke="var(--torch-1)" class="whisker"/>')
    names = [svg.Name(x(result.base_ms), y(0), "fp32, as it is", "halo")]
    parts.append(svg.circle(x(result.base_ms), y(0), 5.5, 'class="point" fill="var(--torch-0)"', "the base"))
    for trial in shown:
        at = place(trial)
        chosen = trial.setting == result.chosen.setting
        parts.append(
            svg.circle(*at, 7 if chosen else 5, f'class="point" fill="{colour_of(trial.setting)}"', _hint(trial))
        )
        if chosen:
            names.append(svg.Name(*at, f"found: {trial.setting}", "halo strong"))
        elif result.by_hand is not None and trial.setting == result.by_hand.setting:
            names.append(svg.Name(*at, f"by hand: {trial.setting}", "halo"))
    if narrow:  # no room beside the points: the table says which is which
        return svg.drawing(width, height, parts)
    obstacles: list[svg.Box] = [(left, y(v) - 1, right, y(v) + 1) for v in (0.0, -budget)]
    return svg.drawing(width, height, parts + svg.place_names(names, (left, top, right, bottom), obstacles))


def _hint(trial: Trial) -> str:
    lost = figures.points(-(trial.drop or 0.0), sign=True)
    return f"{trial.setting}: {figures.times(trial.faster)} as fast as the base, {lost} points"
