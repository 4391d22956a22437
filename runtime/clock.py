"""The one way to time something: warm-up, interleaving, samples disturbed by other load set aside, percentiles.

**Interleaving.** What is compared runs round-robin, one call each per round, and each round starts with another one:
a machine that slows down in the middle slows all of them, and none always runs in the caches that the same one left.
Before each call, the threads of the one before come to rest: PyTorch's wait busily for some milliseconds when their
work is done, on a CPU that the next one needs.

**Disturbed samples.** Linux counts for each thread how long it was ready to run but had no CPU (`schedstat`), and for
a virtual machine how long the host gave its CPUs to others (`steal`). A sample counts as disturbed when the waits of
our threads reach `WAIT_SHARE` of its wall time, or the steal of all CPUs does. A process that is stopped as a whole
(a paused container, a frozen group of processes) waits for nothing; it shows in its processor time per wall time, and
a sample in which that falls `PAUSE_SHARE` below the callable's usual one (the 90th percentile) counts as disturbed
too. That is judged only of callables that usually keep a core busy: one that waits for a GPU or a disk is slow in its
own right.
Disturbed samples are set aside, and counted in the result. If fewer than half would remain, all are kept. Then either
the threads of this process compete with each other, which is a cost of what is measured; or, if other processes took
`OTHERS_SHARE` of our CPUs' time over the whole measurement, the machine is not quiet enough for percentiles that mean
anything, and `noisy` is true. Where Linux does not tell, only pauses are set aside and `rule` says so. Every sample
stays in `samples_ms` and `kept`, for who wants another rule.
"""

from __future__ import annotations

import gc
import math
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .errors import OptionError
from .machine import describe_machine, peak_rss_bytes

WAIT_SHARE = 0.05
PAUSE_SHARE = 0.25
OTHERS_SHARE = 0.02
BUSY = 0.8
"""Processor seconds per wall second from which a callable counts as keeping a core busy."""
_PAUSES = f"processor time per wall time fell {PAUSE_SHARE:.0%} below the usual"
RULE = f"set aside where waiting for a CPU or steal reached {WAIT_SHARE:.0%} of the sample's wall time, or {_PAUSES}"
NO_RULE = f"set aside where {_PAUSES}; this system does not tell how long threads waited for a CPU"
REST_S = 0.05
"""The longest that threads are waited for before a call: those that never rest are part of what is measured."""
_BUSY_COLUMNS = (1, 2, 3, 6, 7, 8)  # of /proc/stat: user, nice, system, interrupts of both kinds, steal
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class TimingOptions:
    """How long to measure. `rounds` None: until `seconds` have passed and at least `least_rounds` are done."""

    warmup_rounds: int = 3
    warmup_seconds: float = 1.0
    rounds: int | None = None
    seconds: float = 10.0
    least_rounds: int = 10

    def __post_init__(self) -> None:
        times = (self.warmup_seconds, self.seconds)
        if self.warmup_rounds < 0 or self.least_rounds < 1 or not all(0 <= time < math.inf for time in times):
            raise OptionError(f"timing options: expected times ≥ 0 and least_rounds ≥ 1, got {self}")
        if self.rounds is not None and self.rounds < 1:
            raise OptionError(f"rounds: expected at least 1, got {self.rounds}")


@dataclass(frozen=True)
class Timing:
    """What one callable took. Percentiles, mean and spread are over the kept samples, in milliseconds per call.

    `items_per_call` photos per call give `throughput_per_s` photos per second; `cpu_ms` is processor time of the whole
    process per call (divided by `mean_ms`: how many cores were busy); `spread_ms` the range between the quartiles.
    `others_share`: of the time of the CPUs that this process may use, how much others took while all was measured; None
    where the system does not tell.
    """

    name: str
    items_per_call: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    mean_ms: float
    min_ms: float
    spread_ms: float
    cpu_ms: float
    throughput_per_s: float
    disturbed: int
    others_share: float | None
    noisy: bool
    rule: str
    samples_ms: tuple[float, ...]
    kept: tuple[bool, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Measurement:
    """The timings of one interleaved run, by name, and the machine they hold for."""

    timings: Mapping[str, Timing]
    rounds: int
    machine: Mapping[str, Any]
    peak_rss_bytes: int
    """Of the whole process since its start: of one callable alone only if it was alone in its process."""

    def __getitem__(self, name: str) -> Timing:
        return self.timings[name]

    def to_json(self) -> dict[str, Any]:
        return {
            "timings": {name: timing.to_json() for name, timing in self.timings.items()},
            "rounds": self.rounds,
            "machine": dict(self.machine),
            "peak_rss_bytes": self.peak_rss_bytes,
        }


@dataclass
class _Sample:
    wall_s: float
    cpu_s: float
    waited_s: float | None


def measure(
    calls: Mapping[str, Callable[[], Any]],
    options: TimingOptions | None = None,
    *,
    items_per_call: int | Mapping[str, int] = 1,
    progress: Callable[[int, int | None], None] | None = None,
) -> Measurement:
    """Times each callable, interleaved. A callable returns when its work is done (on a GPU it synchronises itself).

    Args:
        calls: name → callable without arguments.
        items_per_call: photos per call, one number or one per name.
        progress: told (rounds done, rounds in all or None) after each round.

    Errors of a callable pass through: what fails has no latency.
    """
    options = options or TimingOptions()
    if not calls:
        raise ValueError("measure: expected at least one callable")
    names = list(calls)
    _warm_up(calls, options)
    samples: dict[str, list[_Sample]] = {name: [] for name in names}
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()  # a collection in the middle of a sample would be charged to whoever happened to run
    try:
        busy = _Busy()
        started, done = time.perf_counter(), 0
        while not _enough(done, time.perf_counter() - started, options):
            first = done % len(names)
            for name in names[first:] + names[:first]:
                _rest()
                samples[name].append(_sample(calls[name]))
            done += 1
            gc.collect(0)
            if progress is not None:
                progress(done, options.rounds)
    finally:
        if collecting:
            gc.enable()
    items = items_per_call if isinstance(items_per_call, Mapping) else dict.fromkeys(names, items_per_call)
    others = busy.others_share()
    timings = {name: _timing(name, samples[name], items[name], others) for name in names}
    return Measurement(timings, done, describe_machine(), peak_rss_bytes())


def _enough(rounds: int, seconds: float, options: TimingOptions) -> bool:
    if options.rounds is not None:
        return rounds >= options.rounds
    return rounds >= options.least_rounds and seconds >= options.seconds


def _warm_up(calls: Mapping[str, Callable[[], Any]], options: TimingOptions) -> None:
    """So many rounds, and on until so much time has passed for each: arenas, caches and clocks settle."""
    started, done = time.perf_counter(), 0
    budget = options.warmup_seconds * len(calls)
    while done < options.warmup_rounds or (options.warmup_rounds and time.perf_counter() - started < budget):
        for call in calls.values():
            call()
        done += 1


def _rest() -> None:
    """Waits until no other thread of this process is running or ready to, for `REST_S` at most."""
    until = time.monotonic() + REST_S
    while _others_run() and time.monotonic() < until:
        time.sleep(0.0005)


def _others_run() -> bool:
    """False where the system does not tell."""
    own = str(threading.get_native_id())
    try:
        with os.scandir("/proc/self/task") as tasks:
            return any(_runs(Path(task.path)) for task in tasks if task.name != own)
    except OSError:
        return False


def _runs(task: Path) -> bool:
    try:
        return (task / "stat").read_text().rpartition(")")[2].split()[0] == "R"
    except (FileNotFoundError, ProcessLookupError):  # it ended meanwhile
        return False


def _sample(call: Callable[[], Any]) -> _Sample:
    waited, stolen = _waited_s(), _stolen_s()
    cpu, wall = time.process_time(), time.perf_counter()
    call()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    later = _waited_s()
    if waited is None or later is None:
        return _Sample(wall, cpu, None)
    # A thread that ended in between takes its wait with it: the difference may be too small, never an invented wait.
    return _Sample(wall, cpu, max(later - waited, _stolen_s() - stolen, 0.0))


def _waited_s() -> float | None:
    """How long the threads of this process have been ready to run without a CPU, in all."""
    total = 0
    try:
        for task in os.scandir("/proc/self/task"):
            try:
                total += int(Path(task.path, "schedstat").read_text().split()[1])
            except (FileNotFoundError, ProcessLookupError):  # it ended meanwhile
                if not os.path.exists("/proc/self/schedstat"):
                    return None
    except (OSError, IndexError, ValueError):
        return None
    return total * 1e-9


class _Busy:
    """How busy the CPUs that this process may use are, from now on."""

    def __init__(self) -> None:
        self._cpus = os.sched_getaffinity(0)
        self._start = self._now()

    def others_share(self) -> float | None:
        """Of their time, how much went to other processes or was stolen; None where the system does not tell."""
        now = self._now()
        if now is None or self._start is None:
            return None
        wall, everything, own = (later - before for later, before in zip(now, self._start, strict=True))
        return max(everything - own, 0.0) / max(wall * len(self._cpus), 1e-9)

    def _now(self) -> tuple[float, float, float] | None:
        """Seconds: by the clock, spent by those CPUs on anything, and by this process."""
        try:
            lines = [line.split() for line in Path("/proc/stat").read_text().splitlines()]
            own = [line for line in lines if line[0][:3] == "cpu" and line[0][3:] in {str(cpu) for cpu in self._cpus}]
            busy = sum(int(line[column]) for line in own for column in _BUSY_COLUMNS)
        except (OSError, IndexError, ValueError):
            return None
        return time.perf_counter(), busy * _TICK_S, time.process_time()


def _stolen_s() -> float:
    try:
        with open("/proc/stat") as file:
            return int(file.readline().split()[8]) * _TICK_S
    except (OSError, IndexError, ValueError):
        return 0.0


def _waited(samples: list[_Sample]) -> np.ndarray:
    return np.array([(sample.waited_s or 0.0) >= WAIT_SHARE * sample.wall_s for sample in samples])


def _paused(samples: list[_Sample]) -> np.ndarray:
    busy = np.array([sample.cpu_s / max(sample.wall_s, 1e-9) for sample in samples])
    usual = np.percentile(busy, 90)
    return (busy <= (1 - PAUSE_SHARE) * usual) & (usual >= BUSY)


def _timing(name: str, samples: list[_Sample], items: int, others: float | None) -> Timing:
    wall_ms = np.array([sample.wall_s for sample in samples]) * 1e3
    told = all(sample.waited_s is not None for sample in samples)
    clean = ~_waited(samples) & ~_paused(samples)
    disturbed = int((~clean).sum())
    most = 2 * disturbed > len(samples)
    kept = np.ones(len(samples), bool) if most else clean
    p25, p50, p75, p90, p99 = (float(value) for value in np.percentile(wall_ms[kept], [25, 50, 75, 90, 99]))
    mean = float(wall_ms[kept].mean())
    return Timing(
        name=name,
        items_per_call=items,
        p50_ms=p50,
        p90_ms=p90,
        p99_ms=p99,
        mean_ms=mean,
        min_ms=float(wall_ms[kept].min()),
        spread_ms=p75 - p25,
        cpu_ms=float(np.mean([sample.cpu_s for sample, keep in zip(samples, kept, strict=True) if keep])) * 1e3,
        throughput_per_s=items / (mean * 1e-3) if mean else float("inf"),
        disturbed=disturbed,
        others_share=others,
        noisy=most and (others is None or others >= OTHERS_SHARE),
        rule=RULE if told else NO_RULE,
        samples_ms=tuple(float(value) for value in wall_ms),
        kept=tuple(bool(value) for value in kept),
    )
