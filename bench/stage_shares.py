"""Where a request of the staged form spends its time: each step, and what of it is not dense compute."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import numpy as np

from regionrt.runtime.backends.staged import StagedRunner
from regionrt.runtime.clock import TimingOptions, measure
from regionrt.runtime.predictor import Predictor

from .latency import looked_at
from .schema import Shares

BEFORE, AFTER, REST = "canvas", "boxes and masks back", "between the steps"


class Profiled:
    """One staged artefact's requests over a ring of photos: each call is the next one; keeps the time of each step."""

    def __init__(
        self,
        predict: Predictor,
        photos: Sequence[np.ndarray],
        proposals: Sequence[np.ndarray] | None = None,
        *,
        mask_score: float = 0.0,
    ) -> None:
        """proposals: of each photo, for nets that take them. mask_score: masks of detections above it are pasted.

        TypeError if the artefact is not staged.
        """
        if not isinstance(predict.runner, StagedRunner):
            raise TypeError(f"expected a staged artefact, found {predict.about}")
        self.predict = predict
        self.runner = predict.runner
        self.photos = photos
        self.proposals = proposals
        self.mask_score = mask_score
        self.spent: list[dict[str, float]] = []  # seconds by step, in order
        self._next = 0

    def __call__(self) -> None:
        place = self._next % len(self.photos)
        self._next += 1
        start = time.perf_counter()
        given = None if self.proposals is None else [self.proposals[place]]
        prepared = self.predict.prepare([self.photos[place]], given)
        placed = time.perf_counter()
        outputs, steps = self.runner.profile(prepared.images, prepared.image_sizes, **prepared.proposals)
        ran = time.perf_counter()
        looked_at(self.predict.finish(prepared, outputs), self.mask_score)
        done = time.perf_counter()
        rest = ran - placed - sum(steps.values())
        self.spent.append({BEFORE: placed - start, **steps, REST: rest, AFTER: done - ran})

    def shares(self, kept: Sequence[bool]) -> Shares:
        """Of the last requests, those that `kept` says."""
        seen = [spent for spent, keep in zip(self.spent[-len(kept) :], kept, strict=True) if keep]
        dense = tuple(step["name"] for step in self.runner.steps if "op" not in step)
        steps = {name: 1e3 * float(np.median([spent[name] for spent in seen])) for name in seen[0]}
        glue = [1 - sum(spent[name] for name in dense) / sum(spent.values()) for spent in seen]
        return Shares(steps, dense, float(np.median(glue)))


def shares_in_turn(candidates: Mapping[str, Profiled], options: TimingOptions) -> dict[str, Shares]:
    """Profiles candidates interleaved, by name; requests that other load disturbed are left out."""
    if not candidates:
        return {}
    timed = measure(candidates, options)
    return {name: profiled.shares(timed[name].kept) for name, profiled in candidates.items()}


def shares_of(
    predict: Predictor, photos: Sequence[np.ndarray], rounds: int, proposals: Sequence[np.ndarray] | None = None
) -> Shares:
    """Profiles `rounds` requests over the photos in turn, after one to warm up. TypeError if it is not staged."""
    options = TimingOptions(warmup_rounds=1, warmup_seconds=0.0, rounds=rounds)
    return shares_in_turn({"": Profiled(predict, photos, proposals)}, options)[""]
