"""Truncated SVD of fully connected layers (Girshick, Fast R-CNN, arXiv:1504.08083, section 3.1)."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from ..errors import ExportError


@dataclass(frozen=True)
class TruncatedSVD:
    """Linear [out, in] → two Linears of rank k: k·(in + out) weights instead of in·out."""

    rank: int

    def __call__(self, layer: nn.Linear) -> nn.Sequential:
        """The pair (Linear(in, k) without bias, Linear(k, out)) nearest to `layer` in the Frobenius norm.

        Raises ExportError for a rank beyond which the pair would hold more weights than the layer.
        """
        inputs, outputs = layer.in_features, layer.out_features
        limit = (outputs * inputs - 1) // (outputs + inputs)
        if not 1 <= self.rank <= limit:
            raise ExportError(
                f"rank {self.rank} for a {inputs}→{outputs} layer: give 1..{limit}, beyond which SVD adds weights"
            )
        # In float64: the small singular values of a trained layer lie near the rounding of float32.
        u, s, v = torch.linalg.svd(layer.weight.detach().double(), full_matrices=False)
        first = nn.Linear(inputs, self.rank, bias=False)
        second = nn.Linear(self.rank, outputs, bias=layer.bias is not None)
        with torch.no_grad():
            first.weight.copy_(s[: self.rank, None] * v[: self.rank])
            second.weight.copy_(u[:, : self.rank])
            if layer.bias is not None:
                second.bias.copy_(layer.bias)
        return nn.Sequential(first, second).to(layer.weight)


def compress_(module: nn.Module, ranks: Mapping[str, int]) -> dict[str, int]:
    """Replace layers of `module` in place by pairs of the given ranks; returns full layer name → rank.

    A layer is named by its full name or by its last part (`fc6`), which must then be unique. Raises ExportError for an
    unknown or ambiguous name, naming the layers there are.
    """
    layers = {name: layer for name, layer in module.named_modules() if isinstance(layer, nn.Linear)}
    chosen: dict[str, int] = {}
    for wanted, rank in ranks.items():
        matches = [name for name in layers if name == wanted or name.endswith(f".{wanted}")]
        if len(matches) != 1:
            found = "names no fully connected layer" if not matches else f"is ambiguous: {', '.join(matches)}"
            known = ", ".join(f"{name} ({fc.in_features}→{fc.out_features})" for name, fc in layers.items())
            raise ExportError(f"--rank {wanted}={rank} {found}; the model has {known or 'none'}")
        chosen[matches[0]] = rank
    pairs = {name: TruncatedSVD(rank)(layers[name]) for name, rank in chosen.items()}
    for name, pair in pairs.items():
        parent, _, child = name.rpartition(".")
        setattr(module.get_submodule(parent), child, pair)
    return chosen
