"""Rows of RoIs or detections between the steps of the staged form: packed without gaps, or pooled when asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

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

    into: (array [n, *shape], start) -> writes the rows from `start` on.
    """

    shape: tuple[int, ...]  # of a row
    dtype: np.dtype
    counts: np.ndarray  # int32 [N]
    into: Callable[[np.ndarray, int], None]

    def whole(self) -> Rows:
        data = np.empty((int(self.counts.sum()), *self.shape), self.dtype)
        self.into(data, 0)
        return Rows(data, self.counts)


def packed(values: np.ndarray, counts: np.ndarray) -> Rows:
    """[N, slots, …] without the rows behind the counts."""
    return Rows(np.concatenate([rows[:count] for rows, count in zip(values, counts, strict=True)]), counts)
