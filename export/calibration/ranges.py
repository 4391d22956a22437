"""From many values of one tensor to the range that 8 bits are spread over: min-max, percentile, or least divergence."""

from __future__ import annotations

import numpy as np

from ..passes.qdq import Range

METHODS = ("percentile", "entropy", "minmax")
PERCENTILE = 99.99
_BINS = 4096  # over [−reach, reach]
_MOST = 1 << 20  # values of one array that are counted; extremes are taken of all
_LEVELS = 128  # of |x| in int8
_STEP = 8  # bins between two thresholds that are tried


class Histogram:
    """Counts of values in equal bins over [−reach, reach]; reach, a power of two, grows with what comes.

    Extremes are exact. Of an array with more than a million values every k-th is counted.
    """

    def __init__(self) -> None:
        self.low, self.high = 0.0, 0.0
        self.reach = 0.0
        self.counts = np.zeros(_BINS, np.int64)

    def add(self, values: np.ndarray) -> None:
        """Float values of any shape, all finite."""
        if not values.size:
            return
        self.low, self.high = min(self.low, float(values.min())), max(self.high, float(values.max()))
        largest = max(-self.low, self.high)
        if largest == 0:
            self.reach = self.reach or 2.0**-126
        else:
            while self.reach < largest:
                self._widen(largest)
        flat = values.reshape(-1)
        flat = flat[:: -(-flat.size // _MOST)]
        bins = ((flat.astype(np.float64) / self.reach + 1) * (_BINS / 2)).astype(np.int64)
        self.counts += np.bincount(np.clip(bins, 0, _BINS - 1), minlength=_BINS)

    def _widen(self, largest: float) -> None:
        if not self.counts.any():
            self.reach = float(2.0 ** np.ceil(np.log2(largest)))
            return
        halved = self.counts.reshape(-1, 2).sum(1)
        self.counts = np.zeros(_BINS, np.int64)
        self.counts[_BINS // 4 : 3 * _BINS // 4] = halved
        self.reach *= 2

    def range(self, method: str, percentile: float = PERCENTILE) -> Range:
        """By `method`, one of METHODS. `percentile`: how many of a hundred values lie inside."""
        if method == "minmax" or not self.counts.any():
            return Range(self.low, self.high)
        if method == "percentile":
            return self._percentile(percentile)
        if method == "entropy":
            reach = self._least_divergence()
            return Range(max(self.low, -reach), min(self.high, reach))
        raise ValueError(f"calibration {method!r}: expected one of {', '.join(METHODS)}")

    def _percentile(self, percentile: float) -> Range:
        edges = np.linspace(-self.reach, self.reach, _BINS + 1)
        share = np.cumsum(self.counts) / self.counts.sum()
        tail = (1 - percentile / 100) / (2 if self.low < 0 < self.high else 1)
        low = edges[np.searchsorted(share, tail, side="right")] if self.low < 0 else 0.0
        high = edges[np.searchsorted(share, 1 - tail) + 1] if self.high > 0 else 0.0
        return Range(max(self.low, min(float(low), 0.0)), min(self.high, max(float(high), 0.0)))

    def _least_divergence(self) -> float:
        """The threshold of |x| whose 128 levels lie nearest to the distribution, by the divergence of Kullback and
        Leibler (Migacz, 8-bit inference with TensorRT, GTC 2017)."""
        half = _BINS // 2
        counts = self.counts[half:] + self.counts[:half][::-1]  # of |x|
        counts = counts.astype(np.float64)
        counts[0] = counts[
            1
        ]  # zeros are exact in any case, and of ReLU there are so many that nothing else would count
        ends = np.arange(_LEVELS, half + 1, _STEP)
        used = int(np.flatnonzero(counts).max(initial=0)) + 1
        best, best_divergence = half, np.inf
        for end in ends[ends <= -(-used // _STEP) * _STEP + _LEVELS]:
            clipped = counts[:end].copy()
            clipped[-1] += counts[end:].sum()
            level = np.arange(end) * _LEVELS // end
            sums = np.bincount(level, counts[:end], _LEVELS)
            filled = np.bincount(level, counts[:end] > 0, _LEVELS)
            spread = np.divide(sums, filled, out=np.zeros(_LEVELS), where=filled > 0)[level] * (counts[:end] > 0)
            divergence = _divergence(clipped, spread)
            if divergence < best_divergence:
                best, best_divergence = int(end), divergence
        return self.reach * best / half


def _divergence(wanted: np.ndarray, found: np.ndarray) -> float:
    """Σ p log(p / q), both smoothed so that an empty bin costs much and not everything."""
    total, of_found = wanted.sum(), found.sum()
    if total == 0 or of_found == 0:
        return float(np.inf)
    p, q = wanted / total, found / of_found
    floor = 1e-10
    seen = p > 0
    return float((p[seen] * np.log(p[seen] / np.maximum(q[seen], floor))).sum())
