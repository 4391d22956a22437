"""The shape that truncated SVD leaves a layer in: two thinner ones (arXiv:1504.08083, 3.1; arXiv:1405.3866, 2.2)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from .errors import ModelError

SVD = "svd"
SPATIAL = "spatial"


@dataclass(frozen=True)
class Split:
    """How one layer is split, as it stands in a checkpoint's `config["svd"]`.

    kind "svd": Linear, or Conv2d of 1×1, into two of the same. kind "spatial": Conv2d of k×k into k×1 and 1×k.
    bias: the pair has one although the layer had none (data-aware SVD corrects the mean by it).
    """

    rank: int
    kind: str = SVD
    bias: bool = False

    @classmethod
    def from_json(cls, name: str, value: Any) -> Split:
        """From a rank alone, or from {"rank": …, "kind": …, "bias": …}; ModelError for anything else."""
        fields = dict(value) if isinstance(value, Mapping) else {"rank": value}
        unknown = sorted(set(fields) - {"rank", "kind", "bias"})
        rank, kind, bias = fields.get("rank"), fields.get("kind", SVD), fields.get("bias", False)
        if unknown or type(rank) is not int or kind not in (SVD, SPATIAL) or type(bias) is not bool:
            wanted = 'a rank or {"rank": …, "kind": "svd" or "spatial", "bias": …}'
            raise ModelError(f"svd of {name!r}: expected {wanted}, found {value!r}")
        return cls(rank, kind, bias)

    def to_json(self) -> int | dict[str, Any]:
        """A number where the rank says it all, which every version reads."""
        if self == Split(self.rank):
            return self.rank
        return {"rank": self.rank, "kind": self.kind, **({"bias": True} if self.bias else {})}


class SvdPair(nn.Sequential):
    """Two thin layers in the place of one. A type of its own, so that a half is not taken for a layer to split."""


def splittable(layer: nn.Module, kind: str) -> bool:
    """Whether a pair of that kind can take the place of `layer`."""
    if isinstance(layer, nn.Linear):
        return kind == SVD
    if not isinstance(layer, nn.Conv2d) or layer.groups != 1:
        return False
    if kind == SVD:
        return tuple(layer.kernel_size) == (1, 1)
    return min(layer.kernel_size) > 1 and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)


def matrix_size(layer: nn.Module, kind: str) -> tuple[int, int]:
    """Rows and columns of the matrix that is factorised: [out, in], for "spatial" [out·kw, in·kh]."""
    if isinstance(layer, nn.Linear):
        return layer.out_features, layer.in_features
    assert isinstance(layer, nn.Conv2d)
    height, width = layer.kernel_size if kind == SPATIAL else (1, 1)
    return layer.out_channels * width, layer.in_channels * height


def pair_for(layer: nn.Module, split: Split) -> SvdPair:
    """The two layers that take the place of `layer`, the first without bias; their weights are random."""
    bias, rank = layer.bias is not None or split.bias, split.rank
    like: dict[str, Any] = {"device": layer.weight.device, "dtype": layer.weight.dtype}
    if isinstance(layer, nn.Linear):
        first: nn.Module = nn.Linear(layer.in_features, rank, bias=False, **like)
        return SvdPair(first, nn.Linear(rank, layer.out_features, bias=bias, **like))
    assert isinstance(layer, nn.Conv2d)
    stride, padding, dilation = layer.stride, layer.padding, layer.dilation
    if split.kind == SVD:
        whole: dict[str, Any] = {"stride": stride, "padding": padding, "padding_mode": layer.padding_mode}
        first = nn.Conv2d(layer.in_channels, rank, 1, bias=False, **whole, **like)
        return SvdPair(first, nn.Conv2d(rank, layer.out_channels, 1, bias=bias, **like))
    down, across = (
        {"stride": s, "padding": p, "dilation": d}
        for s, p, d in (
            ((stride[0], 1), (padding[0], 0), (dilation[0], 1)),
            ((1, stride[1]), (0, padding[1]), (1, dilation[1])),
        )
    )
    first = nn.Conv2d(layer.in_channels, rank, (layer.kernel_size[0], 1), bias=False, **down, **like)
    second = nn.Conv2d(rank, layer.out_channels, (1, layer.kernel_size[1]), bias=bias, **across, **like)
    return SvdPair(first, second)


def with_svd_pairs(module: nn.Module, splits: Mapping[str, Any]) -> nn.Module:
    """The same module with each named layer replaced by its pair; `splits` are `Split`s as JSON, by layer.

    The new weights are random: they come from a checkpoint, or from `regionrt.export.compress`.
    """
    if not isinstance(splits, Mapping):
        raise ModelError(f"svd: expected ranks by layer, found {splits!r}")
    for name, value in splits.items():
        split = Split.from_json(name, value)
        parent_name, _, child = name.rpartition(".")
        try:
            parent = module.get_submodule(parent_name)
            layer = getattr(parent, child)
        except AttributeError as error:
            raise ModelError(f"svd names a layer {name!r} that the model lacks") from error
        if not splittable(layer, split.kind):
            can = "fully connected layers and 1×1 convolutions" if split.kind == SVD else "k×k convolutions"
            raise ModelError(f"svd names {name!r}, a {type(layer).__name__}: only {can} can be split ({split.kind})")
        most = min(matrix_size(layer, split.kind))
        if not 1 <= split.rank <= most:
            raise ModelError(f"svd rank {split.rank} of {name!r} ({describe(layer)}): give 1..{most}")
        setattr(parent, child, pair_for(layer, split))
    return module


def describe(layer: nn.Module) -> str:
    """`512→256` of a fully connected layer, `64→16, 3×3` of a convolution."""
    if isinstance(layer, nn.Linear):
        return f"{layer.in_features}→{layer.out_features}"
    assert isinstance(layer, nn.Conv2d)
    return f"{layer.in_channels}→{layer.out_channels}, {'×'.join(map(str, layer.kernel_size))}"
