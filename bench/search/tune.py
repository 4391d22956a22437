"""The fastest artefact within a budget of accuracy: ranks × precision × size × proposals, as measured."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from regionrt.export.compress.checkpoint import chosen_layers
from regionrt.export.errors import ExportError
from regionrt.runtime.atomic import replace_folder
from regionrt.runtime.bundle import is_bundle
from regionrt.train.checkpoint import Checkpoint, module_from_checkpoint

from ..environment import environment
from .curves import gains, layer_curves
from .final import BudgetError, compare_and_judge
from .front import Choice
from .journal import JOURNAL
from .knobs import Knob, precision_knob, proposal_knob, rank_knob, size_knob, together
from .options import SearchOptions
from .rank_search import closest_of
from .result import SearchResult, now
from .settings import Setting
from .trial import Trial
from .workbench import Workbench

Progress = Callable[[str, float], None]
BUNDLE = "bundle"
_ALONE, _RANKS, _TOGETHER = 0.3, 0.55, 0.85  # shares of the search at which each phase ends
_SLACK = 0.9  # what is predicted to be this much of the best's speed is still worth a trial: predictions err


def tune(
    checkpoint: Checkpoint,
    data: str | Path,
    options: SearchOptions,
    out: str | Path,
    progress: Progress = lambda text, share: None,
) -> SearchResult:
    """Write `out`/bundle, the fastest artefact that keeps the budget; `out` also keeps the journal to go on from.

    Each knob is first turned alone, which is what is tried by hand; then settings together, those first that promise
    most. What a setting of several knobs loses is taken to be no less than what each of its parts loses: once one is
    over the budget, all that are at least as strong in every knob are passed over. The fastest that holds on
    `options.split` is judged on `options.judged_on`, beside the best single setting.

    Raises BudgetError with the closest figures where nothing that is faster holds: no bundle is then written. Others as
    `rank_search`.
    """
    out = Path(out)
    names, no_ranks = _layers(checkpoint, options)
    with Workbench(checkpoint, data, options, out / JOURNAL, names, progress) as bench:
        knobs = [precision_knob(options), proposal_knob(bench), size_knob(bench)]
        levels = [level for knob in knobs for level in knob.levels]
        alone: list[Trial] = []
        for number, level in enumerate(levels):
            bench.share = _ALONE * number / len(levels)
            alone += _measured(bench, level)
        curves = layer_curves(bench, lambda done: setattr(bench, "share", _ALONE + (_RANKS - _ALONE) * done))
        knobs.append(rank_knob(curves, options.searched_drop, no_ranks))
        for level in knobs[-1].levels:
            alone += _measured(bench, level)
        combined, ended = _together(bench, knobs, alone)
        found = [t for t in (*alone, *combined) if t.holds(options.searched_drop) and gains(t.faster)]
        if not found:
            raise BudgetError(
                f"no setting is faster within {options.searched_drop:g} points on {options.split}: nothing was written",
                closest_of([*alone, *(trial for curve in curves for trial in curve.trials)]),
            )
        by_hand = max((t for t in found if t in alone), key=lambda t: t.ratio, default=None)
        chosen = max(found, key=lambda t: t.ratio)
        bench.share = _TOGETHER
        built = bench.scratch / "found"
        final = compare_and_judge(bench, chosen, by_hand, built)
        with replace_folder(out / BUNDLE, is_bundle) as folder:
            shutil.copytree(built, folder, dirs_exist_ok=True)
        return SearchResult(
            "tune", options, checkpoint.model, bench.task.name, bench.data, bench.reference, tuple(knobs),
            tuple(curves), tuple(alone), tuple(combined), by_hand, chosen, final, ended, environment(bench.threads),
            now(),
        )  # fmt: skip


def _layers(checkpoint: Checkpoint, options: SearchOptions) -> tuple[tuple[str, ...], str]:
    """The layers whose ranks are searched; none, and why, where there is no such layer and none was named."""
    try:
        return tuple(chosen_layers(module_from_checkpoint(checkpoint), options.layers, options.spatial)), ""
    except ExportError as error:
        if options.layers:
            raise
        return (), str(error)


def _measured(bench: Workbench, setting: Setting) -> list[Trial]:
    """Its trial, if there is time for it."""
    if not bench.time_left and bench.known(setting) is None:
        return []
    return [bench.measure(setting, gains)]


def _together(bench: Workbench, knobs: Sequence[Knob], alone: Sequence[Trial]) -> tuple[list[Trial], str]:
    """Settings of two knobs and more, in the order of what they promise, and why no more were measured."""
    options = bench.options
    by_key = {trial.setting.key: trial for trial in alone}
    places: list[list[tuple[int, Choice[Setting]]]] = []
    for knob in knobs:
        place: list[tuple[int, Choice[Setting]]] = [(0, Choice(Setting(), 0.0, 0.0))]
        for strength, level in enumerate(knob.levels, 1):
            trial = by_key.get(level.key)
            if trial is not None and trial.holds(options.searched_drop) and gains(trial.faster):
                place.append((strength, Choice(level, math.log(trial.ratio), max(trial.drop or 0.0, 0.0))))
        places.append(place)
    waiting = [_Candidate.of(choices) for choices in product(*places)]
    waiting = [one for one in waiting if sum(strength > 0 for strength in one.strengths) > 1]
    best = max((t.ratio for t in alone if t.holds(options.searched_drop)), default=1.0)
    measured: list[Trial] = []
    while True:
        waiting = [one for one in waiting if math.exp(one.gain) > _SLACK * best]
        next_one = _most_promising(waiting, options.searched_drop)
        if next_one is None:
            return measured, "no other combination promises to be as fast within the budget"
        if len(measured) == options.confirm:
            return measured, f"{options.confirm} combinations were measured, as many as asked for"
        if not bench.time_left and bench.known(next_one.setting) is None:
            return measured, f"the {options.minutes:g} minutes were over"
        bench.share = _RANKS + (_TOGETHER - _RANKS) * len(measured) / options.confirm
        trial = bench.measure(next_one.setting)
        measured.append(trial)
        waiting.remove(next_one)
        if trial.holds(options.searched_drop):
            best = max(best, trial.ratio)
        else:
            waiting = [one for one in waiting if not one.at_least(next_one)]


@dataclass(frozen=True)
class _Candidate:
    """A setting of several knobs: how strong in each, and what its parts alone add up to."""

    setting: Setting
    strengths: tuple[int, ...]
    gain: float
    drop: float

    @classmethod
    def of(cls, choices: Sequence[tuple[int, Choice[Setting]]]) -> _Candidate:
        return cls(
            together([choice.value for _, choice in choices]),
            tuple(strength for strength, _ in choices),
            sum(choice.gain for _, choice in choices),
            sum(choice.drop for _, choice in choices),
        )

    def at_least(self, other: _Candidate) -> bool:
        return all(mine >= its for mine, its in zip(self.strengths, other.strengths, strict=True))


def _most_promising(waiting: Sequence[_Candidate], max_drop: float) -> _Candidate | None:
    """The fastest of those predicted to hold; else the one least over, up to twice the budget and 0.1 points."""
    within = [one for one in waiting if one.drop <= max_drop]
    if within:
        return max(within, key=lambda one: one.gain)
    near = [one for one in waiting if one.drop <= 2 * max_drop + 0.1]
    return min(near, key=lambda one: (one.drop, -one.gain), default=None)
