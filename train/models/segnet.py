"""SegNet (Badrinarayanan, Kendall and Cipolla, arXiv:1511.00561): VGG's convolutions, and their mirror image.

The decoder has no weights for getting larger: it puts each value where the encoder's pooling found its maximum, and
convolves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from regionrt.plugins.max_unpool.torch_op import max_unpool

from .dense import DenseNet
from .dense_backbones import VGG16, PoolingEncoder, vgg_blocks
from .dense_config import CanvasConfig


@dataclass(frozen=True)
class SegnetConfig(CanvasConfig):
    """width: channels of the first block (64 is VGG16 and the paper's), depth: poolings (5 is the paper's)."""

    width: int = 16
    depth: int = 4


class Segnet(DenseNet):
    """Encoder, and for each of its blocks, last first: unpooling and as many convolutions."""

    def __init__(self, config: SegnetConfig, labels: Sequence[str]) -> None:
        super().__init__(config, labels, 2**config.depth)
        blocks = vgg_blocks(config.width, config.depth)
        self.backbone = PoolingEncoder(blocks)
        self.classifier = "vgg16_bn" if blocks == VGG16 else None  # whose weights --init takes
        self.decoder = nn.ModuleList(mirrored(blocks, nn.Conv2d))
        self.score = nn.Conv2d(blocks[0][0], len(labels), 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x, pooled = self.backbone(x)
        for block, (places, before) in zip(self.decoder, reversed(pooled), strict=True):
            x = block(max_unpool(x, places, before, 2, 2))
        return self.score(x)


def mirrored(blocks: Sequence[tuple[int, int]], layer: type[nn.Module]) -> list[nn.Sequential]:
    """The blocks of a decoder, coarsest first: as many layers of 3×3 as the encoder's, the last one narrows.

    They have biases as VGG's do, though BatchNorm follows: torch exports a convolution without one behind an op that it
    does not know as one with a computed bias, into which BatchNorm cannot be folded.
    """
    found = []
    for index in reversed(range(len(blocks))):
        width, count = blocks[index]
        after = blocks[index - 1][0] if index else width
        layers: list[nn.Module] = []
        for outputs in [width] * (count - 1) + [after]:
            layers += [layer(width, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]
        found.append(nn.Sequential(*layers))
    return found


def segnet(config: SegnetConfig, labels: Sequence[str]) -> Segnet:
    """A SegNet, randomly initialised."""
    module = Segnet(config, labels)
    for layer in module.decoder.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    return module
