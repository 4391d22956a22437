"""What a report holds: `report.json` as dataclasses, written by `bench` and read by `render` (docs/report.md)."""

from __future__ import annotations

import json
import math
import re
import types
import typing
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

from .errors import BenchError

FORMAT = "regionrt-report/1"


@dataclass(frozen=True)
class Ratio:
    """How many times faster: the other's median latency over this one's; 95 % interval of a paired bootstrap."""

    ratio: float
    low: float
    high: float


@dataclass(frozen=True)
class Latency:
    """Whole requests of one image each, milliseconds; sample i of every candidate is the same image in the same round.

    Percentiles and means are over the samples that no other load disturbed; `disturbed` are the indices of the others.
    """

    samples_ms: tuple[float, ...]
    disturbed: tuple[int, ...]
    p50_ms: float
    p90_ms: float
    p99_ms: float
    mean_ms: float
    stages_ms: dict[str, float]  # mean time in preprocess, run, postprocess; they add up to mean_ms
    images_per_second: dict[str, float]  # batch size → images per second, requests one after the other
    detections_per_image: float

    def kept_ms(self) -> tuple[float, ...]:
        """The samples that the percentiles are taken over."""
        left_out = set(self.disturbed)
        return tuple(value for index, value in enumerate(self.samples_ms) if index not in left_out)


@dataclass(frozen=True)
class Shares:
    """Where a request of the staged form goes: median milliseconds by step, in order.

    dense: the steps that an engine runs. not_dense: median over requests of the part of the wall time that none worked.
    """

    steps_ms: dict[str, float]
    dense: tuple[str, ...]
    not_dense: float

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Shares:
        return cls(data["steps_ms"], tuple(data["dense"]), data["not_dense"])


@dataclass(frozen=True)
class Difference:
    """The metric minus the PyTorch eager baseline's on the same images, in points (AP 0.512 is 51.2 points)."""

    metric: str
    points: float
    low: float
    high: float
    confidence: float
    resamples: int
    seed: int


@dataclass(frozen=True)
class Accuracy:
    """What `regionrt eval` would print: metrics are fractions 0…1; null where the data has nothing to judge it by."""

    images: int
    metrics: dict[str, float | None]
    per_class: dict[str, dict[str, float | None]]  # class name → metric → value
    differences: tuple[Difference, ...]


@dataclass(frozen=True)
class Footprint:
    """What it costs to have it there. `load_s`, `first_request_s` and `peak_memory_bytes` are a fresh process's.

    null: not measured; `how` says how it was measured, or why it was not.
    """

    size_bytes: int | None
    load_s: float | None
    first_request_s: float | None
    peak_memory_bytes: int | None
    build_s: float | None
    how: str


@dataclass(frozen=True)
class Candidate:
    """One row: a PyTorch form or an artefact of a bundle."""

    id: str
    name: str
    kind: str  # "torch" or "bundle"
    backend: str
    form: str
    precision: str
    bundle: str | None  # the folder's name
    status: str  # "measured" or "not run"
    reason: str  # why it was not run, else ""
    notes: tuple[str, ...]
    latency: Latency | None
    shares: Shares | None  # of the staged form, measured apart from the latency
    speedup_over_eager: Ratio | None
    speedup_over_best_torch: Ratio | None
    accuracy: Accuracy | None
    footprint: Footprint


@dataclass(frozen=True)
class StageCheck:
    """The worst of one value over all images; `error` and `limit`: parts of max |reference|, or shares unmatched."""

    stage: str
    value: str
    unit: str  # the part of the graph that was fed with PyTorch's inputs
    error: float | None
    max_abs_error: float | None
    limit: float | None
    passed: bool
    image: str


@dataclass(frozen=True)
class Agreement:
    """End to end at one batch size: detections of PyTorch, of the artefact, and those that both have."""

    batch: int
    matched: int
    eager: int
    artefact: int
    share: float
    worst_image: str


@dataclass(frozen=True)
class Verification:
    """The verdict of `verify` on one artefact."""

    artefact: str
    images: int | None
    passed: bool
    first_difference: str | None
    stages: tuple[StageCheck, ...]
    end_to_end: tuple[Agreement, ...]


@dataclass(frozen=True)
class Panel:
    """One candidate's detections drawn on a photo: JPEG, base64."""

    candidate: str
    detections: int
    width: int
    height: int
    jpeg: str


@dataclass(frozen=True)
class Picture:
    """One photo, the same for every panel; `why` says why this photo was chosen."""

    image: str
    why: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True)
class DataFacts:
    """The data that accuracy was measured on."""

    name: str
    split: str
    images: int
    objects: int
    classes: int
    has_masks: bool
    dropped: dict[str, int]


@dataclass(frozen=True)
class Report:
    """Everything a page needs; `chosen`, `baseline` and `best_torch` are ids of candidates or null."""

    format: str
    created: str
    title: str
    task: str
    model: str
    labels: tuple[str, ...]
    data: DataFacts | None
    accuracy_note: str  # why accuracy was not measured, else ""
    latency_images: str  # what was timed on
    score_shown: float  # pictures and counts show detections from this score on
    max_drop: float | None  # the accuracy contract in points, if one was given
    baseline: str | None
    best_torch: str | None
    chosen: str | None
    candidates: tuple[Candidate, ...]
    verification: tuple[Verification, ...] | None
    environment: dict[str, dict[str, str]]
    commands: tuple[str, ...]
    notes: tuple[str, ...]
    pictures: tuple[Picture, ...]

    def candidate(self, id_: str | None) -> Candidate | None:
        """The row with this id; None for None."""
        return next((row for row in self.candidates if row.id == id_), None)

    def to_json(self) -> dict[str, Any]:
        """Plain dicts, lists, strings, numbers; NaN and infinities become null."""
        return _plain(asdict(self))

    def dumps(self) -> str:
        """`report.json` as text: indented, with lists of numbers on one line."""
        text = json.dumps(self.to_json(), indent=1, ensure_ascii=False, allow_nan=False)
        numbers = re.compile(r"\[\s*((?:-?[\d.eE+-]+|null)(?:,\s*(?:-?[\d.eE+-]+|null))*)\s*\]")
        return numbers.sub(lambda found: "[" + re.sub(r"\s+", " ", found[1]) + "]", text) + "\n"


def report_from_json(value: object) -> Report:
    """A checked `Report`; `BenchError` names the place and what stood there. Keys that it does not know are ignored."""
    found = value.get("format") if isinstance(value, dict) else None
    if found != FORMAT:
        raise BenchError(
            f"a report of format {FORMAT!r} expected, {found!r} found: make it again with `regionrt bench`"
        )
    return _read(Report, value, "report")


def read_report(path: str | Path) -> Report:
    """The report in a `report.json`; `BenchError` for a file that is missing, no JSON, or not a whole report."""
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BenchError(f"{path}: a report.json written by `regionrt bench` expected: {error}") from error
    return report_from_json(value)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _read(kind: Any, value: Any, where: str) -> Any:
    """`value` as the annotated type `kind`."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        return _read(next(a for a in arguments if a is not type(None)), value, where)
    if is_dataclass(kind) and isinstance(kind, type):
        if not isinstance(value, dict):
            raise _mismatch(where, "an object", value)
        hints = typing.get_type_hints(kind)
        missing = [f.name for f in fields(kind) if f.name not in value]
        if missing:
            raise BenchError(f"{where}: {', '.join(missing)} missing: make the report again with `regionrt bench`")
        return kind(**{f.name: _read(hints[f.name], value[f.name], f"{where}.{f.name}") for f in fields(kind)})
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise _mismatch(where, "a list", value)
        return tuple(_read(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin is dict:
        if not isinstance(value, dict):
            raise _mismatch(where, "an object", value)
        return {str(key): _read(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    accepted = (int, float) if kind is float else kind
    if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
        raise _mismatch(where, kind.__name__, value)
    return kind(value)


def _mismatch(where: str, expected: str, value: object) -> BenchError:
    return BenchError(f"{where}: {expected} expected, {str(value)[:60]!r} found")
