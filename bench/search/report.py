"""What a search found, as report.json, report.md and a self-contained report.html."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from regionrt.runtime.atomic import write_file_atomic

from .. import figures
from ..headline import metric_label
from ..render import markdown_of, page_of
from ..schema import Ratio
from ..wording import words_of
from .final import CHOSEN, TORCH, Row
from .plot import KINDS, colour_of, front_plot
from .result import SearchResult
from .trial import Trial


def write_report(result: SearchResult, folder: str | Path) -> list[Path]:
    """Write the three files; their paths."""
    shown = view(result)
    out = Path(folder)
    out.mkdir(parents=True, exist_ok=True)
    texts = {
        "report.json": json.dumps(result.to_json(), indent=1, ensure_ascii=False, allow_nan=False) + "\n",
        "report.md": markdown_of("search.md", shown),
        "report.html": page_of("search.html", {**shown, "plot": front_plot(result)}),
    }
    for name, text in texts.items():
        write_file_atomic(out / name, text)
    return [out / name for name in texts]


def view(result: SearchResult) -> dict[str, Any]:
    """The variables of both templates."""
    what = "Ranks by layer" if result.kind == "ranks" else "Settings"
    data = result.data.partition(":")[0] if result.data.startswith("shapes") else Path(result.data).absolute().name
    return {
        "title": f"{what} searched: {result.model} on {data}, {result.options.backend}",
        "lead": _lead(result),
        "tiles": _tiles(result),
        "notes": _notes(result),
        "kinds": [(kind, f"var(--series-{i})") for i, kind in enumerate(KINDS)],
        "final": [_final_row(row) for row in result.final.rows],
        "final_caption": _final_caption(result),
        "metric": _metric(result),
        "trials": [_trial_row(trial, result) for trial in result.trials],
        "trial_caption": _trial_caption(result),
        "layers": [
            {
                "name": curve.layer,
                "shape": curve.shape,
                "ranks": ", ".join(_rank(curve.rank(trial), trial) for trial in curve.trials) or figures.NONE,
                "verdict": f"left alone: {curve.left_alone}" if curve.left_alone else "may be split",
            }
            for curve in result.curves
        ],
        "knobs": [(knob.name, knob.why_not) for knob in result.knobs if knob.why_not],
        "environment": result.environment,
        "commands": result.commands,
        "created": result.created,
    }


def _lead(result: SearchResult) -> str:
    row = result.final.row(CHOSEN)
    assert row is not None
    assert row.faster is not None
    assert row.difference is not None
    return (
        f"{result.chosen.setting}: {figures.times(row.faster)} as fast as the fp32 artefact as it is "
        f"[{figures.ratio(row.faster.low)}, {figures.ratio(row.faster.high)}], "
        f"{figures.interval(row.difference)} points of {metric_label(row.difference.metric)} on the "
        f"{result.final.images} images of {result.final.split}, which the search has not seen."
    )


def _tiles(result: SearchResult) -> list[dict[str, str]]:
    final = result.final
    row, torch = final.row(CHOSEN), final.row(TORCH)
    assert row is not None
    assert torch is not None
    assert row.difference is not None
    over_torch = Ratio(torch.latency.p50_ms / row.latency.p50_ms, 0, 0)
    tiles = [
        _tile("faster than fp32 as it is", figures.times(row.faster), figures.milliseconds(row.latency.p50_ms) + " ms"),
        _tile("faster than PyTorch eager", figures.times(over_torch), figures.change(torch.latency, row.latency)),
        _tile(
            f"{metric_label(row.difference.metric)}, points",
            figures.points(row.difference.points, sign=True),
            f"{figures.interval(row.difference)}, allowed are −{result.options.max_drop:g}",
        ),
    ]
    if final.over_hand is not None:
        interval = f"[{figures.ratio(final.over_hand.low)}, {figures.ratio(final.over_hand.high)}]"
        told = f"{interval} over {result.by_hand.setting if result.by_hand else ''}"
        tiles.append(_tile("faster than the best single setting", figures.times(final.over_hand), told))
    return tiles


def _tile(label: str, value: str, detail: str) -> dict[str, str]:
    return {"label": label, "value": value, "detail": detail, "tone": ""}


def _notes(result: SearchResult) -> list[str]:
    front = result.front()
    notes = [f"The search ended because {result.ended}."]
    if result.final.over_hand is None and result.by_hand is not None:
        within = sum(trial.holds(result.options.searched_drop) for trial in front)
        notes.append(
            "The best setting is one that turns a single knob: of the settings that turn several, none that was "
            f"measured is faster within the budget ({within} of {len(front)} settings on the front are within it)."
        )
    return notes


def _final_row(row: Row) -> dict[str, Any]:
    values = (row.latency.p50_ms, row.latency.p90_ms)
    return {
        "name": row.name,
        "detail": str(row.setting) if row.setting is not None and row.name != "fp32, as it is" else "",
        "chosen": row.name == CHOSEN,
        "cells": [
            *map(figures.milliseconds, values),
            "1.00×" if row.faster is None else _interval(row.faster),
            figures.points(next((v for k, v in row.accuracy.metrics.items() if k == _name(row)), None)),
            "reference" if row.difference is None else figures.interval(row.difference),
        ],
    }


def _name(row: Row) -> str:
    return row.difference.metric if row.difference is not None else next(iter(row.accuracy.metrics), "")


def _metric(result: SearchResult) -> str:
    row = result.final.row(CHOSEN)
    name = row.difference.metric if row is not None and row.difference is not None else words_of(result.task).metric
    return metric_label(name)


def _trial_row(trial: Trial, result: SearchResult) -> dict[str, Any]:
    if trial.failed:
        verdict = f"not possible: {trial.failed}"
    elif trial.drop is None:
        verdict = "not faster, so not evaluated"
    else:
        verdict = "within the budget" if trial.holds(result.options.searched_drop) else "over the budget"
    on_front = trial.setting in [one.setting for one in result.front()]
    ms = result.base_ms / trial.ratio if trial.ratio else None
    return {
        "name": str(trial.setting),
        "colour": colour_of(trial.setting),
        "chosen": trial.setting == result.chosen.setting,
        "cells": [
            figures.milliseconds(ms),
            figures.NONE if trial.faster is None else _interval(trial.faster),
            figures.NONE if trial.drop is None else figures.points(-trial.drop, sign=True),
            figures.size(trial.size_bytes),
        ],
        "verdict": verdict + (", on the front" if on_front else ""),
    }


def _interval(ratio: Ratio) -> str:
    return f"{figures.times(ratio)} [{figures.ratio(ratio.low)}, {figures.ratio(ratio.high)}]"


def _rank(rank: int, trial: Trial) -> str:
    lost = "" if trial.drop is None else f", {figures.points(-trial.drop, sign=True)}"
    return f"{rank} ({figures.times(trial.faster)}{lost})"


def _final_caption(result: SearchResult) -> str:
    return (
        f"All ran in one process, request by request in turn ({result.final.rounds} rounds), on the same photos; "
        "faster: than the artefact in fp32 as it is, ratio of the medians with a 95 % interval. Accuracy on the "
        f"{result.final.images} images of {result.final.split}, differences to PyTorch eager in points with a paired "
        "bootstrap interval."
    )


def _trial_caption(result: SearchResult) -> str:
    return (
        "Each setting ran in turn with the fp32 artefact; milliseconds are that one's median of all runs "
        f"({figures.milliseconds(result.base_ms)} ms) divided by the ratio. Points on {result.options.split}, against "
        "PyTorch eager: the worst of the metrics that the contract is about."
    )
