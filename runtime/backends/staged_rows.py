"""Rows of RoIs or detections between the steps of the staged form: packed without gaps, or pooled when asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True)
class Rows:
    """Rows of RoIs or detections of all images, packed: `data` [R, …] holds counts[0] of the first image, and so on."""

    data: np.ndarray
    counts: np.ndarray  # int32 [N]

    def of(self, image: int) -> np.ndarray:
        start = int(self.counts[:image].sum())
        return self.data[start : start + int(self.counts[image])]

    def padded(self, slots: int) -> np.ndarray:
        """[N, slots, …] with zeros behind the rows of each image."""
        out = np.zeros((len(self.counts), slots, *self.data.shape[1:]), self.data.dtype)
        for image, count in enumerate(self.counts):
            out[image, :count] = self.of(image)
        return out


@dataclass(frozen=True)
class PooledRows:
    """Rows of RoIs that are pooled when a stage asks for them, some at a time: all crops of a photo are gigabytes.

    into: (array [n, *shape], start) -> writes the rows from `start` on. number: how many there are to pool; places:
    which of them is that of each RoI, int [R]: RoIs that are pooled alike share one. None: each has its own.
    """

    shape: tuple[int, ...]  # of a row
    dtype: np.dtype
    counts: np.ndarray  # int32 [N]
    into: Callable[[np.ndarray, int], None]
    number: int
    places: np.ndarray | None = None

    def at_once(self) -> PooledRows:
        """The same, pooled now."""
        return replace(pooled_of(Rows(self._pooled(), self.counts)), places=self.places)

    def whole(self) -> Rows:
        """A row for each RoI."""
        data = self._pooled()
        return Rows(data if self.places is None else data[self.places], self.counts)

    def _pooled(self) -> np.ndarray:
        data = np.empty((self.number, *self.shape), self.dtype)
        self.into(data, 0)
        return data


def share_alike(rois: Sequence[np.ndarray], windows: Sequence[np.ndarray]) -> tuple[list[np.ndarray], np.ndarray]:
    """Of RoIs [R, 4] of each image those with different windows, int [R, 4] of at most 2¹⁵ either side of 0, and for
    each RoI of all images its place among them. RoIs with NaN in them are alike."""
    kept, places, before = [], [], 0
    for boxes, window in zip(rois, windows, strict=True):
        keys = np.zeros(len(boxes), np.int64)
        for corner in window.T:
            keys = (keys << 16) + (corner & 0xFFFF)
        keys[np.isnan(boxes).any(1)] = np.iinfo(np.int64).max
        _, first, of = np.unique(keys, return_index=True, return_inverse=True)
        kept.append(boxes[first])
        places.append(before + of.reshape(-1))
        before += len(first)
    return kept, np.concatenate(places)


def pooled_of(rows: Rows) -> PooledRows:
    """Rows that are there, as those that are pooled when asked for."""

    def copied(out: np.ndarray, start: int) -> None:
        out[:] = rows.data[start : start + len(out)]

    return PooledRows(rows.data.shape[1:], rows.data.dtype, rows.counts, copied, len(rows.data))


def packed(values: np.ndarray, counts: np.ndarray) -> Rows:
    """[N, slots, …] without the rows behind the counts."""
    return Rows(np.concatenate([rows[:count] for rows, count in zip(values, counts, strict=True)]), counts)
