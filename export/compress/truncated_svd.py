"""Truncated SVD of fully connected layers and 1×1 convolutions (Girshick, Fast R-CNN, arXiv:1504.08083, 3.1)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from regionrt.train.models.svd_pairs import SVD, SvdPair, splittable

from ..errors import ExportError
from .factors import Halves, factors_of_weights
from .ranks import Rank


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
    factors = factors_of_weights(layer, kind)
    return factors.halves(factors.rank(rule, multiple))
