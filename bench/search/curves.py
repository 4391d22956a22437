"""Layer by layer: what each rank gains in measured latency and loses in measured accuracy, every other layer whole."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..schema import Ratio
from .front import Choice
from .settings import Setting
from .trial import Trial
from .workbench import Workbench

GAIN = 1.02
"""Less than two percent is no gain, and not worth an evaluation: runs of one artefact differ by as much."""


@dataclass(frozen=True)
class Curve:
    """One layer's ranks, falling, each a trial of that layer alone. left_alone: why none of them may be used, or ""."""

    layer: str
    shape: str
    trials: tuple[Trial, ...]
    left_alone: str

    def rank(self, trial: Trial) -> int:
        return trial.setting.ranks[self.layer]

    def choices(self, max_drop: float) -> list[Choice[int]]:
        """The ranks that gain and hold alone, with the share of the base's time that they save."""
        if self.left_alone:
            return []
        return [
            Choice(self.rank(t), 1 - 1 / t.ratio, max(t.drop or 0.0, 0.0))
            for t in self.trials
            if t.holds(max_drop) and gains(t.faster)
        ]

    def to_json(self) -> dict[str, Any]:
        return {
            "layer": self.layer,
            "shape": self.shape,
            "left_alone": self.left_alone,
            "trials": [trial.to_json() for trial in self.trials],
        }


def gains(faster: Ratio | None) -> bool:
    return faster is not None and faster.ratio > GAIN


def ranks_to_try(largest: int, multiple: int, points: int) -> list[int]:
    """Half of the largest useful rank, a quarter …, rounded up to the multiple, falling; none where none is smaller."""
    ranks = {-(-largest // (2 << i) // multiple) * multiple for i in range(points)}
    return sorted((rank for rank in ranks if multiple <= rank <= largest), reverse=True)


def layer_curves(bench: Workbench, share: Callable[[float], None] = lambda done: None) -> list[Curve]:
    """The curve of each layer that the workbench can split.

    The smallest rank goes first: where not even that gains, the other ranks are spared. From there on the rank grows,
    until it gains no more, or one loses nothing (of two at least), or the time is up.
    """
    curves = []
    names = list(bench.pairs.layers)
    for number, name in enumerate(names):
        share(number / len(names))
        curves.append(_curve(bench, name))
    return curves


def _curve(bench: Workbench, name: str) -> Curve:
    options, shape = bench.options, bench.pairs.describe(name)
    ranks = ranks_to_try(bench.pairs.largest(name), options.multiple, options.points)
    if not ranks:
        why = f"no multiple of {options.multiple} makes it smaller (the largest rank that does is "
        return Curve(name, shape, (), f"{why}{bench.pairs.largest(name)})")
    trials: list[Trial] = []
    for rank in reversed(ranks):
        setting = Setting({name: rank})
        if not bench.time_left and bench.known(setting) is None:
            break
        trials.append(bench.measure(setting, gains))
        if not gains(trials[-1].faster):
            break  # a larger rank is slower still
        if len(trials) > 1 and (trials[-1].drop or 0.0) <= 0:
            break  # nor can a larger one lose less than nothing
    trials.reverse()
    return Curve(name, shape, tuple(trials), _left_alone(trials, name, options.searched_drop))


def _left_alone(trials: list[Trial], name: str, max_drop: float) -> str:
    """Why a layer stays whole, with the figures that say so; "" where a rank may be used."""
    if not trials:
        return "the time was up before it was measured"
    smallest = trials[-1]
    rank = smallest.setting.ranks[name]
    if smallest.failed:
        return smallest.failed
    if not gains(smallest.faster):
        assert smallest.faster is not None
        found = smallest.faster
        return f"even rank {rank} gains nothing: {found.ratio:.2f}× as fast [{found.low:.2f}, {found.high:.2f}]"
    fast = [trial for trial in trials if gains(trial.faster)]
    if not any(trial.holds(max_drop) for trial in fast):
        best = min(fast, key=lambda trial: trial.drop if trial.drop is not None else float("inf"))
        return (
            f"every rank that is faster loses more than {max_drop:g} points: rank {best.setting.ranks[name]} loses "
            f"{best.drop:.2f} and is {best.ratio:.2f}× as fast"
        )
    return ""
