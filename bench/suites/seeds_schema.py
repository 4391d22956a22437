"""What `--suite seeds` measures: rows beside the one that they are compared with, and the figure that a paper gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from regionrt.bench.schema import Ratio, Shares


@dataclass(frozen=True)
class Times:
    """Milliseconds, one sample for each round; percentiles over those that no other load disturbed."""

    samples_ms: tuple[float, ...]
    disturbed: tuple[int, ...]
    p50_ms: float
    p90_ms: float

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Times:
        return cls(tuple(data["samples_ms"]), tuple(data["disturbed"]), data["p50_ms"], data["p90_ms"])


@dataclass
class SeedRow:
    """One way to do it. `latency` None: it was not run, `reason` says why.

    latency: of a whole request, or of what else its comparison is about. Where `factor` is not 1, only a part was
    measured, each sample is that part times `factor` (and what `measured` names beside): it is extrapolated.
    matched: share of PyTorch's detections with a partner of the same label and IoU > 0.9. noisy: more than half of the
    calls waited for a CPU, and others took a part of them.
    """

    id: str
    name: str
    ours: bool
    measured: str = "whole"
    factor: float = 1.0
    latency: Times | None = None
    reason: str = ""
    note: str = ""
    matched: float | None = None
    over_base: Ratio | None = None
    shares: Shares | None = None
    noisy: bool = False

    @property
    def extrapolated(self) -> bool:
        return self.factor != 1.0

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> SeedRow:
        kinds: dict[str, Callable[[Any], Any]] = {
            "latency": Times.from_json,
            "over_base": lambda given: Ratio(**given),
            "shares": Shares.from_json,
        }
        return cls(**{k: kinds[k](v) if k in kinds and v is not None else v for k, v in data.items()})


@dataclass
class Comparison:
    """`rows` against `base`, measured in turn in one process; `over_base` is how many times faster than it they are.

    unit: what a latency is of. paper: its figure, in words. asked: times that the fastest of `judged` is to reach:
    "ours", the artefacts, or "all".
    """

    key: str
    title: str
    unit: str
    base: SeedRow
    rows: list[SeedRow]
    paper: str = ""
    asked: float | None = None
    judged: str = "ours"
    notes: list[str] = field(default_factory=list)

    def best(self, ours: bool | None = None) -> SeedRow | None:
        """The fastest row that was measured; ours True or False: of the artefacts, or of PyTorch."""
        rows = [row for row in self.rows if row.latency is not None and (ours is None or row.ours is ours)]
        return min(rows, key=lambda row: row.latency.p50_ms, default=None)  # type: ignore[union-attr]

    @property
    def verdict(self) -> str:
        """ "reached", "not reached", "not measured", "" where nothing is asked; with the load where there was any."""
        if self.asked is None:
            return ""
        row = self.best(True if self.judged == "ours" else None)
        if row is None or row.over_base is None:
            return "not measured"
        verdict = "reached" if row.over_base.ratio >= self.asked else "not reached"
        return verdict + (", amid other load" if row.noisy or self.base.noisy else "")

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Comparison:
        rows = [SeedRow.from_json(row) for row in data["rows"]]
        return cls(**{**data, "base": SeedRow.from_json(data["base"]), "rows": rows})


@dataclass
class SeedCase:
    """One subject at one size: its comparisons, or why there are none."""

    name: str
    size: tuple[int, int]
    comparisons: list[Comparison] = field(default_factory=list)
    failed: str = ""
    load: str = ""

    def comparison(self, key: str) -> Comparison | None:
        return next((one for one in self.comparisons if one.key == key), None)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> SeedCase:
        comparisons = [Comparison.from_json(one) for one in data["comparisons"]]
        return cls(**{**data, "size": tuple(data["size"]), "comparisons": comparisons})
