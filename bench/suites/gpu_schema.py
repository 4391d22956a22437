"""What gpu-<name>.json holds, format `regionrt-gpu/1`: one list of rows per part; what was not done says why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from regionrt.bench.errors import BenchError

FORMAT = "regionrt-gpu/1"


@dataclass(frozen=True)
class Check:
    """One kernel against one other implementation on fresh inputs. error and limit are in `unit`."""

    op: str
    case: str
    against: str
    error: float | None
    limit: float
    unit: str
    passed: bool
    why: str = ""


@dataclass(frozen=True)
class OpRow:
    """One way to compute one op. over_floor: median over the byte floor; times: how many times as long as ours.

    how: "graph" (launches replayed in a CUDA graph, per launch) or "call" (from before the call to its end on the GPU,
    the host's part included). noise_us: of our own row, the difference between two timings of the same. failed: why it
    has no figures.
    """

    case: str
    name: str
    ours: bool
    median_us: float | None = None
    low_us: float | None = None
    high_us: float | None = None
    samples: int = 0
    how: str = ""
    floor_us: float | None = None
    over_floor: float | None = None
    times: float | None = None
    noise_us: float | None = None
    agreement: str = ""
    input_copies: int = 0
    beyond_cache: bool = False
    failed: str = ""


@dataclass(frozen=True)
class DetectorRow:
    """One way to run one net. times: how many times as long as the fastest of ours; stages_us: each alone, in a graph.

    matched: share of eager fp32's detections found with the same label and IoU > 0.9; detections: how many it found.
    """

    net: str
    size: str
    batch: int
    name: str
    ours: bool
    median_ms: float | None = None
    low_ms: float | None = None
    high_ms: float | None = None
    samples: int = 0
    times: float | None = None
    matched: float | None = None
    detections: float | None = None
    stages_us: Mapping[str, float] = field(default_factory=dict)
    note: str = ""
    failed: str = ""


@dataclass(frozen=True)
class EngineRow:
    """One way to run one net in an engine library, from a canvas to outputs in the host's memory; or why it has none.

    way: the form, what it is built into, and the precision. eager_fp32_times, eager_fp16_times: how many times as long
    PyTorch's takes, as the detectors' rows have it. matched: share of the detections of `against` found with the same
    label and IoU > 0.9. cuda_graph: "yes", or why a request is not replayed as one. engine_bytes, build_seconds: of all
    its engines.
    """

    library: str
    version: str
    net: str = ""
    median_ms: float | None = None
    failed: str = ""
    size: str = ""
    way: str = ""
    precision: str = ""
    low_ms: float | None = None
    high_ms: float | None = None
    samples: int = 0
    eager_fp32_times: float | None = None
    eager_fp16_times: float | None = None
    matched: float | None = None
    against: str = ""
    detections: float | None = None
    engine_bytes: int | None = None
    build_seconds: float | None = None
    cuda_graph: str = ""
    note: str = ""


@dataclass
class GpuReport:
    """Everything that was measured. skipped: part → why it has no rows (not asked for, no time left, failed)."""

    device: str
    environment: Mapping[str, Mapping[str, str]]
    command: str
    copy_bytes_per_second: float | None = None
    seconds_taken: float = 0.0
    correctness: list[Check] = field(default_factory=list)
    ops: list[OpRow] = field(default_factory=list)
    detectors: list[DetectorRow] = field(default_factory=list)
    engines: list[EngineRow] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return {"format": FORMAT, **asdict(self)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> GpuReport:
        """BenchError where it is not of this format."""
        if data.get("format") != FORMAT:
            raise BenchError(f"expected format {FORMAT!r}, found {data.get('format')!r}: measure anew with `make gpu`")
        rows = {"correctness": Check, "ops": OpRow, "detectors": DetectorRow, "engines": EngineRow}
        known = {f.name for f in fields(cls)}
        try:
            values = {name: value for name, value in data.items() if name in known}
            values |= {name: [kind(**row) for row in data[name]] for name, kind in rows.items()}
            return cls(**values)
        except (TypeError, KeyError) as error:
            raise BenchError(f"not a {FORMAT} report: {error}") from error
