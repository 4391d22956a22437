"""Latency: the figures are those that were put in, every candidate gets the same photos, stages add up."""

import time
from dataclasses import replace

import numpy as np
import pytest
from fake_candidates import FakeClock, FakeRunner, fake_predictor, photos

from regionrt.bench.latency import disturbance, speedup, time_requests
from regionrt.bench.schema import Latency
from regionrt.runtime.clock import TimingOptions, measure


@pytest.fixture
def clock(monkeypatch):
    """Requests take seconds of a fake clock, so that the machine's own noise (milliseconds) stays below notice."""
    fake = FakeClock()
    monkeypatch.setattr(time, "perf_counter", fake)
    return fake


def test_percentiles_throughput_and_stages_are_what_was_put_in(clock):
    runners = {
        "steady": FakeRunner(clock=clock, seconds=lambda call: 20.0),
        "rising": FakeRunner(clock=clock, seconds=lambda call: 10.0 + call),
    }
    options = TimingOptions(warmup_rounds=2, warmup_seconds=0.0, rounds=11)
    timed = time_requests({n: fake_predictor(r) for n, r in runners.items()}, photos(3), options, batch=1)

    steady, rising = timed.latencies["steady"], timed.latencies["rising"]
    assert timed.rounds == 11
    assert steady.p50_ms == steady.p90_ms == steady.p99_ms == steady.mean_ms == pytest.approx(20_000)
    # After two rounds of warm-up the eleven requests take 12 … 22 s.
    assert rising.p50_ms == pytest.approx(17_000)
    assert rising.p90_ms == pytest.approx(21_000)
    assert rising.samples_ms == pytest.approx([1000 * s for s in range(12, 23)])
    assert steady.images_per_second == {"1": pytest.approx(1 / 20)}
    assert steady.stages_ms["run"] == pytest.approx(20_000)
    assert sum(rising.stages_ms.values()) == pytest.approx(rising.mean_ms)


def test_each_round_gives_every_candidate_the_same_photo(clock):
    runners = {name: FakeRunner(clock=clock, seconds=lambda call: 5.0) for name in ("a", "b", "c")}
    options = TimingOptions(warmup_rounds=1, warmup_seconds=0.0, rounds=7)
    time_requests({n: fake_predictor(r) for n, r in runners.items()}, photos(3), options, batch=1)
    expected = [[i % 3] for i in range(8)]
    assert all(runner.seen == expected for runner in runners.values())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, ""),
        ({"disturbed": 2}, "2 of 5 requests were disturbed by other load and are left out"),
        ({"disturbed": 4}, "4 of 5 requests waited for a CPU, of which other processes took next to nothing"),
        ({"disturbed": 4, "noisy": True}, "the machine was not quiet: 4 of 5 requests waited for a CPU"),
    ],
)
def test_who_got_in_the_way_is_said(changes, words):
    timing = measure({"a": lambda: None}, TimingOptions(0, 0.0, rounds=5))["a"]
    found = disturbance(replace(timing, **{"disturbed": 0, "noisy": False, **changes}))
    assert found.startswith(words)
    assert bool(found) == bool(words)


def test_throughput_in_batches(clock):
    runner = FakeRunner(clock=clock, seconds=lambda call: 8.0)
    options = TimingOptions(warmup_rounds=1, warmup_seconds=0.0, rounds=3)
    timed = time_requests({"a": fake_predictor(runner)}, photos(3), options, batch=4, batch_options=options)
    assert timed.latencies["a"].images_per_second == {"1": pytest.approx(1 / 8), "4": pytest.approx(4 / 8)}
    assert runner.seen[-1] == [0, 1, 2, 0]  # the last of batches [0 1 2 0] [1 2 0 1] [2 0 1 2] [0 1 2 0]


def test_a_batch_is_cut_to_what_the_artefact_takes(clock):
    runner = FakeRunner(clock=clock, seconds=lambda call: 8.0)
    options = TimingOptions(warmup_rounds=0, warmup_seconds=0.0, rounds=2)
    predict = fake_predictor(runner, max_batch=2)
    timed = time_requests({"a": predict}, photos(4), options, batch=3, batch_options=options)
    assert runner.seen[2:] == [[0, 1], [2], [3, 0], [1]]
    assert timed.latencies["a"].images_per_second["3"] == pytest.approx(3 / 16)


def test_detections_above_the_score_are_counted(clock):
    answers = {0: [(1, 1, 9, 9, 0.9, 1), (5, 5, 20, 20, 0.3, 2)], 1: [(1, 1, 9, 9, 0.6, 1), (5, 5, 20, 20, 0.55, 2)]}
    runner = FakeRunner(answers.__getitem__, clock, lambda call: 5.0)
    options = TimingOptions(warmup_rounds=0, warmup_seconds=0.0, rounds=4)
    timed = time_requests({"a": fake_predictor(runner)}, photos(2), options, batch=1)
    assert timed.latencies["a"].detections_per_image == pytest.approx(1.5)


def latency(samples, disturbed=()):
    kept = [value for index, value in enumerate(samples) if index not in disturbed]
    p50, p90, p99 = np.percentile(kept, [50, 90, 99])
    return Latency(tuple(samples), tuple(disturbed), p50, p90, p99, float(np.mean(kept)), {}, {}, 0.0)


def test_speedup_is_the_ratio_of_the_medians():
    slow = latency([100.0, 110.0, 120.0, 130.0, 140.0])
    assert speedup(slow, latency([20.0] * 5)).ratio == pytest.approx(6.0)
    constant = speedup(latency([90.0] * 9), latency([30.0] * 9))
    assert (constant.ratio, constant.low, constant.high) == (3.0, 3.0, 3.0)


def test_speedup_pairs_rounds_so_that_what_slows_both_does_not_widen_the_interval():
    rng = np.random.default_rng(0)
    load = np.exp(rng.normal(0, 0.5, 40))
    paired = speedup(latency(list(40 * load)), latency(list(10 * load)))
    apart = speedup(latency(list(40 * load)), latency(list(10 * rng.permutation(load))))
    assert paired.low == pytest.approx(4.0)
    assert paired.high == pytest.approx(4.0)
    assert apart.high - apart.low > 0.5


def test_rounds_disturbed_for_either_take_no_part():
    calm = [10.0] * 8
    wild = [30.0] * 6 + [3000.0, 9000.0]
    found = speedup(latency(wild, disturbed=(6, 7)), latency(calm))
    assert (found.ratio, found.low, found.high) == (3.0, 3.0, 3.0)
    slow_half = latency([30.0] * 4 + [60.0] * 4, disturbed=(4, 5, 6))  # the ratio is of the rounds of its interval
    found = speedup(slow_half, latency([10.0] * 4 + [20.0] * 4))
    assert (found.ratio, found.low, found.high) == (3.0, 3.0, 3.0)


def test_no_photo_is_an_error():
    with pytest.raises(ValueError, match="photo"):
        time_requests({"a": fake_predictor(FakeRunner())}, [], TimingOptions())
