"""Whole nets against their peers on a CPU: PyTorch's forms, torchvision's export in two engines, and ours, in one run.

`regionrt bench --suite peers --out FOLDER` (or `python -m regionrt.bench.suites.peers --out FOLDER`) writes peers.json
and peers.md. Each net at each size runs in a fresh process, all its candidates interleaved, on the same photos with the
same weights and thresholds. A request is what `bench/latency.py` says it is; masks of all detections are pasted.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from regionrt.bench import figures
from regionrt.bench.environment import environment
from regionrt.bench.errors import BenchError
from regionrt.runtime.machine import usable_cores
from regionrt.train.models.torchvision_models import BUILDERS

from .child import Tell, in_child
from .floors import Floor, floors_of
from .peer_case import EAGER, NAMES, Case, CaseOptions
from .photo_files import photo_files, photos_of_size
from .report_files import write_report

MOBILENET = "fasterrcnn_mobilenet_v3_large_320_fpn"
NETS = ("fasterrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn", MOBILENET)
SIZES = ((480, 640), (800, 1088))


@dataclass(frozen=True)
class PeersOptions:
    """What is compared, and how long. `ValueError` for what makes no sense.

    nets: torchvision builders. sizes: (height, width) of the photos. rows: of `peer_case.NAMES`. photos: how many.
    weights: a folder with <builder>.pth; None: random weights calibrated at each size. data: a folder of photos; None:
    photos with shapes drawn on them. seconds, least_rounds, compile_seconds: see `CaseOptions`, for each net and size.
    limit_seconds: a net and size that takes longer than this is given up.
    """

    nets: tuple[str, ...] = NETS
    sizes: tuple[tuple[int, int], ...] = SIZES
    rows: tuple[str, ...] = tuple(NAMES)
    weights: Path | None = None
    data: Path | None = None
    photos: int = 8
    threads: int | None = None
    seconds: float = 60.0
    least_rounds: int = 5
    compile_seconds: float = 240.0
    limit_seconds: float = 3600.0
    seed: int = 0

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.nets) - set(BUILDERS)):
            raise ValueError(f"nets {', '.join(unknown)}: choose of {', '.join(BUILDERS)}")
        if not self.nets or not self.sizes or self.photos < 1:
            raise ValueError("expected at least one net, one size and one photo")
        if bad := [f"{h}x{w}" for h, w in self.sizes if h < 64 or w < 64 or h % 32 or w % 32]:
            raise ValueError(f"sizes {', '.join(bad)}: expected multiples of 32, at least 64 (height x width)")
        self.case_options()

    def case_options(self) -> CaseOptions:
        return CaseOptions(
            rows=self.rows,
            threads=usable_cores() if self.threads is None else self.threads,
            seconds=self.seconds,
            least_rounds=self.least_rounds,
            compile_seconds=self.compile_seconds,
        )


@dataclass(frozen=True)
class PeersReport:
    """All cases, the floors they are held to, and what they were measured with."""

    environment: dict[str, dict[str, str]]
    command: str
    photos: str
    options: dict[str, Any]
    cases: list[Case]

    @property
    def floors(self) -> list[Floor]:
        return [floor for case in self.cases for floor in floors_of(case)]

    def to_json(self) -> dict[str, Any]:
        return {
            "format": "regionrt-peers/1",
            **{name: getattr(self, name) for name in ("environment", "command", "photos", "options")},
            "cases": [case.to_json() for case in self.cases],
            "floors": [asdict(floor) for floor in self.floors],
        }

    def to_markdown(self) -> str:
        machine, setting = self.environment["machine"], self.environment["setting"]
        software = ", ".join(f"{name} {version}" for name, version in self.environment["software"].items())
        lines = [
            "# Peers",
            "",
            f"`{self.command}`: {machine['CPU']}, {setting['threads']}, {machine['instruction sets']}; load before "
            f"{setting['load before']}. {software}.",
            "",
            f"{self.photos}. Medians of whole requests in milliseconds, all candidates of a table interleaved in one "
            "process. Brackets: 95 % interval. *matched*: share of eager's detections found with the same label and "
            "IoU > 0.9; *on its canvas*: ours against eager fed with the same uint8 canvas. *not dense*: share of a "
            "request in which no engine works.",
        ]
        lines += ["", "## Floors", "", "| | what | asked | reached | |", "|---|---|---|---|---|"]
        for floor in self.floors:
            lines.append(f"| {floor.case} | {floor.what} | {floor.asked} | {floor.reached} | {floor.verdict} |")
        for case in self.cases:
            lines += ["", *_table(case)]
        return "\n".join([*lines, ""])


def run_peers(
    options: PeersOptions, *, progress: Tell | None = None, keep: Callable[[PeersReport], object] | None = None
) -> PeersReport:
    """Measures every net at every size, one fresh process each. keep: given what there is after each of them.

    A case that fails says why in the report and does not stop the others. BenchError where weights or photos are
    missing.
    """
    tell = progress or (lambda text: None)
    jobs = _jobs(options)
    for case in jobs:
        _weights_of(case.net, options)
    files = photo_files(options.data)
    threads = options.case_options().threads
    facts = environment(threads)
    folders = {name: getattr(options, name) and getattr(options, name).name for name in ("weights", "data")}
    about = asdict(options) | folders
    report = PeersReport(facts, _command(options), "", about, [])
    for number, case in enumerate(jobs, start=1):
        images, told = photos_of_size(files, case.size, options.photos)
        said = f"{number} of {len(jobs)}: {case.key}"
        tell(said)
        measured = _in_child(case, images, options, lambda text, said=said: tell(f"{said}: {text}"))  # type: ignore[misc]
        report = replace(report, photos=told, cases=[*report.cases, measured])
        if keep:
            keep(report)
    return report


def _jobs(options: PeersOptions) -> list[Case]:
    """Every net at every size; the net that shrinks photos to 320 with that and without."""
    cases = []
    for net in options.nets:
        for own_resize in (True, False) if net == MOBILENET else (False,):
            for size in options.sizes:
                key = f"{net} {size[0]}×{size[1]}" + (", its own resize to 320" if own_resize else "")
                cases.append(Case(key, net, size, own_resize))
    return cases


def _weights_of(net: str, options: PeersOptions) -> Path | None:
    if options.weights is None:
        return None
    path = options.weights / f"{net}.pth"
    if not path.is_file():
        raise BenchError(f"{path}: no such file; --weights needs <builder>.pth of each net, or leave it out")
    return path.absolute()


def _in_child(case: Case, photos: Sequence[np.ndarray], options: PeersOptions, tell: Tell) -> Case:
    """The case measured in a process of its own, or with `failed`."""
    weights = _weights_of(case.net, options)
    with tempfile.TemporaryDirectory() as folder:
        np.savez(Path(folder, "photos.npz"), *photos)
        job = {
            "key": case.key,
            "net": case.net,
            "size": case.size,
            "own_resize": case.own_resize,
            "weights": str(weights) if weights else None,
            "seed": options.seed,
            "photos": str(Path(folder, "photos.npz")),
            "options": asdict(options.case_options()),
        }
        found, why = in_child("regionrt.bench.suites.peer_case", job, options.limit_seconds, tell)
    return replace(case, failed=why) if found is None else Case.from_json(found)


def _table(case: Case) -> list[str]:
    lines = [f"## {case.key}", ""]
    if case.failed:
        return [*lines, f"Not measured: {case.failed}"]
    lines += [
        f"{case.weights}; {case.eager_detections} detections of eager on {case.photos} photos; canvas "
        f"{case.canvas['height']}×{case.canvas['width']}.",
        "",
        "| | p50 ms | p90 ms | over eager | over best peer | matched | on its canvas | per photo | not dense |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    notes = []
    for row in case.rows:
        if row.latency is None:
            lines.append(f"| {row.name} | not run | | | | | | | |")
            notes.append(f"{row.name}: {row.reason}.")
            continue
        name = f"**{row.name}**" if row.ours else row.name
        cells = [
            f"{row.latency.p50_ms:.1f}",
            f"{row.latency.p90_ms:.1f}",
            _ratio(row.over_eager) if row.id != EAGER else "1",
            _ratio(row.over_best_peer) if row.id != case.best_peer else "1 (the best peer)",
            _percent(row.matched),
            _percent(row.matched_on_canvas),
            "" if row.found_per_photo is None else f"{row.found_per_photo:.1f}",
            _percent(row.shares.not_dense if row.shares else None),
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
        if row.note:
            notes.append(f"{row.name}: {row.note}.")
    for row in case.rows:
        if row.shares:
            steps = [
                f"{name}{'' if name in row.shares.dense else '*'} {figures.significant(value)}"
                for name, value in row.shares.steps_ms.items()
            ]
            notes.append(f"{row.name}, ms by step (* not dense): {', '.join(steps)}.")
    return [*lines, "", *(f"- {note}" for note in notes)]


def _ratio(value: Any) -> str:
    return "" if value is None else f"{value.ratio:.2f}× [{value.low:.2f}, {value.high:.2f}]"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f} %"


def _command(options: PeersOptions) -> str:
    """As it can be typed, without folders of this machine."""
    parts = ["regionrt bench --suite peers"]
    if options.weights:
        parts.append("--weights WEIGHTS")
    if options.data:
        parts.append("--data PHOTOS")
    if options.nets != NETS:
        parts.append(f"--nets {','.join(options.nets)}")
    if options.sizes != SIZES:
        parts.append(f"--sizes {','.join(f'{h}x{w}' for h, w in options.sizes)}")
    if options.rows != tuple(NAMES):
        parts.append(f"--rows {','.join(options.rows)}")
    if options.threads:
        parts.append(f"--threads {options.threads}")
    parts.append(f"--seconds {options.seconds:g} --compile-seconds {options.compile_seconds:g}")
    return " ".join(parts)


def write(report: PeersReport, folder: Path) -> list[Path]:
    """peers.json and peers.md in `folder`."""
    return write_report(report, folder, "peers")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m regionrt.bench.suites.peers", description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for peers.json and peers.md")
    parser.add_argument("--weights", type=Path, help="folder with <builder>.pth; default: calibrated random weights")
    parser.add_argument("--data", type=Path, help="folder of photos; default: photos with shapes drawn on them")
    parser.add_argument("--nets", default=",".join(NETS))
    parser.add_argument("--sizes", default="480x640,800x1088", help="height x width")
    parser.add_argument("--rows", default=",".join(NAMES))
    parser.add_argument("--seconds", type=float, default=60.0, help="of measurement for each net and size")
    parser.add_argument("--compile-seconds", type=float, default=240.0, help="most for torch.compile; 0: do not try")
    parser.add_argument("--threads", type=int)
    given = parser.parse_args(arguments)
    sizes = tuple((int(h), int(w)) for h, _, w in (text.partition("x") for text in given.sizes.split(",")))
    options = PeersOptions(
        nets=tuple(given.nets.split(",")), sizes=sizes, rows=tuple(given.rows.split(",")), weights=given.weights,
        data=given.data, threads=given.threads, seconds=given.seconds, compile_seconds=given.compile_seconds,
    )  # fmt: skip
    report = run_peers(
        options, progress=lambda text: print(text, file=sys.stderr), keep=lambda done: write(done, given.out)
    )
    print(report.to_markdown())


if __name__ == "__main__":
    main()
