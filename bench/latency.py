"""Latency of whole requests, candidates in turn: canvas, artefact, boxes (and masks) back in the photo."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from regionrt.runtime.clock import Timing, TimingOptions, measure
from regionrt.runtime.predictor import Predictor
from regionrt.train.data.proposals import kept_for

from .schema import Latency, Ratio

Progress = Callable[[int, int | None], None]
BOOTSTRAP = 2000


@dataclass(frozen=True)
class Timed:
    """The latencies by name, and in one phrase for each how quiet the machine was ("" if nothing was disturbed).

    noisy: those of which more than half of the requests waited for a CPU, others having taken a part of them.
    """

    latencies: dict[str, Latency]
    disturbances: dict[str, str]
    rounds: int
    noisy: frozenset[str] = frozenset()


class Samples(Protocol):
    """What a ratio is made of: times in ms, one for each round, which of them were disturbed, and their median."""

    @property
    def samples_ms(self) -> tuple[float, ...]: ...

    @property
    def disturbed(self) -> tuple[int, ...]: ...

    @property
    def p50_ms(self) -> float: ...


class Requests:
    """One candidate's requests over a ring of photos: each call is the next photo; keeps the time of every stage."""

    def __init__(
        self, predict: Predictor, photos: Sequence[np.ndarray], batch: int = 1, mask_score: float = 0.5
    ) -> None:
        self.predict = predict
        self.photos = photos
        self.proposals = kept_for(predict, photos)  # searching is no part of a request
        self.batch = batch
        self.mask_score = mask_score
        self.stages_ms: list[np.ndarray] = []  # [3] each: preprocess, run, postprocess
        self.detections: list[int] = []
        self._next = 0

    def __call__(self) -> None:
        """Masks of detections above `mask_score` are pasted: a request ends with what a user would look at."""
        places = [(self._next + k) % len(self.photos) for k in range(self.batch)]
        self._next += self.batch
        spent = np.zeros(3)
        detections = 0
        for start in range(0, self.batch, self.predict.max_batch):
            times, found = self._through(places[start : start + self.predict.max_batch])
            spent += times
            detections += found
        self.stages_ms.append(1e3 * spent)
        self.detections.append(detections)

    def _through(self, places: Sequence[int]) -> tuple[np.ndarray, int]:
        """Seconds in each stage, and how many detections are above `mask_score`."""
        photos = [self.photos[place] for place in places]
        proposals = [[boxes[place] for place in places] for boxes in self.proposals]
        start = time.perf_counter()
        prepared = self.predict.prepare(photos, *proposals)
        placed = time.perf_counter()
        outputs = self.predict.execute(prepared)
        ran = time.perf_counter()
        detections = looked_at(self.predict.finish(prepared, outputs), self.mask_score)
        done = time.perf_counter()
        return np.array([placed - start, ran - placed, done - ran]), detections


def looked_at(results: Sequence[Any], mask_score: float) -> int:
    """Pastes the masks of detections above `mask_score`, as who looks at them does; how many detections these are."""
    kept = [found.above(mask_score) for found in results]
    for found in kept:
        if getattr(found, "roi_masks", None) is not None:
            for _ in found.crops():
                pass
    return sum(map(len, kept))


def time_requests(
    predictors: Mapping[str, Predictor],
    photos: Sequence[np.ndarray],
    options: TimingOptions,
    *,
    batch: int = 4,
    batch_options: TimingOptions | None = None,
    mask_score: float = 0.5,
    progress: Progress | None = None,
) -> Timed:
    """Times every predictor interleaved, one photo per request; then batches of `batch` (1: leaves that out).

    photos: decoded, RGB uint8 [H, W, 3]; decoding is not part of a request. Each round gives every candidate the same
    photo. Errors of a candidate pass through.
    """
    if not photos:
        raise ValueError("time_requests: expected at least one photo")
    ring = {name: Requests(predict, photos, mask_score=mask_score) for name, predict in predictors.items()}
    measured = measure(ring, options, progress=progress)
    speeds = {name: {"1": measured[name].throughput_per_s} for name in predictors}
    if batch > 1:
        batched = {n: Requests(predict, photos, batch, mask_score) for n, predict in predictors.items()}
        in_batches = measure(batched, batch_options or TimingOptions(1, 0.0, rounds=5), items_per_call=batch)
        for name in predictors:
            speeds[name][str(batch)] = in_batches[name].throughput_per_s
    return Timed(
        {name: _latency(measured[name], ring[name], speeds[name]) for name in predictors},
        {name: disturbance(measured[name]) for name in predictors},
        measured.rounds,
        frozenset(name for name in predictors if measured[name].noisy),
    )


def speedup(other: Samples, this: Samples, seed: int = 0) -> Ratio:
    """How many times faster `this` is than `other`: ratio of the medians, 95 % interval of a bootstrap over rounds.

    Rounds in which either was disturbed take no part in ratio and interval, unless that leaves none: the ratio may
    differ a little from that of the two `p50_ms`, each of which is over all its own undisturbed rounds.
    """
    left_out = set(other.disturbed) | set(this.disturbed)
    rounds = [i for i in range(len(this.samples_ms)) if i not in left_out] or list(range(len(this.samples_ms)))
    pairs = np.array([(other.samples_ms[i], this.samples_ms[i]) for i in rounds])
    rng = np.random.default_rng(seed)
    medians = np.median(pairs[rng.integers(0, len(pairs), (BOOTSTRAP, len(pairs)))], axis=1)  # [B, 2]
    low, high = np.percentile(medians[:, 0] / medians[:, 1], [2.5, 97.5])
    of_other, of_this = np.median(pairs, axis=0)
    return Ratio(float(of_other / of_this), float(low), float(high))


def disturbance(timing: Timing) -> str:
    """One phrase if other load got in the way, else ""."""
    if timing.noisy:
        return (
            f"the machine was not quiet: {timing.disturbed} of {len(timing.samples_ms)} requests waited for a CPU, "
            "so all are counted; read p90 and p99 with care"
        )
    if 2 * timing.disturbed > len(timing.samples_ms):
        return (
            f"{timing.disturbed} of {len(timing.samples_ms)} requests waited for a CPU, of which other processes took "
            "next to nothing: all are counted"
        )
    if timing.disturbed:
        return f"{timing.disturbed} of {len(timing.samples_ms)} requests were disturbed by other load and are left out"
    return ""


def _latency(timing: Timing, requests: Requests, speeds: dict[str, float]) -> Latency:
    count = len(timing.samples_ms)  # the last `count` calls: those before were warm-up
    kept = np.array(timing.kept)
    stages = np.array(requests.stages_ms[-count:])[kept].mean(axis=0)
    stages *= timing.mean_ms / stages.sum()  # the clock's own microseconds around the stages, spread over them
    return Latency(
        samples_ms=tuple(round(value, 4) for value in timing.samples_ms),
        disturbed=tuple(int(i) for i in np.flatnonzero(~kept)),
        p50_ms=timing.p50_ms,
        p90_ms=timing.p90_ms,
        p99_ms=timing.p99_ms,
        mean_ms=timing.mean_ms,
        stages_ms={
            name: float(value) for name, value in zip(("preprocess", "run", "postprocess"), stages, strict=True)
        },
        images_per_second=speeds,
        detections_per_image=float(np.mean(requests.detections[-count:])),
    )
