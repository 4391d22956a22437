"""A checkpoint whose layers are split at many ranks, one choice after the other: what is costly is computed once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import nn

from regionrt.train.checkpoint import Checkpoint, module_from_checkpoint
from regionrt.train.models.svd_pairs import SPATIAL, SVD, describe, splittable

from ..errors import ExportError
from .calibration import Photo
from .data_aware import OutputMoments, factors_of_moments, moments_of, rank_within
from .factors import Factors, factors_of_weights
from .layers import largest_rank

Progress = Callable[[str, float], None]


class AnyRank:
    """Pairs for the `names` of a checkpoint's layers, at ranks that are asked for later.

    photos: data-aware factors from all of them (k×k convolutions: spatial ones all the same); None: plain SVD. Moments
    are computed when the first pair is asked for, the factors of a layer with its first pair.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        names: Sequence[str],
        photos: Sequence[Photo] | None = None,
        progress: Progress = lambda text, share: None,
    ) -> None:
        self.checkpoint = checkpoint
        self._module = module_from_checkpoint(checkpoint)
        self.layers = {name: self._module.get_submodule(name) for name in names}
        self._photos, self._progress = photos, progress
        self._moments: dict[nn.Module, OutputMoments] | None = None
        self._factors: dict[str, Factors] = {}

    def largest(self, name: str) -> int:
        """The largest rank at which the pair takes less than the layer; 0: there is none."""
        return largest_rank(self.layers[name], _kind(self.layers[name]))

    def describe(self, name: str) -> str:
        """`512→256`, or `64→16, 3×3`."""
        return describe(self.layers[name])

    def at(self, ranks: Mapping[str, int]) -> Checkpoint:
        """The checkpoint with these layers split at these ranks, the others whole. ExportError names the layer."""
        weights, svd = dict(self.checkpoint.state_dict), dict(self.checkpoint.config.get("svd", {}))
        for name, rank in ranks.items():
            try:
                factors = self._factors_of(name)
                halves = factors.halves(rank_within(factors, rank, 1))
            except ExportError as error:
                raise ExportError(f"layer {name}: {error}") from error
            for key in [key for key in weights if key.rpartition(".")[0] == name]:
                del weights[key]
            weights |= {f"{name}.{key}": value for key, value in halves.pair.state_dict().items()}
            svd[name] = halves.split.to_json()
        config = {**self.checkpoint.config, **({"svd": svd} if svd else {})}
        return Checkpoint(self.checkpoint.model, config, self.checkpoint.labels, weights)

    def _factors_of(self, name: str) -> Factors:
        if name not in self._factors:
            layer = self.layers[name]
            kind = _kind(layer)
            if self._photos is None or kind != SVD:
                self._factors[name] = factors_of_weights(layer, kind)
            else:
                if self._moments is None:
                    aware = {n: x for n, x in self.layers.items() if _kind(x) == SVD}
                    self._moments = moments_of(self._module, aware, self._photos, self._progress)
                self._factors[name] = factors_of_moments(layer, self._moments.get(layer))
        return self._factors[name]


def _kind(layer: nn.Module) -> str:
    return SPATIAL if splittable(layer, SPATIAL) else SVD
