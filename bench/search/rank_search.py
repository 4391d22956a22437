"""Ranks by layer that make a net fastest, as measured, within a budget of accuracy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from regionrt.export.compress.checkpoint import chosen_layers
from regionrt.train.checkpoint import Checkpoint, module_from_checkpoint

from ..environment import environment
from .curves import Curve, gains, layer_curves
from .final import BudgetError, compare_and_judge
from .front import Combination, best_combinations, thinned
from .journal import JOURNAL
from .options import SearchOptions
from .result import SearchResult, now
from .settings import Setting
from .trial import Trial
from .workbench import Workbench

Progress = Callable[[str, float], None]
_STEPS = 16  # combinations of the predicted front that are walked along
_CURVES, _COMBINED = 0.6, 0.85  # shares of the search at which each phase ends


def rank_search(
    checkpoint: Checkpoint,
    data: str | Path,
    options: SearchOptions,
    folder: str | Path,
    progress: Progress = lambda text, share: None,
) -> tuple[SearchResult, Checkpoint]:
    """What was found and the compressed checkpoint; `folder` keeps the journal, from which a search goes on.

    Every layer's curve is measured first; the best combinations that the curves promise are then measured together, up
    from the edge of the budget while they hold, down while they do not. The fastest that holds on
    `options.split` is judged on `options.judged_on`. Raises BudgetError with the closest figures where nothing that is
    faster holds, ExportError (layers, photos), DataError, BenchError (a journal of another search).
    """
    names = tuple(chosen_layers(module_from_checkpoint(checkpoint), options.layers, options.spatial))
    with Workbench(checkpoint, data, options, Path(folder) / JOURNAL, names, progress) as bench:
        curves = layer_curves(bench, lambda done: setattr(bench, "share", _CURVES * done))
        bench.share = _CURVES
        front = best_combinations([curve.choices(options.searched_drop) for curve in curves])
        combined, ended = _walk(bench, names, front)
        alone = [trial for curve in curves for trial in curve.trials]
        found = [t for t in (*alone, *combined) if t.holds(options.searched_drop) and gains(t.faster)]
        if not found:
            raise BudgetError(_nothing(curves, options.searched_drop), closest_of(alone))
        chosen = max(found, key=lambda trial: trial.ratio)
        bench.share = _COMBINED
        by_hand = max((t for t in found if len(t.setting.ranks) == 1), key=lambda t: t.ratio, default=None)
        final = compare_and_judge(bench, chosen, by_hand, bench.scratch / "found")
        result = SearchResult(
            "ranks", options, checkpoint.model, bench.task.name, bench.data, bench.reference, (), tuple(curves), (),
            tuple(combined), by_hand, chosen, final, ended, environment(bench.threads), now(),
        )  # fmt: skip
        return result, bench.checkpoint_of(chosen.setting)


def closest_of(trials: list[Trial]) -> Trial | None:
    """The trial that is faster and loses least; None where none is faster."""
    known = [trial for trial in trials if trial.drop is not None and gains(trial.faster)]
    return min(known, key=lambda trial: trial.drop or 0.0, default=None)


def setting_of(names: tuple[str, ...], combination: Combination[int]) -> Setting:
    return Setting({name: rank for name, rank in zip(names, combination.values, strict=True) if rank is not None})


def _walk(bench: Workbench, names: tuple[str, ...], front: list[Combination[int]]) -> tuple[list[Trial], str]:
    """The combinations that were measured, and why no more were."""
    steps = thinned(front, _STEPS)
    edge = max(i for i, step in enumerate(steps) if step.drop <= bench.options.searched_drop)
    measured: list[Trial] = []
    at, up = edge, None
    while 0 < at < len(steps):
        if len(measured) == bench.options.confirm:
            return measured, f"{bench.options.confirm} combinations were measured, as many as asked for"
        setting = setting_of(names, steps[at])
        if not bench.time_left and bench.known(setting) is None:
            return measured, f"the {bench.options.minutes:g} minutes were over"
        bench.share = _CURVES + (_COMBINED - _CURVES) * len(measured) / max(bench.options.confirm, 1)
        trial = bench.measure(setting)
        if len(setting.ranks) > 1:  # else it is of a curve
            measured.append(trial)
        held = trial.holds(bench.options.searched_drop)
        if up is None:
            up = held
        elif up != held:
            break
        at += 1 if up else -1
    return measured, "the next combination on the front was measured too: it is over the budget, or there is none"


def _nothing(curves: list[Curve], max_drop: float) -> str:
    told = "; ".join(f"{curve.layer.rpartition('.')[2]}: {curve.left_alone}" for curve in curves if curve.left_alone)
    return f"no rank of any layer is faster within {max_drop:g} points: nothing was written ({told})"
