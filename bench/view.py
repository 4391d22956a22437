"""The tables that the page and the Markdown show, formatted from a `Report`; the templates only place them."""

from __future__ import annotations

from typing import Any

from . import figures, plots
from .headline import lead, metric_label, subtitle, tiles
from .schema import Candidate, Report, Verification
from .stage_shares import AFTER, REST
from .wording import words_of


def view(report: Report) -> dict[str, Any]:
    """The variables of both templates."""
    colours = plots.series_of(report)
    metric = plots.main_metric(report)
    judged = any(row.accuracy for row in report.candidates)
    batches = sorted({int(b) for row in report.candidates if row.latency for b in row.latency.images_per_second} - {1})
    return {
        "report": report,
        "subtitle": subtitle(report),
        "lead": lead(report),
        "tiles": tiles(report),
        "judged": judged,
        "metric_name": metric_label(metric),
        "batches": batches,
        "rows": [_row(row, report, colours[row.id], metric, batches, judged) for row in report.candidates],
        "span_unrun": 6 + len(batches) + (2 if judged else 0),
        "measured": any(row.latency for row in report.candidates),
        "table_caption": _table_caption(report),
        "cost_caption": _cost_caption(report),
        "latency_caption": f"Timed on {report.latency_images}." if report.latency_images else "",
        "stages": plots.STAGES,
        "steps": _steps(report),
        "per_class": _per_class(report, words_of(report.task).per_class if metric == "mIoU" else metric),
        "metrics": _metrics(report),
        "verification": [_verified(verdict, report.task) for verdict in report.verification or ()],
        "pictures": _pictures(report, colours),
    }


def _row(row: Candidate, report: Report, colour: str, metric: str, batches: list[int], judged: bool) -> dict[str, Any]:
    latency, cells, shares = row.latency, [], []
    if latency:
        cells = [figures.milliseconds(v) for v in (latency.p50_ms, latency.p90_ms, latency.p99_ms)]
        speeds = [latency.images_per_second.get(str(b)) for b in (1, *batches)]
        cells += [figures.significant(v) if v is not None else figures.NONE for v in speeds]
        is_eager, is_best = row.id == report.baseline, row.id == report.best_torch
        cells += [
            "1.00×" if is_eager else figures.times(row.speedup_over_eager),
            "1.00×" if is_best else figures.times(row.speedup_over_best_torch),
        ]
        if judged:
            ap = figures.points(row.accuracy.metrics.get(metric)) if row.accuracy else figures.NONE
            cells += [
                ap,
                "reference" if is_eager and row.accuracy else figures.interval(figures.difference(row, metric)),
            ]
        total = sum(latency.stages_ms.values()) or 1.0
        shares = [f"{100 * latency.stages_ms.get(stage, 0.0) / total:.0f} %" for stage in plots.STAGES]
    foot = row.footprint
    return {
        "id": row.id,
        "name": row.name,
        "detail": ""
        if row.bundle and row.name.startswith(row.bundle)
        else row.bundle or f"{row.form}, {row.precision}",
        "colour": colour,
        "ran": latency is not None,
        "reason": row.reason or "not run",
        "cells": cells,
        "costs": any(v is not None for v in (foot.size_bytes, foot.load_s, foot.peak_memory_bytes, foot.build_s)),
        "cost": [
            figures.size(foot.size_bytes),
            figures.seconds(foot.load_s),
            figures.seconds(foot.first_request_s),
            figures.size(foot.peak_memory_bytes),
            figures.seconds(foot.build_s),
        ],
        "shares": shares,
        "mean": figures.milliseconds(latency.mean_ms) if latency else figures.NONE,
        "notes": row.notes,
    }


def _steps(report: Report) -> dict[str, Any] | None:
    """Milliseconds by step, one column for each staged artefact; steps in the order in which they run."""
    told = [(row, row.shares) for row in report.candidates if row.shares]
    if not told:
        return None
    behind = (REST, AFTER)
    names = dict.fromkeys(name for _, shares in told for name in shares.steps_ms if name not in behind)
    dense = {name for _, shares in told for name in shares.dense}
    lines = [
        {
            "label": name,
            "dense": name in dense,
            "cells": [figures.milliseconds(shares.steps_ms.get(name)) for _, shares in told],
        }
        for name in (*names, *behind)
    ]
    return {
        "names": [row.name for row, _ in told],
        "rows": lines,
        "not_dense": [f"{100 * shares.not_dense:.1f} %" for _, shares in told],
    }


def _table_caption(report: Report) -> str:
    parts = [
        "All candidates ran in one process, request by request in turn, on the same photos; "
        "a request is everything from the decoded photo to what was found in it."
    ]
    if any(row.speedup_over_eager for row in report.candidates):
        parts.append("Faster than PyTorch: ratio of the medians.")
    if any(row.accuracy and row.accuracy.differences for row in report.candidates):
        diff = next(d for row in report.candidates if row.accuracy for d in row.accuracy.differences)
        parts.append(
            "Difference to PyTorch eager on the same images, in points, with a paired bootstrap interval "
            f"({diff.resamples:,} resamples of the images)."
        )
    if report.accuracy_note:
        parts.append(report.accuracy_note)
    return " ".join(parts)


def _cost_caption(report: Report) -> str:
    how = " ".join(dict.fromkeys(row.footprint.how for row in report.candidates if row.latency and row.footprint.how))
    return f"Size counts every file that the artefact needs. {how}"


def _per_class(report: Report, metric: str) -> dict[str, Any] | None:
    rows = [row for row in report.candidates if row.accuracy and row.accuracy.per_class]
    if not rows:
        return None
    reference = next((row.accuracy for row in rows if row.id == report.baseline), None)
    names = dict.fromkeys(name for row in rows if row.accuracy for name in row.accuracy.per_class)
    lines = []
    for name in names:
        base = reference.per_class.get(name, {}).get(metric) if reference else None
        cells = []
        for row in rows:
            value = row.accuracy.per_class.get(name, {}).get(metric) if row.accuracy else None
            delta = (
                100 * (value - base) if value is not None and base is not None and row.id != report.baseline else None
            )
            cells.append(
                {
                    "text": figures.points(value),
                    "share": f"{100 * max(value or 0.0, 0.0):.0f}",
                    "delta": "" if delta is None else _signed(delta),
                    "tone": "" if delta is None or abs(delta) < 0.5 else "good" if delta > 0 else "bad",
                }
            )
        lines.append({"label": name, "cells": cells})
    return {"metric": metric_label(metric), "names": [row.name for row in rows], "rows": lines}


def _signed(value: float) -> str:
    """+0.3, −0.2, 0.0."""
    text = f"{value:+.1f}".replace("-", "−")
    return "0.0" if text in ("+0.0", "−0.0") else text


def _metrics(report: Report) -> dict[str, Any] | None:
    rows = [(row, row.accuracy) for row in report.candidates if row.accuracy]
    if not rows:
        return None
    names = dict.fromkeys(name for _, accuracy in rows for name in accuracy.metrics)
    names = {name: None for name in names if any(accuracy.metrics.get(name) is not None for _, accuracy in rows)}
    lines = [
        {"label": row.name, "cells": [figures.points(accuracy.metrics.get(name)) for name in names]}
        for row, accuracy in rows
    ]
    return {"names": [metric_label(name) for name in names], "rows": lines}


def _verified(verdict: Verification, task: str) -> dict[str, Any]:
    lines = []
    for line in verdict.stages:
        share = 100 * line.error / line.limit if line.error is not None and line.limit else None
        lines.append(
            {
                "stage": line.stage,
                "value": line.value,
                "unit": line.unit,
                "error": _small(line.error),
                "absolute": _small(line.max_abs_error),
                "limit": _small(line.limit),
                "passed": line.passed,
                "image": line.image or figures.NONE,
                "share": figures.NONE if share is None else "< 1 %" if 0 < share < 1 else f"{share:,.0f} %",
            }
        )
    failed = [line for line in verdict.stages if not line.passed]
    images = f" on {verdict.images} images" if verdict.images else ""
    if verdict.passed and not failed:
        summary = f"All {len(verdict.stages)} values agree with PyTorch within their limits{images}, "
        summary += "each part of the graph fed with PyTorch's own inputs."
    else:
        summary = f"Differs from PyTorch{images}, first at {verdict.first_difference or failed[0].stage}."
    for found in verdict.end_to_end:
        of = max(found.eager, found.artefact)
        summary += f" End to end at batch {found.batch}: {found.matched:,} of {of:,} {words_of(task).agreed} agree"
        summary += f" ({100 * found.share:.4g} %)."
    return {"artefact": verdict.artefact, "lines": lines, "summary": summary, "passed": verdict.passed and not failed}


def _count(number: int, what: str) -> str:
    """1 detection, 3 detections, 2 classes."""
    plural = "es" if what.endswith(("s", "x")) else "s"
    return f"{number} {what}{'' if number == 1 else plural}"


def _small(value: float | None) -> str:
    """An error: 0, 3.1e-06, 0.012, 4.5."""
    return figures.NONE if value is None else "0" if value == 0 else f"{value:.2g}"


def _pictures(report: Report, colours: dict[str, str]) -> list[dict[str, Any]]:
    shown = []
    for number, picture in enumerate(report.pictures):
        panels = []
        for place, panel in enumerate(picture.panels):
            row = report.candidate(panel.candidate)
            panels.append(
                {
                    "name": row.name if row else panel.candidate,
                    "colour": colours.get(panel.candidate, "var(--torch-0)"),
                    "count": _count(panel.detections, words_of(report.task).found),
                    "width": panel.width,
                    "height": panel.height,
                    "jpeg": panel.jpeg,
                    "file": f"pictures/{number + 1:02d}-{place + 1}.jpg",
                }
            )
        shown.append({"image": picture.image, "why": picture.why, "panels": panels})
    return shown
