"""Single ops against torchvision, ONNX Runtime and OpenVINO: each op on the same inputs, interleaved in one process.

`python -m regionrt.bench.suites.ops --out FOLDER` (or `regionrt bench --suite ops --out FOLDER`) writes ops.json and
ops.md. Sizes are those of a Faster or Mask R-CNN R50-FPN on an 800 × 1088 canvas. Each row says how far ours is from
the first peer on these inputs; that every op equals its definition is for the tests to show.
"""

from __future__ import annotations

import argparse
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from regionrt.runtime import native
from regionrt.runtime.clock import TimingOptions, measure
from regionrt.runtime.machine import describe_machine, usable_cores

from .ops_case import Case
from .ops_of_pixels import mask_cases, resize_cases, unpool_cases
from .ops_of_regions import detections_cases, nms_cases, proposals_cases, roi_align_cases
from .report_files import write_report


@dataclass(frozen=True)
class Row:
    """Medians in milliseconds by library, and how many times faster ours is than each."""

    name: str
    ours: str
    median_ms: Mapping[str, float]
    times_faster: Mapping[str, float]
    disturbed: Mapping[str, int]
    samples: int
    agreement: str


@dataclass(frozen=True)
class OpsReport:
    """The table, and what it was measured with."""

    machine: Mapping[str, Any]
    threads: int
    native: Mapping[str, Any]
    versions: Mapping[str, str]
    rows: Sequence[Row]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def to_markdown(self) -> str:
        peers = list(OrderedDict.fromkeys(name for row in self.rows for name in row.median_ms if name != row.ours))
        lines = [
            f"Single ops, median ms, {self.threads} threads, {self.machine['processor']}, variant "
            f"{self.native['variant']}; in brackets how many times faster ours is.",
            "",
            f"| op | ours | {' | '.join(peers)} | agreement |",
            f"|---|---|{'---|' * len(peers)}---|",
        ]
        for row in self.rows:
            cells = [
                f"{row.median_ms[peer]:.2f} ({row.times_faster[peer]:.1f}×)" if peer in row.median_ms else ""
                for peer in peers
            ]
            lines.append(f"| {row.name} | {row.median_ms[row.ours]:.2f} | {' | '.join(cells)} | {row.agreement} |")
        return "\n".join([*lines, ""])


def run_ops(seconds: float = 1.0, only: str = "", progress: Callable[[str], None] | None = None) -> OpsReport:
    """Measures every case whose name contains `only`, `seconds` each (at least five rounds)."""
    threads = usable_cores()
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    rows = []
    try:
        with torch.inference_mode():
            for make in CASES:
                for case in make(threads):
                    if only and only not in case.name:
                        continue
                    if progress:
                        progress(case.name)
                    rows.append(_measured(case, seconds))
    finally:
        torch.set_num_threads(before)
    return OpsReport(describe_machine(), threads, asdict(native.about()) | {"path": None}, _versions(), rows)


def _measured(case: Case, seconds: float) -> Row:
    options = TimingOptions(warmup_rounds=2, warmup_seconds=0.0, seconds=seconds, least_rounds=5)
    timings = measure(case.calls, options).timings
    medians = {name: timing.p50_ms for name, timing in timings.items()}
    faster = {name: median / medians[case.ours] for name, median in medians.items() if name != case.ours}
    disturbed = {name: timing.disturbed for name, timing in timings.items()}
    samples = len(timings[case.ours].samples_ms)
    return Row(case.name, case.ours, medians, faster, disturbed, samples, case.agreement())


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("numpy", "torch", "torchvision", "onnxruntime", "openvino")}


CASES: Sequence[Callable[[int], list[Case]]] = (
    roi_align_cases,
    nms_cases,
    proposals_cases,
    detections_cases,
    mask_cases,
    resize_cases,
    unpool_cases,
)


def write(report: OpsReport, folder: Path) -> list[Path]:
    """ops.json and ops.md in `folder`."""
    return write_report(report, folder, "ops")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m regionrt.bench.suites.ops", description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, help="folder for ops.json and ops.md; default: only print")
    parser.add_argument("--seconds", type=float, default=1.0, help="of measurement for each case")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    options = parser.parse_args(arguments)
    report = run_ops(options.seconds, options.only)
    if options.out:
        write(report, options.out)
    print(report.to_markdown())


if __name__ == "__main__":
    main()
