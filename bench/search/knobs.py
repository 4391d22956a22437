"""What `tune` turns: precision, size of the canvas, number of proposals and ranks, each from mild to strong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

from regionrt.export.artifacts import STAGED_BACKENDS
from regionrt.train.checkpoint import module_from_checkpoint
from regionrt.train.models.errors import ModelError

from .curves import Curve
from .front import best_combinations, thinned
from .options import SearchOptions
from .settings import FP32, Setting
from .workbench import Workbench

CAREFUL, USUAL = 0.03, 0.1
"""Of int8: the largest errors of a quantised layer that are tried."""
_SIZES = (0.85, 0.7, 0.5)
_PROPOSALS = (0.5, 0.25, 0.1, 0.05)
_RUNGS = 3  # combinations of ranks


@dataclass(frozen=True)
class Knob:
    """levels: settings that differ from the base in this alone, mild ones first. why_not: why there is none."""

    name: str
    levels: tuple[Setting, ...]
    why_not: str = ""


def precision_knob(options: SearchOptions) -> Knob:
    """bf16 where the backend computes in it, int8 with few and with more layers."""
    can = [p for p, backends in STAGED_BACKENDS.items() if options.backend in backends and p != FP32]
    wanted = can if options.precisions is None else [p for p in options.precisions if p != FP32]
    levels: list[Setting] = []
    for precision in sorted(wanted, key=lambda p: p == "int8"):
        errors = (CAREFUL, USUAL) if precision == "int8" else (None,)
        levels += [Setting(precision=precision, most_error=error) for error in errors]
    return Knob("precision", tuple(levels), "" if levels else "left out")


def size_knob(bench: Workbench) -> Knob:
    """Smaller canvases of the same shape, in steps of the stride."""
    module = module_from_checkpoint(bench.checkpoint)
    canvas = bench.task.canvas_of(module)
    own, step = (canvas.height, canvas.width), canvas.multiple
    wanted = bench.options.sizes
    if wanted is None:
        wanted = tuple(
            (max(round(own[0] * share / step), 1) * step, max(round(own[1] * share / step), 1) * step)
            for share in _SIZES
        )
    levels, why = [], ""
    for size in sorted(dict.fromkeys(wanted), key=lambda s: -s[0] * s[1]):
        if size == own:
            continue
        try:
            bench.task.canvas_of(module, size)
        except ModelError as error:
            if bench.options.sizes is not None:
                raise
            why = str(error)
            continue
        levels.append(Setting(size=size))
    return Knob("size", tuple(levels), "" if levels else why or "left out")


def proposal_knob(bench: Workbench) -> Knob:
    """Fewer proposals; nets without regions have none."""
    own = bench.task.thresholds_of(module_from_checkpoint(bench.checkpoint)).get("proposals")
    if own is None:
        return Knob("proposals", (), f"a net for {bench.task.name} has none")
    wanted = bench.options.proposals
    if wanted is None:
        wanted = tuple(max(round(own * share), 1) for share in _PROPOSALS)
    levels = [Setting(proposals=n) for n in sorted(set(wanted), reverse=True) if n != own]
    return Knob("proposals", tuple(levels), "" if levels else "left out")


def rank_knob(curves: Sequence[Curve], max_drop: float, why_not: str = "") -> Knob:
    """A few combinations of ranks, as the layers' curves promise them."""
    front = best_combinations([curve.choices(max_drop) for curve in curves])[1:]
    levels = [
        Setting({c.layer: rank for c, rank in zip(curves, one.values, strict=True) if rank is not None})
        for one in (thinned(front, _RUNGS) if front else [])
    ]
    told = "; ".join(f"{curve.layer}: {curve.left_alone}" for curve in curves if curve.left_alone)
    return Knob("ranks", tuple(levels), "" if levels else why_not or told)


def together(levels: Sequence[Setting]) -> Setting:
    """One setting of levels of different knobs."""
    whole, base = Setting(), Setting()
    for level in levels:
        changed: Mapping[str, object] = {
            f.name: getattr(level, f.name) for f in fields(Setting) if getattr(level, f.name) != getattr(base, f.name)
        }
        whole = replace(whole, **changed)  # type: ignore[arg-type]
    return whole
