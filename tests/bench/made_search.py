"""A workbench whose measurements follow formulas, so that what a search finds can be compared with all there is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from regionrt.bench.schema import Accuracy, Difference, Latency, Ratio
from regionrt.bench.search.final import BASE, BY_HAND, CHOSEN, TORCH, Final, Row
from regionrt.bench.search.options import SearchOptions
from regionrt.bench.search.settings import Setting
from regionrt.bench.search.trial import Trial

SPREAD = 0.005


@dataclass
class MadePairs:
    largest_ranks: dict[str, int]

    @property
    def layers(self) -> dict[str, int]:
        return self.largest_ranks

    def largest(self, name: str) -> int:
        return self.largest_ranks[name]

    def describe(self, name: str) -> str:
        return f"{2 * self.largest_ranks[name]}→{2 * self.largest_ranks[name]}"


@dataclass
class MadeBench:
    """faster, drop: of a setting. calls: the settings that were really measured, in order."""

    options: SearchOptions
    faster: Callable[[Setting], float]
    drop: Callable[[Setting], float]
    pairs: MadePairs = field(default_factory=lambda: MadePairs({}))
    after: int | None = None  # so many measurements fit into the time
    calls: list[Setting] = field(default_factory=list)
    journal: dict[str, Trial] = field(default_factory=dict)
    share: float = 0.0

    @property
    def time_left(self) -> bool:
        return self.after is None or len(self.calls) < self.after

    def known(self, setting: Setting) -> Trial | None:
        return self.journal.get(setting.key)

    def measure(self, setting: Setting, worth: Callable[[Ratio], bool] = lambda ratio: True) -> Trial:
        if setting.key not in self.journal:
            self.calls.append(setting)
            ratio = self.faster(setting)
            found = Ratio(ratio, ratio - SPREAD, ratio + SPREAD)
            drop = self.drop(setting) if worth(found) else None
            self.journal[setting.key] = Trial(setting, found, 100 / ratio, 100.0, drop, 1000)
        return self.journal[setting.key]


def latency(p50: float) -> Latency:
    return Latency((p50,) * 20, (), p50, 1.1 * p50, 1.2 * p50, p50, {"run": p50}, {"1": 1000 / p50}, 1.0)


def row(name: str, setting: Setting | None, p50: float, points: float | None) -> Row:
    lost = None if points is None else Difference("AP", points, points - 0.3, points + 0.3, 0.95, 1000, 0)
    accuracy = Accuracy(72, {"AP": 0.5 + (points or 0) / 100}, {}, (lost,) if lost else ())
    faster = None if name == BASE else Ratio(100 / p50, 95 / p50, 105 / p50)
    return Row(name, setting, latency(p50), faster, accuracy, lost)


def final(chosen: Setting, by_hand: Setting | None) -> Final:
    rows = [row(TORCH, None, 210.0, None), row(BASE, Setting(), 100.0, 0.0)]
    if by_hand is not None:
        rows.append(row(BY_HAND, by_hand, 70.0, -0.1))
    rows.append(row(CHOSEN, chosen, 45.0, -0.4))
    return Final(tuple(rows), Ratio(1.56, 1.5, 1.6) if by_hand else None, "test", 72, 20)
