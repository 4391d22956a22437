"""Backbones of region-based detectors: torchvision's classifiers cut to feature maps, and their ImageNet weights."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torchvision import models
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.ops.misc import FrozenBatchNorm2d

from .config import RegionConfig
from .errors import ModelError

NORMS: dict[str, Callable[..., nn.Module]] = {"batch": nn.BatchNorm2d, "frozen": FrozenBatchNorm2d}


@dataclass(frozen=True)
class Backbone:
    """How to build one, the anchors that suit its maps, and where its classifier's keys go in a detector."""

    build: Callable[[Any], nn.Module]  # from a config with `norm` and `channels`
    levels: int  # feature maps that the RPN reads
    stride: int  # of the coarsest map that RoIs are pooled from
    anchor_sizes: tuple[tuple[int, ...], ...]  # per level, sides in canvas px
    source: str  # prefix of its layers' keys in the classifier's state_dict
    description: str
    frozen: tuple[str, ...] = ()  # layers that Fast R-CNN does not fine-tune where --init brought them
    last_pooling: tuple[int, int] = (3, 2)  # behind its map in R-CNN, kernel and stride: its pool5, or else AlexNet's


def build_backbone(config: RegionConfig) -> nn.Module:
    """Feature extractor with `out_channels`: [N, 3, H, W] -> one map, or an ordered dict of maps."""
    if config.backbone not in BACKBONES:
        raise ModelError(f"unknown backbone {config.backbone!r}: choose one of {', '.join(BACKBONES)}")
    return BACKBONES[config.backbone].build(config)


def anchor_sizes(config: RegionConfig) -> tuple[tuple[int, ...], ...]:
    """Sides of the anchors per feature map. ModelError where the given ones do not fit the number of maps."""
    backbone = BACKBONES[config.backbone]
    given = config.anchor_sizes
    if given is None:
        return backbone.anchor_sizes
    if backbone.levels == 1 and not any(isinstance(s, tuple) for s in given):
        given = (given,)
    sizes = tuple(s if isinstance(s, tuple) else (s,) for s in given)
    if len(sizes) != backbone.levels or len({len(s) for s in sizes}) != 1:
        raise ModelError(
            f"anchor_sizes {list(given)} for {config.backbone}: give {backbone.levels} entries (one per feature map), "
            "each with the same number of sizes"
        )
    return sizes


def _squeezenet1_1(config: RegionConfig) -> nn.Module:
    """`features` of SqueezeNet 1.1 (Iandola et al., arXiv:1602.07360): one map of 512 channels, stride 16.

    conv1 gets one px of padding. Without it the map is a cell short of size / 16, and torchvision's anchor generator,
    which takes image size // map size for the stride, lays 256 px out with a stride of 17.
    """
    features = models.squeezenet1_1(weights=None).features
    features[0].padding = (1, 1)
    return _one_map(features, 512, config.channels)


def _vgg16(config: RegionConfig) -> nn.Module:
    """VGG16 (Simonyan and Zisserman, arXiv:1409.1556, configuration D) without its last pooling: 512 channels."""
    return _one_map(models.vgg16(weights=None).features[:30], 512, config.channels)


def _alexnet(config: RegionConfig) -> nn.Module:
    """AlexNet (Krizhevsky et al., 2012) without its last pooling: one map of 256 channels, stride 16.

    conv1 is padded further and the poolings keep what is left at the edge, so that the map is size / 16.
    """
    features = models.alexnet(weights=None).features[:12]
    features[0].padding = (4, 4)
    for layer in features:
        if isinstance(layer, nn.MaxPool2d):
            layer.ceil_mode = True
    return _one_map(features, 256, config.channels)


def _mobilenet_v2(config: RegionConfig) -> nn.Module:
    """MobileNetV2 (Sandler et al., arXiv:1801.04381) up to its last block of stride 16: one map of 96 channels."""
    return _one_map(models.mobilenet_v2(weights=None, norm_layer=NORMS[config.norm]).features[:14], 96, config.channels)


def _mobilenet_v3_large(config: RegionConfig) -> nn.Module:
    """MobileNetV3-Large (Howard et al., arXiv:1905.02244) with a pyramid on strides 8, 16 and 32."""
    features = models.mobilenet_v3_large(weights=None, norm_layer=NORMS[config.norm]).features
    return BackboneWithFPN(features, {"6": "0", "12": "1", "16": "2"}, [40, 112, 960], config.channels or 256)


def _resnet(builder: Callable[..., models.ResNet]) -> Callable[[RegionConfig], nn.Module]:
    """A ResNet (He et al., arXiv:1512.03385) with a pyramid on its four stages, strides 4 to 32."""

    def build(config: RegionConfig) -> nn.Module:
        body = builder(weights=None, norm_layer=NORMS[config.norm])
        widths = [body.inplanes // 8 * 2**i for i in range(4)]
        return BackboneWithFPN(body, {f"layer{i + 1}": str(i) for i in range(4)}, widths, config.channels or 256)

    return build


def _one_map(features: nn.Sequential, width: int, channels: int | None) -> nn.Module:
    """One map; for another number of channels behind a 1×1 convolution (as torchvision does without a pyramid)."""
    layers = OrderedDict(body=features)
    if channels:
        layers["neck"] = nn.Conv2d(width, channels, 1)
    backbone = nn.Sequential(layers)
    backbone.out_channels = channels or width  # type: ignore[assignment]  # where torchvision's FasterRCNN looks for it
    return backbone


_OF_ONE_MAP = ((16, 32, 64, 128, 256),)
_OF_PYRAMID = tuple((size,) for size in (16, 32, 64, 128, 256))
BACKBONES = {
    "squeezenet1_1": Backbone(
        _squeezenet1_1, 1, 16, _OF_ONE_MAP, "features.", "one map, stride 16, no norm", ("backbone.body.0",)
    ),
    "mobilenet_v2": Backbone(
        _mobilenet_v2, 1, 16, _OF_ONE_MAP, "features.", "one map, stride 16", ("backbone.body.0", "backbone.body.1")
    ),
    "vgg16": Backbone(
        _vgg16,
        1,
        16,
        _OF_ONE_MAP,
        "features.",
        "one map, stride 16, no norm",
        ("backbone.body.0", "backbone.body.2", "backbone.body.5", "backbone.body.7"),  # conv1 and conv2
        last_pooling=(2, 2),
    ),
    "alexnet": Backbone(_alexnet, 1, 16, _OF_ONE_MAP, "features.", "one map, stride 16, no norm", ("backbone.body.0",)),
    "mobilenet_v3_large": Backbone(
        _mobilenet_v3_large,
        4,
        32,
        tuple((s,) for s in (24, 48, 96, 192)),
        "features.",
        "FPN, strides 8-64",
    ),
    "resnet18": Backbone(_resnet(models.resnet18), 5, 32, _OF_PYRAMID, "", "FPN, strides 4-64"),
    "resnet50": Backbone(_resnet(models.resnet50), 5, 32, _OF_PYRAMID, "", "FPN, strides 4-64"),
}
SOURCES = {name: entry.source for name, entry in BACKBONES.items()} | {"vgg16_bn": "features."}
"""Prefix of the backbone's layers in the state_dict of torchvision's classifier of that name."""


@dataclass(frozen=True)
class InitialWeights:
    """What of a file of ImageNet weights goes into a detector, and what has no place there."""

    state_dict: dict[str, Tensor]  # under the detector's keys
    missing: list[str]  # layers of the backbone that the file lacks
    unexpected: list[str]  # keys that are no layer of this backbone at all
    left_out: list[str]  # the classifier, and layers that the detector cuts off


def initial_weights(name: str, module: nn.Module, classifier: Mapping[str, Tensor]) -> InitialWeights:
    """Sort a torchvision classifier's state_dict into a detector with the backbone `name`. Shapes are not looked at."""
    source = SOURCES.get(name)
    if source is None:
        raise ModelError(f"unknown backbone {name!r}: choose one of {', '.join(SOURCES)}")
    prefix = "backbone.body."
    wanted = {key for key in module.state_dict() if key.startswith(prefix)}
    whole = getattr(models, name)(weights=None).state_dict()
    placed: dict[str, Tensor] = {}
    unexpected: list[str] = []
    left_out: list[str] = []
    for key, value in classifier.items():
        target = prefix + key[len(source) :]
        if key.startswith(source) and target in wanted:
            placed[target] = value
        elif not key.endswith("num_batches_tracked"):
            (left_out if key in whole else unexpected).append(key)
    # BatchNorm's counters are no weights, and frozen BatchNorm has none.
    missing = sorted(key for key in wanted - set(placed) if not key.endswith("num_batches_tracked"))
    return InitialWeights(placed, missing, unexpected, left_out)
