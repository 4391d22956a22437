"""The plots of a report as inline SVG: no script, the page's colours, one drawing for wide and one for narrow pages.

Plain SVG and not plotly.js, because the page then weighs some 100 kB instead of 5 MB, prints, follows light and dark,
and stays legible on a phone.
"""

from __future__ import annotations

from collections.abc import Callable
from html import escape

import numpy as np
from markupsafe import Markup

from . import figures, svg
from .schema import Candidate, Latency, Report
from .wording import words_of

WIDE, NARROW = 940, 350
STAGES = ("preprocess", "run", "postprocess")
_COLOURS = 8  # of --series-0 … in the page's style
_MOST_DOTS = 160


def series_of(report: Report) -> dict[str, str]:
    """Candidate id → CSS colour: PyTorch's forms in greys, artefacts in colours; the same in every plot and table."""
    greys = bundles = 0
    colours = {}
    for row in report.candidates:
        if row.kind == "torch":
            colours[row.id] = f"var(--torch-{min(greys, 2)})"
            greys += 1
        else:
            colours[row.id] = f"var(--series-{bundles % _COLOURS})"
            bundles += 1
    return colours


def main_metric(report: Report) -> str:
    """The metric that headline, table and plots speak of: the task's; of masks only where every judged row has it."""
    if report.task != "instance-segmentation":
        return words_of(report.task).metric
    judged = [row.accuracy for row in report.candidates if row.accuracy]
    return "mask_AP" if judged and all(a.metrics.get("mask_AP") is not None for a in judged) else "AP"


def latency_plot(report: Report) -> Markup:
    """One line per candidate: every request a dot, p10 to p90 a bar, p50 and p99 marks."""
    return both(lambda width: _latency(report, width), "Latency of every request, by candidate")


def tradeoff_plot(report: Report) -> Markup:
    """AP over median latency; the upright bar is the interval of the difference to PyTorch eager. Empty without AP."""
    if not _judged(report):
        return Markup()
    return both(lambda width: _tradeoff(report, width), "Accuracy over latency, by candidate")


def stages_plot(report: Report) -> Markup:
    """Share of preprocess, run and postprocess in a request."""
    return both(lambda width: _stages(report, width), "Share of each stage in a request, by candidate")


def _latency(report: Report, width: int) -> str:
    rows = _timed(report)
    colours = series_of(report)
    narrow = width == NARROW
    left = 8 if narrow else _name_width(report)
    top, pitch = 6, 54 if narrow else 40
    bottom = top + pitch * len(rows)
    axis = svg.value_axis([v for _, latency in rows for v in latency.kept_ms()], left + 6, width - 14, zero=True)
    unit = "ms, logarithmic" if axis.log else "ms"
    parts = [svg.columns(axis, axis.ticks(5 if narrow else 9), top, bottom, unit, width)]
    for index, (row, latency) in enumerate(rows):
        middle = top + pitch * index + (34 if narrow else 20)
        emphasis = "strong" if row.id == report.chosen else ""
        p50, p90, p99 = (figures.milliseconds(v) for v in (latency.p50_ms, latency.p90_ms, latency.p99_ms))
        if narrow:
            parts.append(svg.text(left, middle - 18, f"{row.name} · {p50} ms", "start", emphasis))
        else:
            parts.append(svg.text(left - 8, middle + 4, row.name, "end", emphasis))
        hint = f"{row.name}: p50 {p50}, p90 {p90}, p99 {p99} ms, {len(latency.kept_ms())} requests"
        parts.append(_distribution(latency, axis, middle, colours[row.id], hint))
    return svg.drawing(width, bottom + 34, parts)


def _distribution(latency: Latency, axis: svg.Axis, middle: float, colour: str, hint: str) -> str:
    samples = np.sort(latency.kept_ms())
    low, high = np.percentile(samples, [10, 90])
    shown = samples[np.linspace(0, len(samples) - 1, min(len(samples), _MOST_DOTS)).round().astype(int)]
    dots = "".join(svg.circle(axis(v), middle + 9 * _scatter(i), 1.7, "") for i, v in enumerate(shown))
    p50, p99, fill = axis(latency.p50_ms), axis(latency.p99_ms), f'fill="{colour}"'
    return (
        f'<g fill="{colour}" opacity=".35">{dots}</g><g><title>{escape(hint)}</title>'
        + svg.rectangle(axis(low), middle - 4, max(axis(high) - axis(low), 1.5), 8, f'{fill} rx="2" opacity=".55"')
        + svg.rectangle(p50 - 1.5, middle - 11, 3, 22, f'{fill} rx="1"')
        + svg.rectangle(p99 - 0.75, middle - 8, 1.5, 16, fill)
        + "</g>"
    )


def _tradeoff(report: Report, width: int) -> str:
    metric = main_metric(report)
    rows = _judged(report)
    colours = series_of(report)
    narrow = width == NARROW
    height = 300 if narrow else 360
    left, right, top, bottom = 44, width - 14, 12, height - 40
    base = next((ap for row, _, ap in rows if row.id == report.baseline), None)
    limit = base - report.max_drop if base is not None and report.max_drop is not None else None
    spans = {}
    for row, _, ap in rows:
        diff = figures.difference(row, metric)
        spans[row.id] = (base + diff.low, base + diff.high) if diff and base is not None else (ap, ap)
    aps = [
        *(ap for _, _, ap in rows),
        *(v for span in spans.values() for v in span),
        *([] if limit is None else [limit]),
    ]
    margin = max((max(aps) - min(aps)) * 0.12, 0.25)
    y = svg.Axis(min(aps) - margin, max(aps) + margin, bottom, top)
    x = svg.value_axis([p50 for _, p50, _ in rows], left + 16, right - 16, zero=False)
    unit = "p50 of a request, ms" + (", logarithmic" if x.log else "")
    parts = [svg.columns(x, x.ticks(5 if narrow else 8), top, bottom, unit, width)]
    levels = y.ticks(5)
    step = levels[1] - levels[0] if len(levels) > 1 else 1.0
    for level in levels:
        parts.append(svg.line("grid", left, y(level), right, y(level)))
        parts.append(
            svg.text(left - 6, y(level) + 4, f"{level:.{0 if step >= 1 else 1 if step >= 0.1 else 2}f}", "end", "tick")
        )
    if base is not None:
        parts.append(svg.line("reference", left, y(base), right, y(base)))
    if limit is not None:
        parts.append(svg.line("limit", left, y(limit), right, y(limit)))
        text = f"largest drop accepted: {report.max_drop:g} points"
        parts.append(svg.text(right, y(limit) - 5, text, "end", "limit-text"))
    names = []
    for row, p50, ap in rows:
        low, high = (y(v) for v in spans[row.id])
        if low != high:
            path = f"M{x(p50):.1f} {low:.1f}V{high:.1f}M{x(p50) - 4:.1f} {low:.1f}h8M{x(p50) - 4:.1f} {high:.1f}h8"
            parts.append(f'<path d="{path}" stroke="{colours[row.id]}" class="whisker"/>')
        hint = f"{row.name}: {figures.milliseconds(p50)} ms, {ap:.1f} points"
        if diff := figures.difference(row, metric):
            hint += f", difference {figures.interval(diff)}"
        chosen = row.id == report.chosen
        parts.append(svg.circle(x(p50), y(ap), 7 if chosen else 5.5, f'class="point" fill="{colours[row.id]}"', hint))
        names.append(svg.Name(x(p50), y(ap), row.name, "halo strong" if chosen else "halo"))
    if not narrow:
        levels_y = [y(v) for v in (base, limit) if v is not None]
        obstacles: list[svg.Box] = [(left, at - 1, right, at + 1) for at in levels_y]
        obstacles += [(x(p50) - 1, y(spans[row.id][1]), x(p50) + 1, y(spans[row.id][0])) for row, p50, _ in rows]
        return svg.drawing(width, height, parts + svg.place_names(names, (left, top, right, bottom), obstacles))
    at = height + 14.0  # no room for names beside the points: a legend below, fastest first
    for row, _, _ in sorted(rows, key=lambda item: item[1]):
        parts.append(svg.circle(left, at - 4, 5, f'fill="{colours[row.id]}"'))
        parts.append(svg.text(left + 12, at, row.name, "start", "strong" if row.id == report.chosen else ""))
        at += 20
    return svg.drawing(width, at, parts)


def _stages(report: Report, width: int) -> str:
    rows = _timed(report)
    narrow = width == NARROW
    left, right = (8, width - 8) if narrow else (_name_width(report), width - 90)
    top, pitch = 6, 46 if narrow else 32
    parts = []
    for index, (row, latency) in enumerate(rows):
        y = top + pitch * index + (18 if narrow else 4)
        emphasis = "strong" if row.id == report.chosen else ""
        mean = f"{figures.milliseconds(latency.mean_ms)} ms"
        if narrow:
            parts += [
                svg.text(left, y - 5, row.name, "start", emphasis),
                svg.text(width - 8, y - 5, mean, "end", "tick"),
            ]
        else:
            parts.append(svg.text(left - 8, y + 15, row.name, "end", emphasis))
            parts.append(svg.text(right + 8, y + 15, mean, "start", "tick"))
        total = sum(latency.stages_ms.values()) or 1.0
        at = float(left)
        for number, stage in enumerate(STAGES):
            spent = latency.stages_ms.get(stage, 0.0)
            share = f"{100 * spent / total:.0f} %"
            wide = spent / total * (right - left)
            hint = f"{row.name}, {stage}: {figures.milliseconds(spent)} ms, {share}"
            parts.append(svg.rectangle(at, y, max(wide - 1, 0.5), 22, f'fill="var(--stage-{number})"', hint))
            if wide > 40:
                parts.append(svg.text(at + wide / 2, y + 15, share, "middle", f"on-stage-{number}"))
            at += wide
    return svg.drawing(width, top + pitch * len(rows) + 6, parts)


def _timed(report: Report) -> list[tuple[Candidate, Latency]]:
    return [(row, row.latency) for row in report.candidates if row.latency]


def _judged(report: Report) -> list[tuple[Candidate, float, float]]:
    """(row, median ms, AP in points) of the rows that have both."""
    metric = main_metric(report)
    found = []
    for row, latency in _timed(report):
        ap = row.accuracy.metrics.get(metric) if row.accuracy else None
        if ap is not None:
            found.append((row, latency.p50_ms, 100 * ap))
    return found


def _name_width(report: Report) -> int:
    """Pixels that the longest name takes beside a wide plot."""
    return round(min(24 + 7.4 * max(len(row.name) for row, _ in _timed(report)), 0.4 * WIDE))


def _scatter(index: int) -> float:
    """−1…1, spread evenly whatever the count (golden-ratio sequence), the same in every rendering."""
    return 2 * ((index * 0.6180339887498949) % 1) - 1


def both(draw: Callable[[int], str], label: str) -> Markup:
    """The drawing at both widths; the page's style shows the one that fits."""
    pair = "".join(f'<div class="{name}">{draw(width)}</div>' for name, width in (("wide", WIDE), ("narrow", NARROW)))
    return Markup(f'<div class="plot" role="img" aria-label="{escape(label)}">{pair}</div>')
