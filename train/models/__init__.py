"""The models that can be trained and exported: one registry, one function that builds from a name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from .config import RegionConfig
from .errors import ModelError
from .faster_rcnn import faster_rcnn
from .mask_rcnn import mask_rcnn
from .svd_pairs import with_svd_pairs
from .torchvision_models import BUILDERS, torchvision_model

__all__ = ["BACKGROUND", "MODELS", "Model", "ModelError", "RegionConfig", "build_model"]

BACKGROUND = "__background__"


@dataclass(frozen=True)
class Model:
    """An entry of the registry. `defaults` are the options as they stand in a checkpoint's config."""

    build: Callable[[Mapping[str, Any], Sequence[str]], nn.Module]
    defaults: Mapping[str, Any]
    task: str  # "detection" or "instance-segmentation"
    description: str


def _ours(build: Callable[[RegionConfig, Sequence[str]], nn.Module]) -> Callable[..., nn.Module]:
    def with_config(config: Mapping[str, Any], labels: Sequence[str]) -> nn.Module:
        options = RegionConfig.from_json(config)
        return with_svd_pairs(build(options, labels), options.svd)

    return with_config


MODELS: dict[str, Model] = {
    "faster_rcnn": Model(_ours(faster_rcnn), RegionConfig().to_json(), "detection", "Faster R-CNN, choice of backbone"),
    "mask_rcnn": Model(
        _ours(mask_rcnn), RegionConfig().to_json(), "instance-segmentation", "Mask R-CNN, choice of backbone"
    ),
} | {
    f"torchvision/{name}": Model(
        partial(torchvision_model, name),
        {},
        "instance-segmentation" if name.startswith("mask") else "detection",
        "torchvision's builder, with its own state_dict",
    )
    for name in BUILDERS
}


def build_model(name: str, config: Mapping[str, Any], labels: Sequence[str]) -> nn.Module:
    """A torchvision FasterRCNN or MaskRCNN in eval mode, randomly initialised, with torchvision's state_dict keys.

    labels: names by index, `__background__` first. ModelError for an unknown name or option, and for labels that do not
    start with the background or name nothing else.
    """
    if name not in MODELS:
        raise ModelError(f"unknown model {name!r}: choose one of {', '.join(MODELS)}")
    if len(labels) < 2 or labels[0] != BACKGROUND or len(set(labels)) != len(labels):
        raise ModelError(
            f"labels {list(labels)[:5]}: expected {BACKGROUND!r} first, then at least one class, each name once"
        )
    return MODELS[name].build(config, labels).eval()
