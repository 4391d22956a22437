"""From what a bench measured to its `Report`: rows, headline, notes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path

from regionrt.train.data import DetectionData

from . import figures
from .candidates import Entry
from .fresh import HOW
from .headline import NOT_QUIET
from .latency import Timed, speedup
from .options import BenchOptions
from .plots import main_metric
from .schema import FORMAT, Accuracy, Candidate, DataFacts, Footprint, Report, Shares
from .torch_forms import EAGER_ID


@dataclass(frozen=True)
class Measured:
    """Everything that one bench found. `data_name` and `data` are None where accuracy was not measured."""

    task: str
    model: str
    labels: tuple[str, ...]
    entries: Sequence[Entry]
    best_torch: str | None
    timed: Timed
    shares: Mapping[str, Shares]
    accuracy: Mapping[str, Accuracy]
    data_name: str | None
    data: DetectionData | None
    photos: str
    environment: dict[str, dict[str, str]]
    notes: Sequence[str]


def assemble(found: Measured, options: BenchOptions) -> Report:
    """The report without pictures, verification and commands."""
    rows = tuple(_candidate(entry, found) for entry in found.entries)
    data = _data_facts(found.data_name, found.data, found.accuracy) if found.data_name and found.data else None
    timed = found.timed.latencies
    report = Report(
        format=FORMAT,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds").replace("+00:00", "Z"),
        title=_title(found.model, data, rows),
        task=found.task,
        model=found.model,
        labels=found.labels,
        data=data,
        accuracy_note=_accuracy_note(found),
        latency_images=f"{found.photos}, {found.timed.rounds} rounds" if timed else "",
        score_shown=options.score,
        max_drop=options.max_drop,
        baseline=EAGER_ID if EAGER_ID in timed else None,
        best_torch=found.best_torch if found.best_torch in timed else None,
        chosen=None,
        candidates=rows,
        verification=None,
        environment=found.environment,
        commands=(),
        notes=(*found.notes, *_noise(found.timed)),
        pictures=(),
    )
    return replace(report, chosen=_chosen(report))


def _candidate(entry: Entry, found: Measured) -> Candidate:
    timed, best = found.timed.latencies, found.best_torch
    latency, eager, best_latency = timed.get(entry.id), timed.get(EAGER_ID), timed.get(best or "")
    over_eager = over_best = None
    if latency and eager and entry.id != EAGER_ID:
        over_eager = speedup(eager, latency)
    if latency and best_latency and entry.id != best:
        over_best = speedup(best_latency, latency)
    disturbed = found.timed.disturbances.get(entry.id, "")
    return Candidate(
        id=entry.id,
        name=entry.name,
        kind=entry.kind,
        backend=entry.backend,
        form=entry.form,
        precision=entry.precision,
        bundle=entry.bundle,
        status="measured" if latency else "not run",
        reason=entry.reason,
        notes=(*entry.notes, disturbed) if disturbed else tuple(entry.notes),
        latency=latency,
        shares=found.shares.get(entry.id),
        speedup_over_eager=over_eager,
        speedup_over_best_torch=over_best,
        accuracy=found.accuracy.get(entry.id),
        footprint=_footprint(entry),
    )


def _footprint(entry: Entry) -> Footprint:
    fresh = entry.fresh or {}
    if "failed" in fresh:
        how = f"{entry.name}: load time and memory could not be measured ({fresh['failed']})."
    else:
        how = HOW if fresh else ""
    return Footprint(
        size_bytes=entry.size_bytes,
        load_s=fresh.get("load_s"),
        first_request_s=fresh.get("first_request_s"),
        peak_memory_bytes=fresh.get("peak_memory_bytes"),
        build_s=entry.build_s,
        how=how,
    )


def _chosen(report: Report) -> str | None:
    """The headline's artefact: the fastest within the accuracy contract; the fastest of all if none is within."""
    rows = [(row.latency.p50_ms, row) for row in report.candidates if row.kind == "bundle" and row.latency]
    if report.max_drop is not None:
        metric = main_metric(report)
        kept = [(p50, r) for p50, r in rows if (d := figures.difference(r, metric)) and d.points >= -report.max_drop]
        rows = kept or rows
    return min(rows, key=lambda item: item[0])[1].id if rows else None


def _title(model: str, data: DataFacts | None, rows: Sequence[Candidate]) -> str:
    artefacts = sum(1 for row in rows if row.kind == "bundle")
    parts = ["PyTorch"] if any(row.kind == "torch" for row in rows) else []
    if artefacts:
        parts.append(f"{artefacts} artefact{'' if artefacts == 1 else 's'}")
    where = f" on {data.name.partition(':')[0]}" if data else ""  # `shapes:train=400,…`: the subtitle has it whole
    return f"{model}{where}: {' and '.join(parts)}"


def _accuracy_note(found: Measured) -> str:
    if found.accuracy:
        return ""
    if found.data is None:
        return "Accuracy was not measured: no data was given."
    return "Accuracy was not measured: no candidate could be run."


def _data_facts(name: str, data: DetectionData, accuracy: Mapping[str, Accuracy]) -> DataFacts | None:
    judged = next(iter(accuracy.values()), None)
    if judged is None:
        return None
    objects = sum(int(values.get("objects") or 0) for values in judged.per_class.values())
    shown = name if name.startswith("shapes") else Path(name).absolute().name
    dropped = {reason: int(count) for reason, count in data.dropped.items()}
    classes = sum(name != "__background__" for name in data.labels)
    return DataFacts(shown, data.split, judged.images, objects, classes, data.has_masks, dropped)


def _noise(timed: Timed) -> list[str]:
    if not timed.noisy:
        return []
    return [
        f"{NOT_QUIET} while latency was measured ({len(timed.noisy)} of {len(timed.latencies)} candidates): read "
        "ratios with care, p90 and p99 more so. All ran in turn, but threads that spin while they wait for each other, "
        "as PyTorch's do, lose far more to heavy load than an engine's. Measure again when nothing else runs."
    ]
