"""`make gpu`: what our CUDA kernels are worth on this machine's NVIDIA GPU, in a few minutes, with nothing but torch,
torchvision, cuda-python and NVRTC installed.

`python3 -m regionrt.bench.suites.gpu --out FOLDER` writes gpu-<device>.json (format `regionrt-gpu/1`) and the same
as Markdown, anew after each part. Parts: correctness against reference.py and torchvision, single ops, whole
detectors, engine libraries. What cannot be measured stands in the table with its reason. Engines are built from nets
that are exported here, which needs `regionrt[train,export]`, and from bundles made elsewhere (`--bundle FOLDER`).
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from regionrt.bench.environment import environment, without_folders
from regionrt.bench.torch_kernels import TorchKernels, open_torch_kernels
from regionrt.runtime.atomic import write_file_atomic
from regionrt.runtime.errors import RegionRTError
from regionrt.runtime.machine import usable_cores

from .gpu_checks import run_checks
from .gpu_clock import GpuClock, copy_bandwidth
from .gpu_detectors import CASES, NetCase, NetSetting, run_detectors
from .gpu_engines import CASES as ENGINE_CASES
from .gpu_engines import EngineSetting, run_engines
from .gpu_ops import OpSetting, run_ops, told
from .gpu_schema import GpuReport
from .gpu_table import to_markdown, to_terminal

PARTS = ("correctness", "ops", "detectors", "engines")


@dataclass(frozen=True)
class GpuOptions:
    """seconds: how long each way to compute an op is timed; detectors get four times that. limit_seconds: after so long
    nothing new is begun; what is left out says so. nets: only detectors whose name or size contains it ("" for all).
    bundles: ready-made ones, for the engine libraries."""

    parts: Sequence[str] = PARTS
    seconds: float = 0.15
    limit_seconds: float = 450.0
    compile_seconds: float = 60.0
    nets: str = ""
    seed: int | None = None
    bundles: Sequence[Path] = ()

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.parts) - set(PARTS)):
            raise ValueError(f"parts {', '.join(unknown)}: choose of {', '.join(PARTS)}")
        if not (self.seconds > 0 and self.limit_seconds > 0):
            raise ValueError("expected seconds and limit-seconds above 0")


def run_gpu(options: GpuOptions, keep: Callable[[GpuReport], object], tell: Callable[[str], None]) -> GpuReport:
    """Measures everything on torch's current GPU; `keep` is given the report after each part.

    A part that fails says why and does not stop the others.
    RegionRTError: the kernels cannot be compiled or loaded at all.
    """
    started = time.monotonic()
    seed = int.from_bytes(os.urandom(4), "little") if options.seed is None else options.seed
    properties = torch.cuda.get_device_properties(0)
    command = without_folders(f"python3 -m regionrt.bench.suites.gpu {' '.join(sys.argv[1:])}")
    report = GpuReport(properties.name, environment(usable_cores()), command, notes=[f"seed {seed}"])
    kernels = open_torch_kernels()
    clock, cache = GpuClock(), int(getattr(properties, "L2_cache_size", 64 << 20))
    report.notes.append(f"L2 cache {cache / 2**20:.0f} MiB, {properties.multi_processor_count} multiprocessors")
    torch.manual_seed(seed)

    def left() -> float:
        return options.limit_seconds - (time.monotonic() - started)

    def late() -> str:
        return f"left out: {time.monotonic() - started:.0f} s had passed" if left() < 0 else ""

    def bandwidth() -> float:
        if report.copy_bytes_per_second is None:
            report.copy_bytes_per_second = copy_bandwidth()
        return report.copy_bytes_per_second

    makers: dict[str, Callable[[], Iterable[Any]]] = {
        "correctness": lambda: run_checks(kernels, "cuda", seed, tell),
        "ops": lambda: run_ops(_ops(kernels, cache, seed), clock, options.seconds, bandwidth(), tell, late),
        "detectors": lambda: run_detectors(_nets(kernels, options, seed), _cases(options, CASES), clock, tell, late),
        "engines": lambda: run_engines(
            EngineSetting(
                _nets(kernels, options, seed), clock, late, left, tell, _cases(options, ENGINE_CASES), options.bundles
            ),
            report.detectors,
        ),
    }
    for part, make in makers.items():
        if part not in options.parts:
            report.skipped[part] = "not asked for"
            continue
        tell(f"{part} ({time.monotonic() - started:.0f} s)")
        rows = getattr(report, part)
        try:
            for row in make():
                rows.append(row)
        except Exception as error:
            report.skipped[part] = told(error)
        report.seconds_taken = time.monotonic() - started
        keep(report)
        gc.collect()
        torch.cuda.empty_cache()
    return report


def _ops(kernels: TorchKernels, cache: int, seed: int) -> OpSetting:
    import numpy as np

    return OpSetting(kernels, cache_bytes=cache, rng=np.random.default_rng(seed))


def _nets(kernels: TorchKernels, options: GpuOptions, seed: int) -> NetSetting:
    return NetSetting(kernels, seconds=4 * options.seconds, compile_seconds=options.compile_seconds, seed=seed % 1000)


def _cases(options: GpuOptions, cases: Sequence[NetCase]) -> list[NetCase]:
    return [case for case in cases if options.nets in f"{case.net} {case.size[0]}x{case.size[1]} b{case.batch}"]


def write(report: GpuReport, folder: Path) -> list[Path]:
    """gpu-<device>.json and gpu-<device>.md in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = "gpu-" + re.sub(r"[^a-z0-9]+", "-", report.device.lower()).strip("-")
    files = [folder / f"{stem}.json", folder / f"{stem}.md"]
    text = json.dumps(_finite(report.to_json()), indent=1, allow_nan=False)
    write_file_atomic(files[0], text + "\n")
    write_file_atomic(files[1], to_markdown(report))
    return files


def _finite(value: Any) -> Any:
    """NaN and infinity have no place in JSON: null."""
    if isinstance(value, dict):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="regionrt.bench.suites.gpu", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--parts", default=",".join(PARTS), help="of " + ",".join(PARTS))
    parser.add_argument("--seconds", type=float, default=GpuOptions.seconds, help="each way to compute an op is timed")
    parser.add_argument("--limit-seconds", type=float, default=GpuOptions.limit_seconds)
    parser.add_argument(
        "--compile-seconds", type=float, default=GpuOptions.compile_seconds, help="of torch.compile, in all"
    )
    parser.add_argument("--nets", default="", help='only detectors whose "net HxW bN" contains this')
    parser.add_argument(
        "--bundle", type=Path, action="append", default=[], metavar="FOLDER", dest="bundles",
        help="a detector's bundle to build engines from and measure, where none can be exported, or your own; "
        "it is left as it is; may be repeated",
    )  # fmt: skip
    parser.add_argument("--seed", type=int)
    given = parser.parse_args(arguments)
    try:
        options = GpuOptions(
            tuple(filter(None, given.parts.split(","))), given.seconds, given.limit_seconds, given.compile_seconds,
            given.nets, given.seed, tuple(given.bundles),
        )  # fmt: skip
    except ValueError as error:
        parser.error(str(error))
    if not torch.cuda.is_available():
        print("error: torch sees no NVIDIA GPU here: run this on a machine with one", file=sys.stderr)
        return 1
    warnings.filterwarnings("ignore")  # of torch's compiler and captures: what matters stands in the table
    try:
        report = run_gpu(options, lambda done: write(done, given.out), lambda text: print(text, flush=True))
    except RegionRTError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(to_terminal(report))
    print(*write(report, given.out), sep="\n")
    failed = any(part in report.skipped for part in options.parts)
    return 0 if not failed and all(check.passed for check in report.correctness) else 1


if __name__ == "__main__":
    raise SystemExit(main())
