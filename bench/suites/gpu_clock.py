"""Time on a GPU: events around many launches in a CUDA graph, or around one call and what the host waits for.

What is compared runs interleaved, each candidate over several copies of its inputs in turn, so that together they are
larger than the GPU's L2 cache. The candidate that comes first is timed twice under two names: what differs between the
two is noise.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

GRAPH_LAUNCHES = 24
"""At least so many launches stand in one graph: the graph's own launch is shared by them."""
AGAIN = " (again)"
Call = Callable[[], object]


@dataclass(frozen=True)
class Candidate:
    """One way to compute something. calls: the same work on each copy of the inputs.

    graph: it can be captured (nothing waits for the GPU), and is timed as the replay of a graph. Else a call is timed
    from before it to the end of all that it put on the GPU: what a user waits for, the host's part included.
    """

    calls: Sequence[Call]
    graph: bool = True


@dataclass(frozen=True)
class GpuTiming:
    """Microseconds per call: median and quartiles of `samples`; how: "graph" or "call"."""

    median_us: float
    low_us: float
    high_us: float
    samples: int
    how: str


@dataclass(frozen=True)
class Run:
    """A candidate that is ready: runs it once (a call, or a graph of many) and gives the microseconds per call."""

    once: Callable[[], float]
    how: str


class GpuClock:
    """Times on torch's current CUDA device."""

    def prepare(self, candidate: Candidate) -> Run:
        """Warms it up and captures it. Raises what the candidate raises."""
        for call in candidate.calls[:2]:  # modules are loaded, workspaces made, before a capture
            call()
        torch.cuda.synchronize()
        if candidate.graph:
            launches = -(-GRAPH_LAUNCHES // len(candidate.calls)) * len(candidate.calls)
            replay = captured(lambda: [candidate.calls[i % len(candidate.calls)]() for i in range(launches)]).replay
            return Run(lambda: _between_events(replay) / launches, "graph")
        turns = itertools.cycle(candidate.calls)
        return Run(lambda: _between_events(next(turns)), "call")

    def measure(self, runs: Mapping[str, Run], seconds: float, least: int = 7) -> dict[str, GpuTiming]:
        """Times all, interleaved, about `seconds` each, and the first once more under its name + AGAIN."""
        first = next(iter(runs))
        runs = {**runs, first + AGAIN: runs[first]}
        samples: dict[str, list[float]] = {name: [] for name in runs}
        for run in runs.values():
            for _ in range(3):
                run.once()
        end = time.perf_counter() + seconds * len(runs)
        done = 0
        while done < least or time.perf_counter() < end:
            for name in _turned(list(runs), done):
                samples[name].append(runs[name].once())
            done += 1
        return {name: _timing(values, runs[name].how) for name, values in samples.items()}


class HostClock:
    """The same on a CPU, by the wall clock, for tests."""

    def prepare(self, candidate: Candidate) -> Run:
        candidate.calls[0]()
        turns = itertools.cycle(candidate.calls)

        def once() -> float:
            started = time.perf_counter()
            next(turns)()
            return (time.perf_counter() - started) * 1e6

        return Run(once, "graph" if candidate.graph else "call")

    def measure(self, runs: Mapping[str, Run], seconds: float, least: int = 1) -> dict[str, GpuTiming]:
        first = next(iter(runs))
        runs = {**runs, first + AGAIN: runs[first]}
        return {name: _timing([run.once() for _ in range(least)], run.how) for name, run in runs.items()}


Clock = GpuClock | HostClock


def captured(enqueue: Callable[[], object]) -> torch.cuda.CUDAGraph:
    """What `enqueue` puts on the current stream as a graph; it must have run before."""
    graph = torch.cuda.CUDAGraph()
    # Thread-local: the kernels are launched through the driver's own interface, which a global capture also watches.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        enqueue()
    return graph


def copy_bandwidth(seconds: float = 0.2, size: int = 1 << 30) -> float:
    """Bytes per second of a large copy on the GPU, read and written ones counted: the most a kernel can hope for."""
    source = torch.empty(size, dtype=torch.uint8, device="cuda").random_()
    target = torch.empty_like(source)
    clock = GpuClock()
    run = clock.prepare(Candidate([lambda: target.copy_(source)], graph=False))
    timing = clock.measure({"copy": run}, seconds)["copy"]
    return 2 * size / (timing.median_us * 1e-6)


def copies_beyond_cache(bytes_of_one: int, cache_bytes: int, most: int = 64) -> int:
    """How many copies of inputs are larger than twice the cache, at least 2, at most `most`."""
    return max(2, min(most, 2 * cache_bytes // max(bytes_of_one, 1) + 1))


def _between_events(work: Callable[[], object]) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    work()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) * 1e3


def _timing(samples: Sequence[float], how: str) -> GpuTiming:
    low, median, high = (float(value) for value in np.percentile(samples, [25, 50, 75]))
    return GpuTiming(median, low, high, len(samples), how)


def _turned(names: list[str], turn: int) -> list[str]:
    turn %= len(names)
    return names[turn:] + names[:turn]
