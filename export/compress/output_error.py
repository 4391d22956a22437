"""How far the outputs of pairs are from those of the layers they stand for, measured on photos."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import nan, sqrt

import torch
from torch import Tensor, nn

from .calibration import Photo, as_rows, watch


class _Sums:
    """Of one layer's outputs: squared errors by pair, and what their variance follows from."""

    def __init__(self, pairs: int, outputs: int) -> None:
        self.wrong = [0.0] * pairs
        self.rows = 0
        self.sum = torch.zeros(outputs, dtype=torch.float64)
        self.squares = 0.0

    def errors(self) -> list[float]:
        varies = self.squares - float(self.sum.square().sum()) / max(self.rows, 1)
        return [sqrt(wrong / varies) if varies > 0 else nan for wrong in self.wrong]


def output_errors(
    module: nn.Module,
    layers: Mapping[str, nn.Module],
    pairs: Mapping[str, Sequence[nn.Module]],
    photos: Sequence[Photo],
    progress: Callable[[str, float], None] = lambda text, share: None,
) -> dict[str, list[float]]:
    """By layer, for each of its pairs: ‖y − y'‖ / ‖y − mean(y)‖ over all rows of outputs, each layer on exact inputs.

    NaN for a layer that computes nothing on these photos, or the same everywhere.
    """
    sums = {name: _Sums(len(pairs[name]), layer.weight.shape[0]) for name, layer in layers.items()}

    def seen(name: str, layer: nn.Module, x: Tensor, y: Tensor) -> None:
        found = sums[name]
        y = as_rows(layer, y).cpu().double()
        for i, pair in enumerate(pairs[name]):
            found.wrong[i] += float((as_rows(layer, pair(x)).cpu().double() - y).square().sum())
        found.rows += len(y)
        found.sum += y.sum(0)
        found.squares += float(y.square().sum())

    watch(module, layers, photos, seen, progress)
    return {name: found.errors() for name, found in sums.items()}
