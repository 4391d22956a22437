"""The shape that truncated SVD leaves a fully connected layer in: two thinner ones (arXiv:1504.08083, 3.1)."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from .errors import ModelError


def with_svd_pairs(module: nn.Module, ranks: Mapping[str, int]) -> nn.Module:
    """The same module with each named Linear [out, in] replaced by Linear(in, rank, no bias) and Linear(rank, out).

    The new weights are random: they come from a checkpoint, or from `regionrt.export.compress`.
    """
    for name, rank in ranks.items():
        parent_name, _, child = name.rpartition(".")
        try:
            parent = module.get_submodule(parent_name)
            layer = getattr(parent, child)
        except AttributeError as error:
            raise ModelError(f"svd names a layer {name!r} that the model lacks") from error
        if not isinstance(layer, nn.Linear):
            raise ModelError(f"svd names {name!r}, a {type(layer).__name__}: only fully connected layers can be split")
        if not 1 <= rank <= min(layer.in_features, layer.out_features):
            raise ModelError(
                f"svd rank {rank} of {name!r} ({layer.in_features}→{layer.out_features}): "
                f"give 1..{min(layer.in_features, layer.out_features)}"
            )
        first = nn.Linear(layer.in_features, rank, bias=False, dtype=layer.weight.dtype)
        second = nn.Linear(rank, layer.out_features, bias=layer.bias is not None, dtype=layer.weight.dtype)
        setattr(parent, child, nn.Sequential(first, second))
    return module
