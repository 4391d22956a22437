"""A checkpoint compressed: the same model with layers split, again a checkpoint."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from regionrt.train.checkpoint import Checkpoint, module_from_checkpoint

from .truncated_svd import compress_


@dataclass(frozen=True)
class SplitLayer:
    """What happened to one layer; `energy` is the share of the squared singular values that the rank keeps."""

    name: str
    rank: int
    weights_before: int
    weights_after: int
    energy: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def compress_checkpoint(checkpoint: Checkpoint, ranks: Mapping[str, int]) -> tuple[Checkpoint, list[SplitLayer]]:
    """Split the named fully connected layers (full names or unique last parts) by truncated SVD.

    The ranks go into the new checkpoint's `config["svd"]`, so that it trains, evaluates and exports like any other.
    Raises CheckpointError (weights that do not fit), ExportError (layers or ranks).
    """
    module = module_from_checkpoint(checkpoint)
    before = {name: layer for name, layer in module.named_modules() if isinstance(layer, nn.Linear)}
    chosen = compress_(module, ranks)
    report = [_describe(name, rank, before[name]) for name, rank in chosen.items()]
    config = {**checkpoint.config, "svd": {**checkpoint.config.get("svd", {}), **chosen}}
    return Checkpoint(checkpoint.model, config, checkpoint.labels, module.state_dict()), report


def _describe(name: str, rank: int, layer: nn.Linear) -> SplitLayer:
    energy = torch.linalg.svdvals(layer.weight.detach().double()).square()
    inputs, outputs = layer.in_features, layer.out_features
    kept = float(energy[:rank].sum() / energy.sum())
    return SplitLayer(name, rank, inputs * outputs, rank * (inputs + outputs), kept)
