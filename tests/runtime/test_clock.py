"""The clock: order of the calls, percentiles, and what it does with disturbed samples."""

from __future__ import annotations

import gc
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import numpy as np
import pytest

from regionrt.runtime import clock
from regionrt.runtime.clock import Measurement, TimingOptions, measure

QUICK = TimingOptions(warmup_rounds=0, warmup_seconds=0, rounds=6)


def scripted(
    monkeypatch: pytest.MonkeyPatch,
    wall_ms: list[float],
    waited_ms: list[float] | None,
    cpu_ms: list[float] | None = None,
) -> Measurement:
    """measure() of one callable whose samples are given; half of the wall time on a CPU if nothing else is said."""
    cpu_ms = cpu_ms or [wall / 2 for wall in wall_ms]
    waits: list[float | None] = [None] * len(wall_ms) if waited_ms is None else [value / 1e3 for value in waited_ms]
    given = zip(wall_ms, cpu_ms, waits, strict=True)
    samples = iter([clock._Sample(wall / 1e3, cpu / 1e3, wait) for wall, cpu, wait in given])
    monkeypatch.setattr(clock, "_sample", lambda call: next(samples))
    return measure({"net": lambda: None}, TimingOptions(0, 0, rounds=len(wall_ms)), items_per_call=4)


def test_rounds_are_interleaved_and_start_with_another_one() -> None:
    order: list[str] = []
    measure({name: (lambda name=name: order.append(name)) for name in "abc"}, QUICK)
    assert "".join(order) == "abcbcacab" * 2


def busy_thread(enough: Callable[[], bool]) -> threading.Thread:
    """A thread that keeps a CPU busy, and hardly needs the interpreter, until `enough`."""

    def work() -> None:
        while not enough():
            hashlib.pbkdf2_hmac("sha256", b"", b"", 20_000)

    thread = threading.Thread(target=work)
    thread.start()
    return thread


@pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="this system does not tell which threads run")
def test_a_call_waits_for_the_threads_of_the_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "REST_S", 60.0)
    left, seen = [], []
    rounds = iter([False] * 5 + [True])
    calls = {
        "leaves a thread": lambda: left.append(busy_thread(lambda: next(rounds))),
        "next": lambda: seen.append(left[0].is_alive()),
    }
    measure(calls, TimingOptions(0, 0, rounds=1))
    assert seen == [False]


def test_a_thread_that_never_rests_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "REST_S", 0.01)
    stop, seen = threading.Event(), []
    thread = busy_thread(stop.is_set)
    try:
        measure({"next": lambda: seen.append(thread.is_alive())}, TimingOptions(0, 0, rounds=1))
    finally:
        stop.set()
        thread.join()
    assert seen == [True]


def test_warm_up_is_not_counted() -> None:
    calls = []
    result = measure({"a": lambda: calls.append(1)}, TimingOptions(warmup_rounds=5, warmup_seconds=0, rounds=7))
    assert len(calls) == 12
    assert result.rounds == len(result["a"].samples_ms) == 7


def test_it_measures_time() -> None:
    result = measure({"short": lambda: time.sleep(0.002), "long": lambda: time.sleep(0.02)}, QUICK)
    assert 2 <= result["short"].min_ms < 10
    assert 20 <= result["long"].min_ms < 40
    assert result["long"].cpu_ms < 10  # it slept
    assert result["long"].throughput_per_s == pytest.approx(1000 / result["long"].mean_ms)


def test_seconds_and_least_rounds() -> None:
    started = time.perf_counter()
    result = measure({"a": lambda: time.sleep(0.005)}, TimingOptions(0, 0, seconds=0.2, least_rounds=3))
    assert time.perf_counter() - started >= 0.2
    assert 3 <= result.rounds <= 41  # of at least 5 ms each
    assert measure({"a": lambda: None}, TimingOptions(0, 0, seconds=0, least_rounds=4)).rounds == 4


def test_percentiles_are_over_the_clean_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    wall = [*range(10, 110), 500.0, 600.0]
    timing = scripted(monkeypatch, wall, [0.0] * 100 + [400.0, 30.0])["net"]  # 400 of 500 ms, exactly 5 % of 600 ms
    assert timing.disturbed == 2
    assert timing.kept == (True,) * 100 + (False,) * 2
    assert not timing.noisy
    for name, percent in (("p50_ms", 50), ("p90_ms", 90), ("p99_ms", 99)):
        assert getattr(timing, name) == pytest.approx(np.percentile(range(10, 110), percent))
    assert timing.mean_ms == pytest.approx(59.5)
    assert timing.min_ms == pytest.approx(10)
    assert timing.spread_ms == pytest.approx(49.5)
    assert timing.cpu_ms == pytest.approx(59.5 / 2)
    assert timing.throughput_per_s == pytest.approx(4 / 0.0595)
    assert len(timing.samples_ms) == 102


@pytest.mark.parametrize(("others", "noisy"), [(0.3, True), (0.001, False), (None, True)])
def test_where_most_samples_are_disturbed_all_are_kept_and_it_says_by_whom(
    others: float | None, noisy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clock._Busy, "others_share", lambda self: others)
    timing = scripted(monkeypatch, [10.0, 20.0, 30.0], [9.0, 9.0, 0.0])["net"]
    assert timing.noisy is noisy
    assert timing.others_share == others
    assert timing.disturbed == 2
    assert all(timing.kept)
    assert timing.p50_ms == pytest.approx(20)


def test_a_pause_of_the_whole_process_is_set_aside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two busy threads; the fourth sample stood still for 40 ms, the fifth was slow in its own right."""
    wall, cpu = [10.0, 10.1, 10.2, 50.0, 14.0, 10.3], [19.0, 19.5, 18.5, 19.0, 27.0, 19.0]
    timing = scripted(monkeypatch, wall, [0.0] * 6, cpu)["net"]
    assert timing.kept == (True, True, True, False, True, True)
    assert timing.disturbed == 1


def test_a_callable_that_waits_keeps_its_slow_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits for a GPU uses little of the CPU: its tail is its own."""
    timing = scripted(monkeypatch, [10.0] * 9 + [50.0], [0.0] * 10, [2.0] * 10)["net"]
    assert timing.disturbed == 0


def test_a_stopped_process_is_noticed() -> None:
    """Stopped and continued from outside, as a container engine or a shell does it."""
    code = (
        "import time\nfrom regionrt.runtime.clock import TimingOptions, measure\n"
        "def spin():\n    start = time.process_time()\n    while time.process_time() - start < 0.02:\n        pass\n"
        "print(flush=True)\nt = measure({'a': spin}, TimingOptions(0, 0, seconds=1.5))['a']\n"
        "print(sum(s > 150 for s in t.samples_ms), sum(s > 150 and k for s, k in zip(t.samples_ms, t.kept)), t.noisy)"
    )
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    child.stdout.readline()
    for _ in range(2):
        time.sleep(0.3)
        child.send_signal(signal.SIGSTOP)
        time.sleep(0.25)
        child.send_signal(signal.SIGCONT)
    long, kept, noisy = child.communicate(timeout=60)[0].split()
    assert int(long) >= 1
    assert int(kept) == 0 or noisy == "True"


def test_where_the_system_does_not_tell_nothing_is_set_aside(monkeypatch: pytest.MonkeyPatch) -> None:
    timing = scripted(monkeypatch, [10.0, 1000.0], None)["net"]
    assert timing.disturbed == 0
    assert timing.rule == clock.NO_RULE


@pytest.mark.skipif(clock._waited_s() is None, reason="this kernel has no schedstat")
def test_load_by_others_is_noticed() -> None:
    """Two busy processes per core: a spinning thread of ours must wait for its CPU."""

    def spin() -> None:
        end = time.perf_counter() + 0.03
        while time.perf_counter() < end:
            pass

    busy = "import time\nprint(flush=True)\nend = time.time() + 60\nwhile time.time() < end: pass"
    count = 2 * (os.cpu_count() or 1)
    others = [subprocess.Popen([sys.executable, "-c", busy], stdout=subprocess.PIPE) for _ in range(count)]
    try:
        for other in others:
            assert other.stdout is not None
            other.stdout.readline()  # it has started
        timing = measure({"spin": spin}, TimingOptions(0, 0, rounds=20))["spin"]
        assert timing.others_share is not None
        assert timing.others_share > 0.3
        assert timing.noisy
    finally:
        for other in others:
            other.kill()
            other.communicate()
    assert timing.disturbed >= 10


@pytest.mark.parametrize(
    ("later", "share"),
    [((2.0, 13.0, 5.0), 0.25), ((2.0, 12.0, 5.1), 0.0), (None, None)],
    ids=["some", "none", "unknown"],
)
def test_what_others_took(
    later: tuple[float, float, float] | None, share: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two seconds on two CPUs, of which this process worked two."""
    monkeypatch.setattr(clock.os, "sched_getaffinity", lambda pid: {0, 1})
    seen = iter([(0.0, 10.0, 3.0), later])
    monkeypatch.setattr(clock._Busy, "_now", lambda self: next(seen))
    assert clock._Busy().others_share() == share


def test_the_result_is_json_and_names_the_machine() -> None:
    result = measure({"a": lambda: None}, QUICK)
    data = json.loads(json.dumps(result.to_json()))
    assert data["timings"]["a"]["p50_ms"] == result["a"].p50_ms
    assert data["machine"]["usable_cores"] >= 1
    assert data["rounds"] == 6
    assert data["peak_rss_bytes"] > 10e6


def test_peak_memory_is_of_the_process() -> None:
    code = (
        "from regionrt.runtime.machine import peak_rss_bytes\n"
        "before = peak_rss_bytes()\nx = bytearray(200_000_000)\nprint(before, peak_rss_bytes())"
    )
    before, after = map(int, subprocess.check_output([sys.executable, "-c", code]).split())
    assert 190e6 < after - before < 260e6


def test_errors_pass_and_the_collector_is_on_again() -> None:
    def fail() -> None:
        raise RuntimeError("engine")

    with pytest.raises(RuntimeError, match="engine"):
        measure({"a": fail}, QUICK)
    assert gc.isenabled()


def test_progress_is_told() -> None:
    told: list[tuple[int, int | None]] = []
    measure({"a": lambda: None}, QUICK, progress=lambda done, of: told.append((done, of)))
    assert told == [(number, 6) for number in range(1, 7)]


@pytest.mark.parametrize("options", [{"rounds": 0}, {"least_rounds": 0}, {"seconds": -1}, {"warmup_rounds": -1}])
def test_options_are_checked(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="expected"):
        TimingOptions(**options)  # type: ignore[arg-type]


def test_nothing_to_measure() -> None:
    with pytest.raises(ValueError, match="at least one"):
        measure({})
