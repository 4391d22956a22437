"""Steps of a staged request: medians over what was kept, the share without an engine, all candidates in turn."""

import numpy as np
import pytest

from regionrt.bench import stage_shares
from regionrt.bench.schema import Shares
from regionrt.bench.stage_shares import Profiled, shares_in_turn, shares_of
from regionrt.runtime.clock import TimingOptions

PHOTOS = [np.zeros((4, 4, 3), np.uint8), np.ones((4, 4, 3), np.uint8)]


class Clock:
    """Time that passes only where a step says so."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now


class Staged:
    steps = ({"name": "body"}, {"name": "pool", "op": "RegionRoiAlign"}, {"name": "head"})

    def __init__(self, clock, times):
        self.clock, self.times = clock, iter(times)

    def profile(self, images, image_sizes, **proposals):
        spent = dict(zip(("body", "pool", "head"), next(self.times), strict=True))
        self.clock.now += sum(spent.values()) + 0.01  # which no step owns
        return {"of": images}, spent


class Predict:
    """A canvas takes 0.02 s, boxes back 0.03 s."""

    class Prepared:
        image_sizes, proposals = None, {}

        def __init__(self, images):
            self.images = images

    def __init__(self, clock, times, asked=None):
        self.clock, self.asked, self.about = clock, asked if asked is not None else [], "no artefact"
        self.runner = Staged(clock, times)

    def prepare(self, images, proposals):
        self.asked.append((self, images[0][0, 0, 0], proposals))
        self.clock.now += 0.02
        return self.Prepared(images)

    def finish(self, prepared, outputs):
        assert outputs["of"] is prepared.images
        self.clock.now += 0.03
        return []


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(stage_shares, "StagedRunner", Staged)
    monkeypatch.setattr(stage_shares, "time", clock)
    return clock


def test_medians_and_the_share_that_is_not_dense(clock):
    warm_up, steady, slow = (9.0, 9.0, 9.0), (0.05, 0.04, 0.10), (0.09, 0.04, 0.18)
    shares = shares_of(Predict(clock, [warm_up, steady, slow, steady]), PHOTOS, 3)
    steps = {"canvas": 20.0, "body": 50.0, "pool": 40.0, "head": 100.0, "between the steps": 10.0,
             "boxes and masks back": 30.0}  # fmt: skip
    assert shares.steps_ms == pytest.approx(steps)
    assert [*shares.steps_ms] == [*steps]
    assert shares.dense == ("body", "head")
    assert shares.not_dense == pytest.approx(100 / 250)


def test_disturbed_requests_are_left_out(clock):
    profiled = Profiled(Predict(clock, [(9.0, 9.0, 9.0), (1.0, 1.0, 1.0), (5.0, 5.0, 5.0)]), PHOTOS)
    for _ in range(3):
        profiled()
    assert profiled.shares([True, False]).steps_ms["body"] == pytest.approx(1000)


def test_candidates_run_in_turn_on_the_same_photos_with_their_own_proposals(clock):
    asked: list = []
    one, other = (Predict(clock, [(1.0, 1.0, 1.0)] * 3, asked) for _ in range(2))
    candidates = {"one": Profiled(one, PHOTOS), "other": Profiled(other, PHOTOS, ["of 0", "of 1"])}
    found = shares_in_turn(candidates, TimingOptions(1, 0.0, rounds=2))
    assert set(found) == {"one", "other"}
    assert all(isinstance(shares, Shares) for shares in found.values())
    of = {id(one): [], id(other): []}
    for predict, photo, given in asked:
        of[id(predict)].append((photo, given))
    assert of[id(one)] == [(0, None), (1, None), (0, None)]
    assert of[id(other)] == [(0, ["of 0"]), (1, ["of 1"]), (0, ["of 0"])]
    assert {id(predict) for predict, *_ in asked[2:4]} == {id(one), id(other)}  # one round, both


def test_nothing_staged_nothing_told(clock):
    assert shares_in_turn({}, TimingOptions()) == {}


def test_an_artefact_that_is_not_staged_is_refused():
    class Whole:
        runner, about = object(), "native"

    with pytest.raises(TypeError, match="staged artefact, found native"):
        Profiled(Whole(), PHOTOS)
