"""The papers' headline ratios in one run: R-CNN ÷ SPPnet, ÷ Fast R-CNN, ÷ Fast R-CNN with SVD, and their training.

`regionrt bench --suite seeds --out FOLDER` (or `python -m regionrt.bench.suites.seeds --out FOLDER`) writes seeds.json
and seeds.md (docs/report.md). Each subject is measured in a process of its own, its candidates in turn.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from regionrt.bench.environment import environment
from regionrt.runtime.machine import usable_cores

from .child import Tell, in_child
from .photo_files import photo_files
from .report_files import write_report
from .seeds_case import CASES
from .seeds_inputs import SeedInputs, seed_inputs
from .seeds_options import CaseOptions
from .seeds_schema import SeedCase
from .seeds_table import SeedsReport

_OF_VERB = {"data", "cases", "threads", "size", "backbone", "proposals", "nets", "rows", "seconds"}
"""What `regionrt bench --suite seeds` has options for."""


@dataclass(frozen=True)
class SeedsOptions:
    """What is measured. `ValueError` for what makes no sense.

    cases: names of `CASES`. data: a folder of photos; None: made ones. photos: how many. threads: None: one for each
    usable core. case: all else. limit_seconds: a case that takes longer than this is given up.
    """

    cases: tuple[str, ...] = tuple(CASES)
    data: Path | None = None
    photos: int = 2
    threads: int | None = None
    case: CaseOptions = field(default_factory=CaseOptions)
    limit_seconds: float = 3600.0

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.cases) - set(CASES)):
            raise ValueError(f"cases {', '.join(unknown)}: choose of {', '.join(CASES)}")
        if not self.cases or self.photos < 1:
            raise ValueError("expected at least one case and one photo")
        threads = usable_cores() if self.threads is None else self.threads
        object.__setattr__(self, "case", replace(self.case, threads=threads))


def run_seeds(
    options: SeedsOptions, *, progress: Tell | None = None, keep: Callable[[SeedsReport], object] | None = None
) -> SeedsReport:
    """Measures each subject in a fresh process. keep: given what there is after each of them.

    A subject that fails says why in the report and does not stop the others. BenchError where photos are missing.
    """
    tell = progress or (lambda text: None)
    files = photo_files(options.data)
    facts = environment(options.case.threads)
    tell("photos and their proposals")
    inputs = seed_inputs(files, options.case.size, options.photos, options.case.proposals, options.case.seed)
    about = asdict(options) | {"data": options.data and options.data.name}
    report = SeedsReport(facts, _command(options), about, inputs.told, inputs.search_s, inputs.made, [])
    for number, name in enumerate(options.cases, start=1):
        said = f"{number} of {len(options.cases)}, {name}"
        tell(said)
        measured = _measured(name, inputs, options, lambda text, said=said: tell(f"{said}: {text}"))  # type: ignore[misc]
        report = replace(report, cases=[*report.cases, measured])
        if keep:
            keep(report)
    return report


def _measured(name: str, inputs: SeedInputs, options: SeedsOptions, tell: Tell) -> SeedCase:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "inputs.npz")
        inputs.save(path)
        job = {"name": name, "inputs": str(path), "options": asdict(options.case)}
        found, why = in_child("regionrt.bench.suites.seeds_case", job, options.limit_seconds, tell)
    return SeedCase(name, options.case.size, failed=why) if found is None else SeedCase.from_json(found)


def _command(options: SeedsOptions) -> str:
    """As it can be typed, without folders of this machine: by the verb, or where it lacks an option, by this module."""
    usual = SeedsOptions()
    changed: dict[str, Any] = {"data": "PHOTOS"} if options.data else {}
    for holder, defaults, left_out in ((options, usual, ("data", "case")), (options.case, usual.case, ("threads",))):
        own = ((each.name, getattr(holder, each.name)) for each in fields(holder) if each.name not in left_out)
        changed |= {name: value for name, value in own if value != getattr(defaults, name)}
    short = set(changed) <= _OF_VERB
    parts = ["regionrt bench --suite seeds" if short else "python -m regionrt.bench.suites.seeds"]
    for name, value in changed.items():
        option = "sizes" if short and name == "size" else name.replace("_", "-")
        parts.append(f"--{option} {_typed(name, value)}")
    return " ".join(parts)


def _typed(name: str, value: Any) -> str:
    if isinstance(value, tuple):
        return ("x" if name == "size" else ",").join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def write(report: SeedsReport, folder: Path) -> list[Path]:
    """seeds.json and seeds.md in `folder`."""
    return write_report(report, folder, "seeds", allow_nan=False)


def main(arguments: Sequence[str] | None = None) -> None:
    usual = SeedsOptions()
    parser = argparse.ArgumentParser(prog="python -m regionrt.bench.suites.seeds", description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for seeds.json and seeds.md")
    parser.add_argument("--data", type=Path, help="folder of photos; default: photos with shapes drawn on them")
    parser.add_argument("--cases", default=",".join(usual.cases))
    parser.add_argument("--photos", type=int, default=usual.photos)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--limit-seconds", type=float, default=usual.limit_seconds)
    kinds: dict[str, Any] = {
        "size": _size,
        "rows": _names,
        "nets": _names,
        "crop_batches": _numbers,
        "training_batches": _numbers,
    }
    own = [each for each in fields(CaseOptions) if each.name != "threads"]
    for each in own:
        default = getattr(usual.case, each.name)
        kind = kinds.get(each.name, type(default) if default is not None else int)
        parser.add_argument(f"--{each.name.replace('_', '-')}", type=kind, default=default)
    given = parser.parse_args(arguments)
    try:
        case = CaseOptions(**{each.name: getattr(given, each.name) for each in own})
        options = SeedsOptions(_names(given.cases), given.data, given.photos, given.threads, case, given.limit_seconds)
    except ValueError as error:
        parser.error(str(error))
    report = run_seeds(
        options, progress=lambda text: print(text, file=sys.stderr), keep=lambda done: write(done, given.out)
    )
    print(report.to_markdown())


def _names(text: str) -> tuple[str, ...]:
    return tuple(filter(None, text.split(",")))


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def _size(text: str) -> tuple[int, int]:
    height, _, width = text.partition("x")
    return int(height), int(width)


if __name__ == "__main__":
    main()
