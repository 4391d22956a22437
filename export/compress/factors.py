"""The directions of a layer's outputs, most important first: computed once, they give its pair of every rank."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from regionrt.train.models.svd_pairs import Split, SvdPair

from .layers import matrix_of, pair_of_factors
from .ranks import Rank, rank_for


@dataclass(frozen=True)
class Halves:
    """A pair, and the share of the energy (squared singular values) that it keeps of its layer."""

    pair: SvdPair
    split: Split
    energy: float


@dataclass(frozen=True)
class Factors:
    """What pairs of `layer` are cut from: W' = U_k·U_kᵀ·W with the first k columns of `vectors`.

    matrix: W as `matrix_of` gives it. energies: by direction, falling. mean: of the layer's outputs on calibration
    data, which the pair's bias then keeps; None keeps the layer's bias. rows: how many samples the directions come
    from; None: from the weights.
    """

    layer: nn.Module
    kind: str
    matrix: Tensor = field(repr=False)
    energies: Tensor = field(repr=False)
    vectors: Tensor = field(repr=False)
    mean: Tensor | None = field(default=None, repr=False)
    rows: int | None = None

    def rank(self, rule: Rank, multiple: int) -> int:
        """As `rank_for`."""
        return rank_for(rule, self.layer, self.kind, self.energies, multiple)

    def halves(self, rank: int) -> Halves:
        """The pair of that rank, which `rank` has found to fit."""
        left = self.vectors[:, :rank].to(self.matrix)
        bias = self.layer.bias.detach() if isinstance(self.layer.bias, Tensor) else None
        if self.mean is not None:
            # y' = U·Uᵀ·(W·x) + b' with b' such that the mean of y' is the mean of y.
            mean = self.mean.to(self.matrix)
            moved = mean - (bias.to(mean) if bias is not None else 0.0)
            bias = mean - left @ (left.T @ moved)
        pair, split = pair_of_factors(self.layer, self.kind, left, left.T @ self.matrix, bias)
        return Halves(pair, split, _share_kept(self.energies, rank))


def factors_of_weights(layer: nn.Module, kind: str) -> Factors:
    """Directions with which pairs are nearest to the layer's weights, in the Frobenius norm."""
    matrix = matrix_of(layer, kind)
    return Factors(layer, kind, matrix, *spectrum(matrix @ matrix.T))


def spectrum(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues of a symmetric matrix, falling and at least 0, and their eigenvectors as columns.

    Of W·Wᵀ these are the squared singular values and the left singular vectors U of W, and U_k·U_kᵀ·W is its nearest
    matrix of rank k. For fc6 of VGG-16 (4096 × 25088) that is far less work than the SVD, and what squaring loses in
    float64 lies below the rounding of float32 weights.
    """
    values, vectors = torch.linalg.eigh(gram)
    return values.flip(0).clamp_min(0), vectors.flip(1)


def _share_kept(energies: Tensor, rank: int) -> float:
    total = float(energies.sum())
    return float(energies[:rank].sum()) / total if total else 1.0
