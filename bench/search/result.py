"""What a search found, whole: what was tried, what was chosen and how it did on the other split."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from typing import Any

from .curves import Curve, gains
from .final import Final
from .knobs import Knob
from .options import SearchOptions
from .trial import Trial

FORMAT = "regionrt-search-report/1"


@dataclass(frozen=True)
class SearchResult:
    """kind: "tune" or "ranks". reference: PyTorch's figures (0…1) on the split that was searched on.

    knobs: what `tune` turns. curves: each layer's ranks. alone: settings of one knob, as they are tried by hand.
    combined: settings of several together. by_hand: the fastest of those alone that holds. chosen: of all. ended: why
    no more were tried.
    """

    kind: str
    options: SearchOptions
    model: str
    task: str
    data: str
    reference: dict[str, float]
    knobs: tuple[Knob, ...]
    curves: tuple[Curve, ...]
    alone: tuple[Trial, ...]
    combined: tuple[Trial, ...]
    by_hand: Trial | None
    chosen: Trial
    final: Final
    ended: str
    environment: dict[str, dict[str, str]]
    created: str
    commands: tuple[str, ...] = ()

    @property
    def trials(self) -> tuple[Trial, ...]:
        """Each setting once, the fastest first; what could not be exported or run last."""
        return trials_of(self.alone, self.curves, self.combined)

    @property
    def base_ms(self) -> float:
        """The base's median latency, of all runs in which it was compared: what ratios are turned into ms by."""
        return statistics.median(t.base_ms for t in self.trials if t.base_ms is not None)

    def front(self) -> tuple[Trial, ...]:
        """The trials that none is better than: no faster one loses as little. Slowest first."""
        return front_of(self.trials)

    def to_json(self) -> dict[str, Any]:
        """Plain values; what `report.json` holds."""
        return {
            "format": FORMAT,
            "created": self.created,
            "kind": self.kind,
            "model": self.model,
            "task": self.task,
            "data": self.data,
            "options": asdict(self.options),
            "reference": self.reference,
            "base_ms": self.base_ms,
            "knobs": [
                {"name": k.name, "levels": [level.to_json() for level in k.levels], "why_not": k.why_not}
                for k in self.knobs
            ],
            "curves": [curve.to_json() for curve in self.curves],
            "trials": [trial.to_json() for trial in self.trials],
            "front": [trial.setting.to_json() for trial in self.front()],
            "by_hand": self.by_hand.setting.to_json() if self.by_hand else None,
            "chosen": self.chosen.setting.to_json(),
            "final": {**asdict(self.final), "rows": [row.to_json() for row in self.final.rows]},
            "ended": self.ended,
            "environment": self.environment,
            "commands": list(self.commands),
        }


def trials_of(alone: Sequence[Trial], curves: Sequence[Curve], combined: Sequence[Trial]) -> tuple[Trial, ...]:
    every = (*alone, *(trial for curve in curves for trial in curve.trials), *combined)
    once = {trial.setting.key: trial for trial in every}
    return tuple(sorted(once.values(), key=lambda trial: -trial.ratio))


def front_of(trials: Sequence[Trial]) -> tuple[Trial, ...]:
    kept: list[Trial] = []
    judged = [trial for trial in trials if trial.drop is not None and gains(trial.faster)]
    for trial in sorted(judged, key=lambda t: (t.drop, -t.ratio)):
        if not kept or trial.ratio > kept[-1].ratio:
            kept.append(trial)
    return tuple(kept)


def now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds").replace("+00:00", "Z")
