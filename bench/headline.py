"""The headline of a report: what was gained and what it cost, as a sentence and as a few large figures."""

from __future__ import annotations

from datetime import datetime

from . import figures
from .plots import main_metric
from .schema import Report
from .wording import words_of

METRICS = {
    "AP": "AP50:95",
    "mask_AP": "mask AP50:95",
    "mIoU": "mIoU",
    "localisation": "right class and IoU ≥ 0.5",
    "voc07_AP50": "VOC 2007 AP50 (11 points)",
    "voc_AP50": "VOC AP50 (all points)",
}


NOT_QUIET = "The machine was not quiet"
"""How the note of a report begins whose latencies other load disturbed."""


def metric_label(name: str) -> str:
    """AP50:95, mask AP50, AP small …"""
    if name in METRICS:
        return METRICS[name]
    return name.replace("_", " ")


def lead(report: Report) -> str:
    """The headline as one sentence or two: what was gained, what it cost."""
    row, baseline, best = (report.candidate(i) for i in (report.chosen, report.baseline, report.best_torch))
    if row is None or row.latency is None:
        unrun = sum(1 for c in report.candidates if c.kind == "bundle" and c.status == "not run")
        if unrun:
            return (
                f"No artefact of a bundle was run on this machine ({unrun} built for other machines); "
                "the figures below are PyTorch's."
            )
        return "No bundle was given; the figures below are PyTorch's."
    took = f"{figures.milliseconds(row.latency.p50_ms)} ms"
    if baseline is None or baseline.latency is None or row.speedup_over_eager is None:
        text = f"{row.name} answers a request in {took} (median). "
        text += "No checkpoint was given, so there is no PyTorch to compare with."
    else:
        eager = f"{figures.milliseconds(baseline.latency.p50_ms)} ms"
        text = f"{row.name} answers a request in {took} (median), PyTorch as users run it in {eager}: "
        text += _faster(row.speedup_over_eager.ratio)
        if best and row.speedup_over_best_torch:
            text += (
                f", and {_faster(row.speedup_over_best_torch.ratio)} than PyTorch at its best"
                if best.id != baseline.id
                else ""
            )
        text += "."
    if any(note.startswith(NOT_QUIET) for note in report.notes):
        text += f" {NOT_QUIET}: read these times and their ratio with care."
    if row.accuracy is None:
        return f"{text} {report.accuracy_note}"
    metric = main_metric(report)
    diff = figures.difference(row, metric)
    name, value = metric_label(metric), figures.points(row.accuracy.metrics.get(metric))
    if diff is None:
        return f"{text} {name} is {value} points."
    against = figures.points(baseline.accuracy.metrics.get(metric)) if baseline and baseline.accuracy else figures.NONE
    return f"{text} {name} is {value} points against {against}: {figures.verdict(diff, row.accuracy.images)}."


def _faster(ratio: float) -> str:
    """4.8× faster, or 1.25× slower."""
    return f"{figures.ratio(ratio)}× faster" if ratio >= 1 else f"{figures.ratio(1 / ratio)}× slower"


def subtitle(report: Report) -> str:
    parts = [
        report.model,
        words_of(report.task).results,
    ]
    if report.data:
        parts += [
            f"{report.data.name}, {report.data.split} split",
            f"{report.data.images:,} images, {report.data.objects:,} {words_of(report.task).objects}, "
            f"{report.data.classes} classes",
        ]
    cpu = report.environment.get("machine", {}).get("CPU")
    if cpu:
        parts.append(cpu)
    try:
        parts.append(datetime.fromisoformat(report.created.replace("Z", "+00:00")).strftime("%-d %B %Y"))
    except ValueError:
        parts.append(report.created)
    return " · ".join(p for p in parts if p)


def tiles(report: Report) -> list[dict[str, str]]:
    """The figures that matter, at most four: over eager, over the best form, what it cost in AP, size."""
    metric = main_metric(report)
    row, baseline, best = (report.candidate(i) for i in (report.chosen, report.baseline, report.best_torch))
    shown = row if row and row.latency else None
    found = []
    if shown and shown.speedup_over_eager and baseline and baseline.latency and shown.latency:
        ratio = shown.speedup_over_eager
        detail = f"{figures.change(baseline.latency, shown.latency)}, median request; "
        detail += f"95 %: {figures.ratio(ratio.low)}–{figures.ratio(ratio.high)}×"
        found.append(
            _tile("over PyTorch as users run it", figures.times(ratio), detail, _tone(ratio.low, ratio.high, 1))
        )
    if shown and shown.speedup_over_best_torch and best and best.latency and shown.latency:
        ratio = shown.speedup_over_best_torch
        detail = f"{figures.change(best.latency, shown.latency)}; {best.form}, {best.precision}"
        found.append(_tile("over PyTorch at its best", figures.times(ratio), detail, _tone(ratio.low, ratio.high, 1)))
    if report.accuracy_note:
        found.append(_tile("accuracy", "not measured", report.accuracy_note, "none"))
    elif shown and (diff := figures.difference(shown, metric)):
        detail = f"points; 95 %: {figures.points(diff.low, sign=True)} … {figures.points(diff.high, sign=True)}"
        tone = _tone(diff.low, diff.high, 0)
        if report.max_drop is not None:
            detail += f"; largest drop accepted: {report.max_drop:g}"
            tone = "bad" if diff.points < -report.max_drop else tone if diff.points > 0 else ""
        found.append(_tile(metric_label(metric), figures.points(diff.points, sign=True), detail, tone))
    if shown and shown.footprint.size_bytes is not None:
        reference = baseline.footprint.size_bytes if baseline else None
        detail = f"PyTorch's checkpoint: {figures.size(reference)}" if reference else "on disk"
        found.append(_tile("artefact", figures.size(shown.footprint.size_bytes), detail, ""))
    return found


def _tone(low: float, high: float, neutral: float) -> str:
    """What an interval says about a figure of which more is better: good, bad, or nothing."""
    return "good" if low > neutral else "bad" if high < neutral else ""


def _tile(label: str, value: str, detail: str, tone: str) -> dict[str, str]:
    return {"label": label, "value": value, "detail": detail, "tone": tone}
