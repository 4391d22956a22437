"""Encoders of dense nets: torchvision classifiers that give a map of each stride, and VGG with stored maxima."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torchvision import models
from torchvision.models.vgg import make_layers

from regionrt.plugins.max_unpool.torch_op import max_pool_argmax

from .backbones import NORMS
from .errors import ModelError

VGG16 = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
"""Width and number of convolutions before each pooling (Simonyan and Zisserman, arXiv:1409.1556, configuration D)."""


class Taps(nn.Module):
    """`body`, cut after some of its layers: [N, 3, H, W] -> the maps there, finest first.

    The keys of `body` are those of the classifier's `features`.
    """

    def __init__(
        self, body: nn.Sequential, after: Sequence[int], channels: Sequence[int], strides: Sequence[int]
    ) -> None:
        super().__init__()
        self.body = body
        self.after = tuple(after)
        self.channels = tuple(channels)
        self.strides = tuple(strides)

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = []
        for index, layer in enumerate(self.body):
            x = layer(x)
            if index in self.after:
                maps.append(x)
        return maps


@dataclass(frozen=True)
class DenseBackbone:
    """How to build one from its `norm`; `strides` of its maps, finest first."""

    build: Callable[[str], Taps]
    strides: tuple[int, ...]
    description: str


def _vgg16(norm: str) -> Taps:
    return Taps(models.vgg16(weights=None).features, (16, 23, 30), (256, 512, 512), (8, 16, 32))


def _squeezenet1_1(norm: str) -> Taps:
    """SqueezeNet 1.1 up to its last Fire module; conv1 padded, so that maps are size / stride."""
    features = models.squeezenet1_1(weights=None).features
    features[0].padding = (1, 1)
    return Taps(features, (4, 7, 12), (128, 256, 512), (4, 8, 16))


def _mobilenet_v2(norm: str) -> Taps:
    features = models.mobilenet_v2(weights=None, norm_layer=NORMS[norm]).features[:18]
    return Taps(features, (3, 6, 13, 17), (24, 32, 96, 320), (4, 8, 16, 32))


DENSE_BACKBONES: Mapping[str, DenseBackbone] = {
    "squeezenet1_1": DenseBackbone(_squeezenet1_1, (4, 8, 16), "strides 4-16, no norm"),
    "mobilenet_v2": DenseBackbone(_mobilenet_v2, (4, 8, 16, 32), "strides 4-32"),
    "vgg16": DenseBackbone(_vgg16, (8, 16, 32), "strides 8-32, no norm"),
}


def build_dense_backbone(name: str, norm: str) -> Taps:
    """ModelError for a name that is not in `DENSE_BACKBONES`."""
    if name not in DENSE_BACKBONES:
        raise ModelError(f"unknown backbone {name!r}: choose one of {', '.join(DENSE_BACKBONES)}")
    return DENSE_BACKBONES[name].build(norm)


class PoolingEncoder(nn.Module):
    """VGG's convolutions with BatchNorm; where they pool, the places of the maxima are kept.

    Keys are those of torchvision's `vgg16_bn().features` where `blocks` are VGG16's, so that its weights fit.
    """

    def __init__(self, blocks: Sequence[tuple[int, int]]) -> None:
        super().__init__()
        self.blocks = tuple(blocks)
        layers: list[Any] = [entry for width, count in blocks for entry in (*[width] * count, "M")]
        self.body = make_layers(layers, batch_norm=True)

    def forward(self, x: Tensor) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """[N, 3, H, W] -> the last map, and of each pooling its places and the map before it."""
        pooled = []
        for layer in self.body:
            if isinstance(layer, nn.MaxPool2d):
                before = x
                x, places = max_pool_argmax(x, 2, 2)
                pooled.append((places, before))
            else:
                x = layer(x)
        return x, pooled


def vgg_blocks(width: int, depth: int) -> tuple[tuple[int, int], ...]:
    """The first `depth` blocks of VGG16 with `width` instead of its 64 channels at the beginning; ModelError."""
    if not 1 <= depth <= len(VGG16):
        raise ModelError(f"depth {depth}: give 1 to {len(VGG16)} poolings")
    return tuple((max(channels * width // 64, 1), count) for channels, count in VGG16[:depth])
