"""Truncated SVD of fully connected layers and 1×1 convolutions (Girshick, Fast R-CNN, arXiv:1504.08083, 3.1)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from regionrt.train.models.svd_pairs import SVD, Split, SvdPair, splittable

from ..errors import ExportError
from .layers import matrix_of, pair_of_factors
from .ranks import Rank, rank_for


@dataclass(frozen=True)
class Halves:
    """A pair, and the share of the energy (squared singular values) that it keeps of its layer."""

    pair: SvdPair
    split: Split
    energy: float


@dataclass(frozen=True)
class TruncatedSVD:
    """[out, in] → two layers of rank k: k·(in + out) weights instead of in·out.

    rank: a number, taken as it is; or `Energy` or `Ratio`, whose rank is rounded up to a multiple of `multiple`.
    """

    rank: Rank
    multiple: int = 16

    name = "svd"
    kind = SVD

    def fits(self, layer: nn.Module) -> bool:
        return splittable(layer, self.kind)

    def __call__(self, layer: nn.Module) -> SvdPair:
        """The pair nearest to `layer` in the Frobenius norm; ExportError for a rank that does not fit."""
        return self.split(layer).pair

    def split(self, layer: nn.Module) -> Halves:
        """As the call, with the rank and the energy kept. NothingGainedError where a rule leaves the layer alone."""
        if not self.fits(layer):
            raise ExportError(
                f"{self.name} splits fully connected layers and 1×1 convolutions, found a {type(layer).__name__}"
            )
        return nearest_pair(layer, self.kind, self.rank, self.multiple)


def nearest_pair(layer: nn.Module, kind: str, rule: Rank, multiple: int) -> Halves:
    """The pair whose product is nearest to `matrix_of(layer, kind)` in the Frobenius norm."""
    matrix = matrix_of(layer, kind)
    energies, vectors = spectrum(matrix @ matrix.T)
    rank = rank_for(rule, layer, kind, energies, multiple)
    left = vectors[:, :rank]
    pair, split = pair_of_factors(layer, kind, left, left.T @ matrix, layer.bias)
    return Halves(pair, split, share_kept(energies, rank))


def spectrum(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues of a symmetric matrix, falling and at least 0, and their eigenvectors as columns.

    Of W·Wᵀ these are the squared singular values and the left singular vectors U of W, and U_k·U_kᵀ·W is its nearest
    matrix of rank k. For fc6 of VGG-16 (4096 × 25088) that is far less work than the SVD, and what squaring loses in
    float64 lies below the rounding of float32 weights.
    """
    values, vectors = torch.linalg.eigh(gram)
    return values.flip(0).clamp_min(0), vectors.flip(1)


def share_kept(energies: Tensor, rank: int) -> float:
    total = float(energies.sum())
    return float(energies[:rank].sum()) / total if total else 1.0
