"""Candidates of one comparison, timed in turn; what takes too long for that is measured in parts."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from regionrt.bench.latency import disturbance, speedup
from regionrt.runtime.clock import Timing, TimingOptions, measure

from .seeds_schema import SeedRow, Times


@dataclass
class Candidate:
    """What one row calls. A sample is the call's time times the row's `factor`, and `extra_ms`."""

    row: SeedRow
    call: Callable[[], Any]
    extra_ms: float = 0.0


def time_candidates(candidates: Sequence[Candidate], timing: TimingOptions) -> None:
    """Fills the rows' `latency`, and `over_base` of all but the first, which is the base."""
    timings = measure({one.row.id: one.call for one in candidates}, timing)
    for one in candidates:
        found = timings[one.row.id]
        one.row.latency = _times(found, one.row.factor, one.extra_ms)
        one.row.note, one.row.noisy = disturbance(found), found.noisy
    base = candidates[0].row.latency
    assert base is not None
    for one in candidates[1:]:
        assert one.row.latency is not None
        one.row.over_base = speedup(base, one.row.latency)


def in_batches(
    row: SeedRow, batch: Callable[[], Any], size: int, of: tuple[int, str], seconds: float, least: float
) -> Candidate:
    """A part of a job of `of` items (how many, and what they are), batches of `size`, that takes `least` seconds.

    seconds: that an item takes, about. A single batch would be no fair part: it is the one that finds caches and memory
    as another candidate has left them.
    """
    total, what = of
    count = max(1, min(total // size, math.ceil(least / (seconds * size))))
    row.factor = total / (size * count)
    row.measured = f"batches of {size} of {total} {what}"
    if count > 1:
        row.measured = f"{count} {row.measured}, one after the other"

    def run() -> None:
        for _ in range(count):
            batch()

    return Candidate(row, run)


def fastest(calls: Mapping[Any, Callable[[], Any]], items: Mapping[Any, int], rounds: int = 3) -> tuple[Any, float]:
    """The key whose call takes the least for one of its items, and how many seconds that is."""
    timings = measure({str(key): call for key, call in calls.items()}, TimingOptions(1, 0.0, rounds=rounds))
    of_item = {key: timings[str(key)].min_ms * 1e-3 / items[key] for key in calls}
    best = min(of_item, key=lambda key: of_item[key])
    return best, of_item[best]


def seconds_of(call: Callable[[], Any]) -> float:
    """The second of two calls: the first one pays for what is made once."""
    call()
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def added(parts: Sequence[tuple[float, Times]]) -> Times:
    """The times of several rows, of the same rounds, each so many times."""
    samples = sum((count * np.array(times.samples_ms) for count, times in parts), np.zeros(()))
    kept = np.full(samples.shape, True)
    for _, times in parts:
        kept[list(times.disturbed)] = False
    # A part sets nothing aside that leaves nothing; together they may.
    return _summary(samples, kept if kept.any() else np.full(samples.shape, True))


def _times(timing: Timing, factor: float, extra_ms: float) -> Times:
    return _summary(np.array(timing.samples_ms) * factor + extra_ms, np.array(timing.kept))


def _summary(samples: np.ndarray, kept: np.ndarray) -> Times:
    p50, p90 = (float(value) for value in np.percentile(samples[kept], [50, 90]))
    disturbed = tuple(int(i) for i in np.flatnonzero(~kept))
    return Times(tuple(round(float(value), 3) for value in samples), disturbed, p50, p90)
