"""Accuracy and its paired bootstrap, against figures that can be worked out by hand."""

import numpy as np
import pytest
from fake_candidates import FakeData, FakeRunner, fake_predictor

from regionrt.bench.accuracy import judge

IMAGES = 40
BOX = (10.0, 10.0, 40.0, 40.0)
DATA = FakeData(IMAGES, lambda i: [(*BOX, 1)])
PERFECT = FakeRunner(lambda i: [(*BOX, 0.9, 1)])
MISSING = FakeRunner(lambda i: [(*BOX, 0.9, 1)] if i % 4 else [])  # misses every fourth object


def ap_of_recall(recall: float) -> float:
    """COCO's AP where nothing found is wrong: precision is 1 at the recall thresholds 0, 0.01 … that are reached."""
    return (np.linspace(0, 1, 101) <= recall + 1e-9).sum() / 101


def test_perfect_and_missing():
    found = judge({"eager": fake_predictor(PERFECT), "worse": fake_predictor(MISSING)}, DATA, reference="eager")
    assert found["eager"].metrics["AP"] == pytest.approx(1.0)
    assert found["worse"].metrics["AP"] == pytest.approx(ap_of_recall(0.75))
    assert found["worse"].per_class["disc"]["AP50"] == pytest.approx(ap_of_recall(0.75))
    assert found["worse"].metrics["AP_large"] is None  # no such object: null, not a made-up 0
    assert found["worse"].images == IMAGES
    assert found["eager"].differences == ()


def test_interval_is_the_percentiles_of_paired_resamples():
    resamples, seed = 600, 7
    found = judge(
        {"eager": fake_predictor(PERFECT), "worse": fake_predictor(MISSING)},
        DATA,
        reference="eager",
        resamples=resamples,
        seed=seed,
    )
    (difference,) = found["worse"].differences
    draws = np.random.default_rng(seed).multinomial(IMAGES, np.full(IMAGES, 1 / IMAGES), size=resamples)
    hit = np.arange(IMAGES) % 4 != 0
    expected = [100 * (ap_of_recall(draw[hit].sum() / IMAGES) - 1) for draw in draws]
    low, high = np.percentile(expected, [2.5, 97.5])
    assert difference.points == pytest.approx(100 * (ap_of_recall(0.75) - 1))
    assert (difference.low, difference.high) == (pytest.approx(low, abs=1e-6), pytest.approx(high, abs=1e-6))
    assert (difference.metric, difference.confidence, difference.resamples) == ("AP", 0.95, resamples)


def test_the_same_detections_differ_by_nothing():
    found = judge({"eager": fake_predictor(MISSING), "same": fake_predictor(MISSING)}, DATA, reference="eager")
    (difference,) = found["same"].differences
    assert (difference.points, difference.low, difference.high) == (0.0, 0.0, 0.0)


def test_pairing_narrows_the_interval():
    """Both miss the same hard images, one of them one image more: unpaired, the interval would span tens of points."""
    one_more = FakeRunner(lambda i: [(*BOX, 0.9, 1)] if i % 4 and i != 1 else [])
    found = judge({"eager": fake_predictor(MISSING), "worse": fake_predictor(one_more)}, DATA, reference="eager")
    (difference,) = found["worse"].differences
    assert difference.points < 0
    assert difference.high <= 0
    assert difference.high - difference.low < 10


def test_nothing_found_at_all_is_judged_as_zero():
    found = judge({"eager": fake_predictor(PERFECT), "blind": fake_predictor(FakeRunner())}, DATA, reference="eager")
    assert found["blind"].metrics["AP"] == 0.0
    (difference,) = found["blind"].differences
    assert (difference.low, difference.high) == (-100.0, -100.0)


def test_too_few_resamples_are_refused():
    with pytest.raises(ValueError, match="500"):
        judge({"eager": fake_predictor(PERFECT)}, DATA, reference="eager", resamples=100)
