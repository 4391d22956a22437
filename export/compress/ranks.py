"""Which rank a layer gets: a number, or a rule for it (how much must be kept, or how much may stay)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from regionrt.train.models.svd_pairs import describe

from ..errors import ExportError
from .layers import cost_of_rank, largest_rank


class NothingGainedError(ExportError):
    """A rule gives a rank with which the pair would take as much as the layer: it is to be left alone."""


@dataclass(frozen=True)
class Energy:
    """The smallest rank that keeps this share of the squared singular values."""

    share: float

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise ExportError(f"energy {self.share}: give a share between 0 and 1, such as 0.9")


@dataclass(frozen=True)
class Ratio:
    """The largest rank with which this share of the layer's weights and multiplications stays."""

    share: float

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise ExportError(f"ratio {self.share}: give a share between 0 and 1, such as 0.5")


Rank = int | Energy | Ratio


def rank_for(rule: Rank, layer: nn.Module, kind: str, energies: Tensor, multiple: int) -> int:
    """The rank of the pair for `layer`; `energies` are its squared singular values, falling.

    A number is taken as it is, or ExportError. What a rule gives is rounded up to a multiple of `multiple`, which the
    target's matrix units like; NothingGainedError where the pair would then take as much as the layer.
    """
    if multiple < 1:
        raise ExportError(f"multiple {multiple}: give 1 or more; ranks are rounded up to a multiple of it")
    most = largest_rank(layer, kind)
    if isinstance(rule, int):
        if 1 <= rule <= most:
            return rule
        give = f"give 1..{most}, beyond which SVD adds weights" if most else "leave it alone: any rank adds weights"
        raise ExportError(f"rank {rule} for a {describe(layer)} layer: {give}")
    if isinstance(rule, Energy):
        kept = energies.cumsum(0) / energies.sum().clamp_min(torch.finfo(energies.dtype).tiny)
        wanted = int((kept < rule.share).sum()) + 1
    else:
        per_rank, whole = cost_of_rank(layer, kind)
        wanted = max(int(rule.share * whole / per_rank), 1)
    rank = -(-wanted // multiple) * multiple
    if rank > most:
        needed = f"rank {wanted}" + (f", rounded up to {rank}," if rank != wanted else "")
        raise NothingGainedError(f"{needed} would not make it smaller (from rank {most + 1} on SVD adds weights)")
    return rank
