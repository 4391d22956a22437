"""Small maps of a batch, one above the other as one tall map with rows of zeros between them: ncnn takes one map."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from regionrt.runtime.errors import BackendError

_MOST = 4096


@dataclass(frozen=True)
class StackLayout:
    """How maps are stacked, as an export wrote it.

    height: rows of a map at the net's inputs; gap: rows below each. gaps: blobs that take which rows are a map's, and
    how many times as large as the inputs the maps there are.
    """

    height: int
    gap: int
    gaps: Mapping[str, int]

    @classmethod
    def of(cls, data: Mapping[str, Any] | None) -> StackLayout | None:
        """KeyError, TypeError or ValueError for what an export does not write."""
        if data is None:
            return None
        gaps = {str(blob): int(times) for blob, times in dict(data["gaps"]).items()}
        layout = cls(int(data["height"]), int(data["gap"]), gaps)
        if not all(1 <= number <= _MOST for number in (layout.height, layout.gap, *layout.gaps.values())):
            raise ValueError(f"expected heights of 1 to {_MOST} rows, found {layout}")
        return layout


@dataclass
class Stacks:
    """The memory that maps are stacked in, which stays from run to run, as much as the largest stack needed."""

    layout: StackLayout
    _memory: dict[tuple[str, str], np.ndarray] = field(default_factory=dict)

    def tall(self, name: str, maps: np.ndarray) -> np.ndarray:
        """Maps float32 [N, C, H, W] as one [C, N·(H + gap), W]."""
        number, channels, height, width = maps.shape
        if height != self.layout.height:
            raise BackendError(f"ncnn: expected maps of {self.layout.height} rows, found {height}")
        rows = height + self.layout.gap
        held = self._held(("map", name), (channels, number, rows, width))
        held[:, :, :height] = maps.transpose(1, 0, 2, 3)
        held[:, :, height:] = 0
        return held.reshape(channels, number * rows, width)

    def gaps(self, number: int, width: int) -> dict[str, np.ndarray]:
        """For each blob of `gaps` float32 [1, rows, width]: 1 in a map's rows, 0 between. width: of the inputs."""
        found = {}
        for blob, times in self.layout.gaps.items():
            height, rows = self.layout.height * times, (self.layout.height + self.layout.gap) * times
            held = self._held(("gaps", blob), (1, number, rows, width * times))
            held[:, :, :height] = 1
            held[:, :, height:] = 0
            found[blob] = held.reshape(1, number * rows, width * times)
        return found

    def apart(self, tall: np.ndarray, number: int) -> np.ndarray:
        """What the net made of a stack of `number` maps, [C, rows, W], as [N, C, H, W]."""
        channels, rows, width = tall.shape
        each = rows // number
        height = each * self.layout.height // (self.layout.height + self.layout.gap)
        return np.ascontiguousarray(tall.reshape(channels, number, each, width)[:, :, :height].transpose(1, 0, 2, 3))

    def _held(self, name: tuple[str, str], shape: tuple[int, ...]) -> np.ndarray:
        size = math.prod(shape)
        held = self._memory.get(name)
        if held is None or held.size < size:
            held = self._memory[name] = np.empty(size, np.float32)
        return held[:size].reshape(shape)
