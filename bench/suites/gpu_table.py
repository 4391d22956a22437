"""gpu-<name>.json as Markdown, and in a few lines for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from regionrt.bench.figures import ratio, significant

from .gpu_schema import DetectorRow, EngineRow, GpuReport, OpRow

ABOUT_OPS = """\
Microseconds, medians with quartiles. *graph*: many launches over several copies of the inputs, replayed as a CUDA
graph, per launch; *call*: from before a call to its end on the GPU, the host's part included, because the call waits
for the GPU on the way. *floor*: the bytes that must move over the bandwidth of a large copy measured in the same run;
*cache*: the copies of the inputs fit into the L2 cache, so that the floor is none."""
ABOUT_NETS = """\
Milliseconds from a uint8 canvas on the GPU to boxes, scores and labels (masks: probabilities of 28 × 28) on the GPU,
medians with quartiles, whole requests, all rows of a net interleaved. *matched*: share of eager fp32's detections with
the same label and IoU > 0.9. Random weights, calibrated to find as much as a trained net. fp32 is PyTorch's default,
which lets cuDNN compute convolutions in TF32. Ours is kernels and one CUDA graph around dense layers run by torch: no
engine."""

ABOUT_ENGINES = """\
Milliseconds from a uint8 canvas (on the GPU for TensorRT, in the host's memory for ONNX Runtime) to outputs in the
host's memory, medians with quartiles, by the wall clock, each row in a process of its own. *over eager*: how many times
as long PyTorch takes, fp32 and fp16 (`half()`), to outputs that stay on the GPU. *matched*: share of the detections of
PyTorch's eager fp32, or of what is named, with the same label and IoU > 0.9."""


def to_markdown(report: GpuReport) -> str:
    """The whole report; parts without rows say why."""
    facts = report.environment
    software = ", ".join(f"{name} {version}" for name, version in facts["software"].items())
    lines = [f"# {report.device}", "", f"`{report.command}`, {report.seconds_taken:.0f} s. {facts['machine']['GPU']}."]
    lines += [f"{facts['machine']['CPU']}, {facts['machine']['cores']}. {software}."]
    if report.copy_bytes_per_second:
        lines.append(f"A large copy moves {report.copy_bytes_per_second / 1e12:.2f} TB/s (bytes read and written).")
    lines += [*(f"{note}." for note in report.notes), ""]
    for name, title, part in (
        ("correctness", "Correctness", _checks(report)),
        ("ops", "Ops", _ops(report.ops)),
        ("detectors", "Detectors", _detectors(report.detectors)),
        ("engines", "Engines", _engines(report.engines)),
    ):
        lines += [f"## {title}", ""]
        if name in report.skipped:
            lines += [f"Not done, or not to its end: {report.skipped[name]}.", ""]
        lines += [*part, ""]
    return "\n".join(lines)


def to_terminal(report: GpuReport) -> str:
    """The compact table that the command ends with."""
    failed = [check for check in report.correctness if not check.passed]
    lines = [f"{report.device}: {len(report.correctness)} checks, {len(failed)} failed"]
    lines += [
        f"  FAILED {c.op} {c.case} against {c.against}: {c.error} {c.unit}, limit {c.limit} {c.why}" for c in failed
    ]
    if report.copy_bytes_per_second:
        lines.append(f"copy {report.copy_bytes_per_second / 1e12:.2f} TB/s")
    case = ""
    for row in report.ops:
        if row.case != case:
            case = row.case
            lines.append(f"{case}")
        value = row.failed or f"{_us(row)} {row.how}, {ratio(row.times or 0)}x, floor x{ratio(row.over_floor or 0)}"
        lines.append(f"    {row.name[:60]:60} {value} {row.agreement}")
    for net in report.detectors:
        if (title := f"{net.net} {net.size} batch {net.batch}") != case:
            case = title
            lines.append(case)
        value = net.failed or f"{_ms(net)} ms {ratio(net.times or 0)}x, matched {_percent(net.matched)}"
        lines.append(f"    {net.name[:60]:60} {value}")
        if net.stages_us:
            lines.append("      " + ", ".join(f"{name} {us:.0f} us" for name, us in net.stages_us.items()))
    for engine in report.engines:
        parts = (engine.library, engine.version, engine.net, engine.size, engine.way, engine.precision)
        value = f"{_ms(engine)} ms {ratio(engine.eager_fp16_times or 0)}x, matched {_percent(engine.matched)}"
        lines.append(f"{' '.join(filter(None, parts))}: {engine.failed or value}")
    lines += [f"{part}: {why}" for part, why in report.skipped.items()]
    lines.append(f"{report.seconds_taken:.0f} s")
    return "\n".join(lines)


def _checks(report: GpuReport) -> Iterator[str]:
    rows = report.correctness
    if not rows:
        return
    passed = sum(check.passed for check in rows)
    yield f"{passed} of {len(rows)} checks passed. The largest error of each op and kind:"
    yield ""
    yield "| op | against | checks | largest error | limit | |"
    yield "|---|---|---|---|---|---|"
    groups = list(dict.fromkeys((c.op, c.against, c.unit, c.limit) for c in rows))
    for op, against, unit, limit in groups:
        mine = [c for c in rows if (c.op, c.against, c.unit, c.limit) == (op, against, unit, limit)]
        errors = [c.error for c in mine if c.error is not None]
        bad = [f"{c.case}: {c.why or c.error}" for c in mine if not c.passed]
        largest = f"{max(errors):.1e} {unit}" if errors else "–"
        verdict = "passed" if not bad else f"**failed**: {_cell('; '.join(bad))}"
        yield f"| {op} | {against} | {len(mine)} | {largest} | {limit:g} | {verdict} |"


def _ops(rows: Sequence[OpRow]) -> Iterator[str]:
    if not rows:
        return
    yield ABOUT_OPS
    yield ""
    yield "| op | | µs | measured as | ours is faster | floor µs | over the floor | |"
    yield "|---|---|---|---|---|---|---|---|"
    case = ""
    for row in rows:
        named = "" if row.case == case else row.case
        case = row.case
        if row.failed:
            yield f"| {named} | {row.name} | – | | | | | {_cell(row.failed)} |"
            continue
        times = "" if row.ours or row.times is None else f"{ratio(row.times)}×"
        over = "" if row.over_floor is None else f"{ratio(row.over_floor)}×" + ("" if row.beyond_cache else ", cache")
        notes = [row.agreement] if row.agreement else []
        if row.noise_us is not None:
            notes.append(f"timed twice: {significant(row.noise_us)} µs apart")
        floor = significant(row.floor_us) if row.floor_us is not None and row.ours else ""
        told = _cell("; ".join(notes))
        yield f"| {named} | {row.name} | {_us(row)} | {row.how} | {times} | {floor} | {over} | {told} |"


def _detectors(rows: Sequence[DetectorRow]) -> Iterator[str]:
    if not rows:
        return
    yield ABOUT_NETS
    yield ""
    yield "| net | | ms | the fastest of ours is faster | matched | detections an image | |"
    yield "|---|---|---|---|---|---|---|"
    case = ""
    for row in rows:
        title = f"{row.net} {row.size}, batch {row.batch}"
        named = "" if title == case else title
        case = title
        if row.failed:
            yield f"| {named} | {row.name} | – | | | | {_cell(row.failed)} |"
            continue
        times = "" if row.times is None else f"{ratio(row.times)}×"
        found = "" if row.detections is None else f"{row.detections:.1f}"
        yield f"| {named} | {row.name} | {_ms(row)} | {times} | {_percent(row.matched)} | {found} | {_cell(row.note)} |"
    staged = [row for row in rows if row.stages_us]
    if staged:
        yield ""
        yield "Stages of the fastest of ours, each alone as a graph, median µs:"
        yield ""
        names = list(dict.fromkeys(name for row in staged for name in row.stages_us))
        yield f"| | {' | '.join(names)} |"
        yield "|---|" + "---|" * len(names)
        for row in staged:
            cells = [significant(row.stages_us[name]) if name in row.stages_us else "" for name in names]
            yield f"| {row.net} {row.size}, batch {row.batch} | {' | '.join(cells)} |"


def _engines(rows: Sequence[EngineRow]) -> Iterator[str]:
    if not rows:
        return
    yield ABOUT_ENGINES
    yield ""
    yield "| net | library | | ms | over eager fp32 | fp16 | matched | engine MiB | built in s | CUDA graph | |"
    yield "|---|---|---|---|---|---|---|---|---|---|---|"
    for row in rows:
        net = " ".join(filter(None, (row.net, row.size)))
        fp32, fp16 = (f"{ratio(v)}×" if v else "" for v in (row.eager_fp32_times, row.eager_fp16_times))
        against = f" of {row.against}" if row.against and "PyTorch" not in row.against else ""
        cells = [
            net or "–", " ".join(filter(None, (row.library, row.version))),
            ", ".join(filter(None, (row.way, row.precision))), "–" if row.failed else _ms(row), fp32, fp16,
            _percent(row.matched) + against,
            f"{row.engine_bytes / 2**20:.0f}" if row.engine_bytes else "",
            f"{row.build_seconds:.0f}" if row.build_seconds is not None else "", row.cuda_graph, row.failed or row.note,
        ]  # fmt: skip
        yield f"| {' | '.join(map(_cell, cells))} |"


def _us(row: OpRow) -> str:
    return f"{significant(row.median_us or 0)} ({significant(row.low_us or 0)}–{significant(row.high_us or 0)})"


def _ms(row: DetectorRow | EngineRow) -> str:
    return f"{significant(row.median_ms or 0)} ({significant(row.low_ms or 0)}–{significant(row.high_ms or 0)})"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.1%}"


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "/").split())
