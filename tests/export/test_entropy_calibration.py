"""Entropy calibration against ONNX Runtime's own: its divergence, its smoothing, its choice of a threshold.

The two do not choose the same threshold, and need not. ONNX Runtime merges ⌊bins / 256⌋ bins into a level and gives the
last level all that is left over, so that thresholds of a little over a multiple of 256 bins look better to it than they
are; it counts the zeros of a ReLU, which then outweigh all else; and it moves 0.0001 of a count into each empty bin. We
divide the bins evenly, as the method's source does, and leave zeros, which are exact at any threshold, out of account.
So thresholds are judged here by ONNX Runtime's divergence and smoothing over levels of equal width.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from regionrt.export.calibration import ranges
from regionrt.export.calibration.ranges import Histogram

calibrate = pytest.importorskip("onnxruntime.quantization.calibrate")
quant_utils = pytest.importorskip("onnxruntime.quantization.quant_utils")

BINS, LEVELS = 1024, 128  # over [−reach, reach]; of |x|
N = 100_000
random = np.random.default_rng(0)
DISTRIBUTIONS = {
    "normal": random.normal(size=N),
    "laplace": random.laplace(size=N),
    "uniform": random.uniform(-1, 1, N),
    "heavy tails": random.standard_t(3, N),
    "two outliers": np.r_[random.normal(size=N), 20.0, -20.0],
    "relu": np.maximum(random.normal(size=N), 0),
    "sparse relu": np.maximum(random.normal(-1.5, 1, N), 0),
    "exponential": random.exponential(size=N),
    "lognormal": random.lognormal(0, 1, N),
    "two humps": np.r_[random.normal(-3, 0.5, N // 2), random.normal(3, 0.5, N // 2)],
    "shifted": random.normal(2, 1, N),
}


@pytest.fixture(autouse=True)
def fewer_bins(monkeypatch):
    """ONNX Runtime's search is a loop over bins in Python."""
    monkeypatch.setattr(ranges, "_BINS", BINS)


def magnitudes(x: np.ndarray, reach: float) -> np.ndarray:
    """Counts of |x| in BINS / 2 bins, zeros left out: the first bin has what the second has."""
    counts, _ = np.histogram(np.abs(x), BINS // 2, (0, reach))
    counts[0] = counts[1]
    return counts


def divergence(counts: np.ndarray, end: int) -> float:
    """Of |x| clipped to the first `end` bins and cut into LEVELS of equal width, by ONNX Runtime's functions."""
    p, inside = counts[:end].copy(), counts[:end]
    p[-1] += counts[end:].sum()
    q = np.zeros(end)
    edges = -(-np.arange(LEVELS + 1) * end // LEVELS)
    for low, high in pairwise(edges):
        filled = p[low:high] > 0
        if filled.any():
            q[low:high][filled] = inside[low:high].sum() / filled.sum()
    return float(calibrate.entropy(quant_utils.smooth_distribution(p), quant_utils.smooth_distribution(q)))


def theirs(counts: np.ndarray, reach: float) -> float:
    """The threshold of ONNX Runtime's own search, on the same counts mirrored around a bin at zero."""
    mirrored = np.r_[counts[::-1], counts[0], counts]
    edges = np.linspace(-reach, reach, len(mirrored) + 1, dtype=np.float32)
    collector = calibrate.HistogramCollector("entropy", True, len(mirrored), 2 * LEVELS, 99.99, "same")
    low, high = collector.get_entropy_threshold((mirrored, edges, np.float32(-reach), np.float32(reach)), 2 * LEVELS)
    assert float(low) == pytest.approx(-float(high), rel=0.01)
    return float(high)


def found_by_us(x: np.ndarray) -> tuple[Histogram, float]:
    histogram = Histogram()
    histogram.add(x.astype(np.float32))
    return histogram, histogram._least_divergence()


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_no_threshold_is_better_by_their_measure(name):
    """Of all that are tried: exhaustively, with the other implementation's arithmetic."""
    histogram, threshold = found_by_us(DISTRIBUTIONS[name])
    counts = magnitudes(DISTRIBUTIONS[name], histogram.reach)
    end = round(threshold / histogram.reach * BINS / 2)
    all_ends = range(LEVELS, BINS // 2 + 1, ranges._STEP)
    assert end in all_ends
    best = min(divergence(counts, e) for e in all_ends)
    assert divergence(counts, end) <= 1.02 * best + 1e-5


@pytest.mark.parametrize("name", ["normal", "heavy tails", "two outliers", "exponential", "lognormal", "two humps"])
def test_it_is_no_worse_than_their_own_choice(name):
    histogram, threshold = found_by_us(DISTRIBUTIONS[name])
    counts = magnitudes(DISTRIBUTIONS[name], histogram.reach)
    ends = [round(t / histogram.reach * BINS / 2) for t in (threshold, theirs(counts, histogram.reach))]
    ours, other = (divergence(counts, min(end, BINS // 2)) for end in ends)
    assert ours <= 1.02 * other + 1e-4  # nats: thresholds that cost less than that are all as good as lossless


def test_both_keep_what_is_flat_and_clip_what_stands_apart():
    for name, low, high in (("uniform", 0.99, 1.001), ("two outliers", 0.15, 0.6)):
        x = DISTRIBUTIONS[name]
        histogram, threshold = found_by_us(x)
        other = theirs(magnitudes(x, histogram.reach), histogram.reach)
        for found in (threshold, other):
            assert low <= found / np.abs(x).max() <= high
