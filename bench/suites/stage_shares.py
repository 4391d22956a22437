"""Where a request of the staged form spends its time: each step, and what of it is not dense compute."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from regionrt.runtime.backends.staged import StagedRunner
from regionrt.runtime.predictor import Predictor

BEFORE, AFTER, REST = "canvas", "boxes and masks back", "between the steps"


@dataclass(frozen=True)
class Shares:
    """Median milliseconds by step, in order; `dense` names those that an engine runs.

    not_dense: median over requests of the part of a request's wall time that no engine worked.
    """

    steps_ms: dict[str, float]
    dense: list[str]
    not_dense: float


def shares_of(
    predict: Predictor, photos: Sequence[np.ndarray], rounds: int, proposals: Sequence[np.ndarray] | None = None
) -> Shares:
    """Profiles `rounds` requests over the photos in turn, after one to warm up. TypeError if it is not staged.

    proposals: of each photo, for nets that take them.
    """
    runner = predict.runner
    if not isinstance(runner, StagedRunner):
        raise TypeError(f"expected a staged artefact, found {predict.about}")
    dense = [step["name"] for step in runner.steps if "op" not in step]
    seen = []
    for number in range(rounds + 1):
        place = number % len(photos)
        seen.append(_request(predict, runner, photos[place], None if proposals is None else [proposals[place]]))
    seen = seen[1:]
    steps = {name: 1e3 * float(np.median([spent[name] for spent in seen])) for name in seen[0]}
    shares = [1 - sum(spent[name] for name in dense) / sum(spent.values()) for spent in seen]
    return Shares(steps, dense, float(np.median(shares)))


def _request(
    predict: Predictor, runner: StagedRunner, photo: np.ndarray, proposals: list[np.ndarray] | None
) -> dict[str, float]:
    """Seconds by step of one request as `bench.latency` has it."""
    start = time.perf_counter()
    prepared = predict.prepare([photo], proposals)
    placed = time.perf_counter()
    steps = runner.profile(prepared.images, prepared.image_sizes, **prepared.proposals)
    ran = time.perf_counter()
    outputs = predict.execute(prepared)  # `profile` keeps them to itself; this run is not counted
    again = time.perf_counter()
    for found in predict.finish(prepared, outputs):
        if found.roi_masks is not None:
            for _ in found.crops():
                pass
    done = time.perf_counter()
    rest = ran - placed - sum(steps.values())
    return {BEFORE: placed - start, **steps, REST: rest, AFTER: done - again}
