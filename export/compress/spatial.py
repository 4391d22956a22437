"""Spatial decomposition: a k×k convolution as k×1 and then 1×k (Jaderberg et al., arXiv:1405.3866, section 2.2)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from regionrt.train.models.svd_pairs import SPATIAL, SvdPair, describe, splittable

from ..errors import ExportError
from .factors import Halves
from .ranks import Rank
from .truncated_svd import nearest_pair


@dataclass(frozen=True)
class SpatialSVD:
    """Conv2d [out, in, kh, kw] → Conv2d [k, in, kh, 1] without bias and Conv2d [out, k, 1, kw].

    The nearest such pair is the truncated SVD of the weights as a matrix [out·kw, in·kh]. Zero padding and strides
    are divided between the halves, so that at full rank the outputs are the same. For rank and multiple see
    `TruncatedSVD`.
    """

    rank: Rank
    multiple: int = 16

    name = "spatial"
    kind = SPATIAL

    def fits(self, layer: nn.Module) -> bool:
        return splittable(layer, self.kind)

    def __call__(self, layer: nn.Module) -> SvdPair:
        return self.split(layer).pair

    def split(self, layer: nn.Module) -> Halves:
        if not self.fits(layer):
            what = describe(layer) if isinstance(layer, nn.Conv2d) else type(layer).__name__
            raise ExportError(f"spatial splits k×k convolutions with zero padding and one group, found {what}")
        return nearest_pair(layer, self.kind, self.rank, self.multiple)
