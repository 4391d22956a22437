"""The models that can be trained and exported: one registry, one function that builds from a name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from .config import RegionConfig
from .deconvnet import DeconvnetConfig, deconvnet
from .errors import ModelError
from .fast_rcnn import FastRcnnConfig, fast_rcnn
from .faster_rcnn import faster_rcnn
from .fcn import FcnConfig, fcn
from .localiser import LocaliserConfig, localiser
from .mask_rcnn import mask_rcnn
from .overfeat import OverfeatConfig, overfeat
from .rcnn import RcnnConfig, rcnn
from .segnet import SegnetConfig, segnet
from .sppnet import SppnetConfig, sppnet
from .svd_pairs import with_svd_pairs
from .torchvision_models import BUILDERS, torchvision_model
from .unet import UnetConfig, unet

__all__ = ["BACKGROUND", "MODELS", "Model", "ModelError", "RegionConfig", "build_model"]

BACKGROUND = "__background__"
MAX_DENSE_CLASSES = 255  # label maps are uint8, and 255 is void


@dataclass(frozen=True)
class Model:
    """An entry of the registry. `defaults` are the options as they stand in a checkpoint's config."""

    build: Callable[[Mapping[str, Any], Sequence[str]], nn.Module]
    defaults: Mapping[str, Any]
    task: str  # a key of `train.tasks.TASKS`
    description: str
    config: Any = None  # the dataclass of its options; None: torchvision's builder takes them

    def full_config(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The given options with the defaults in all places; ModelError for those that do not exist."""
        if self.config is None:
            return dict(config)
        return type(self.config).from_json({**self.defaults, **config}).to_json()


def _ours(build: Callable[[Any, Sequence[str]], nn.Module], config: Any, task: str, description: str) -> Model:
    def with_config(given: Mapping[str, Any], labels: Sequence[str]) -> nn.Module:
        options = type(config).from_json({**config.to_json(), **given})
        return with_svd_pairs(build(options, labels), options.svd)

    return Model(with_config, config.to_json(), task, description, config)


MODELS: dict[str, Model] = {
    "faster_rcnn": _ours(faster_rcnn, RegionConfig(), "detection", "Faster R-CNN, choice of backbone"),
    "mask_rcnn": _ours(mask_rcnn, RegionConfig(), "instance-segmentation", "Mask R-CNN, choice of backbone"),
    "overfeat": _ours(
        overfeat, OverfeatConfig(), "window-detection", "OverFeat: all windows of six scales; choice of backbone"
    ),
    "rcnn": _ours(rcnn, RcnnConfig(), "proposal-detection", "R-CNN: proposals warped to one size; choice of backbone"),
    "sppnet": _ours(
        sppnet, SppnetConfig(), "proposal-detection", "SPPnet: a pyramid of each proposal; choice of backbone"
    ),
    "fast_rcnn": _ours(
        fast_rcnn, FastRcnnConfig(), "proposal-detection", "Fast R-CNN on proposals; choice of backbone and pooling"
    ),
    "fcn32s": _ours(
        fcn, FcnConfig(finest=32, backbone="mobilenet_v2"), "segmentation", "FCN on one map; choice of backbone"
    ),
    "fcn16s": _ours(fcn, FcnConfig(finest=16), "segmentation", "FCN fused down to stride 16; choice of backbone"),
    "fcn8s": _ours(fcn, FcnConfig(finest=8), "segmentation", "FCN fused down to stride 8; choice of backbone"),
    "segnet": _ours(segnet, SegnetConfig(), "segmentation", "SegNet, any width; width=64 depth=5 is the paper's"),
    "deconvnet": _ours(
        deconvnet, DeconvnetConfig(), "segmentation", "DeconvNet, any width; width=64 depth=5 fc=4096 is the paper's"
    ),
    "unet": _ours(unet, UnetConfig(), "segmentation", "U-Net, any width and depth; width=64 depth=4 is the paper's"),
    "localiser": _ours(localiser, LocaliserConfig(), "localisation", "class and box of one object; choice of backbone"),
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
    """A model in eval mode, randomly initialised: a torchvision FasterRCNN or MaskRCNN, or a
    `ProposalNet`, `Overfeat`, `DenseNet` or `Localiser`.

    labels: names by index, except for segmentation with `__background__` first. ModelError for an unknown name or
    option, and for labels that are not so.
    """
    if name not in MODELS:
        raise ModelError(f"unknown model {name!r}: choose one of {', '.join(MODELS)}")
    if why := why_not_labels(labels, MODELS[name].task):
        raise ModelError(why)
    return MODELS[name].build(config, labels).eval()


def why_not_labels(labels: Sequence[str], task: str) -> str | None:
    """What is wrong with the labels of a model for `task`; None if nothing is."""
    if task == "segmentation":
        if 2 <= len(labels) <= MAX_DENSE_CLASSES and len(set(labels)) == len(labels):
            return None
        return f"labels {list(labels)[:5]}: expected 2 to {MAX_DENSE_CLASSES} classes, each name once"
    if len(labels) < 2 or labels[0] != BACKGROUND or len(set(labels)) != len(labels):
        return f"labels {list(labels)[:5]}: expected {BACKGROUND!r} first, then at least one class, each name once"
    return None
