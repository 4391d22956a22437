"""DeconvNet (Noh, Hong and Han, arXiv:1505.04366): VGG down to a window of 7×7 cells, and deconvolutions back up.

fc6 is a 7×7 convolution without padding, fc7 a 1×1 one; a 7×7 deconvolution opens the window again, and from there each
level is unpooled by the encoder's maxima and deconvolved. The paper's 224×224 px become one cell, larger canvases more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from regionrt.plugins.max_unpool.torch_op import max_unpool

from .dense import DenseNet
from .dense_backbones import VGG16, PoolingEncoder, vgg_blocks
from .dense_config import CanvasConfig
from .errors import ModelError
from .segnet import mirrored


@dataclass(frozen=True)
class DeconvnetConfig(CanvasConfig):
    """width: channels of the first block (64 is VGG16), depth: poolings (the paper's 5); fc: width of fc6 and fc7
    (4096); window: cells of fc6's kernel (7).
    """

    width: int = 16
    depth: int = 4
    fc: int = 256
    window: int = 7


class Deconvnet(DenseNet):
    """Encoder, fc6, fc7, deconvolved window, and for each block, last first: unpooling and as many deconvolutions."""

    def __init__(self, config: DeconvnetConfig, labels: Sequence[str]) -> None:
        super().__init__(config, labels, 2**config.depth)
        self.least_px = config.window * self.stride
        if min(config.size) < self.least_px:
            raise ModelError(
                f"size {config.size[0]}x{config.size[1]}: fc6 sees windows of {config.window}×{config.window} cells of "
                f"{self.stride} px: give at least {self.least_px} px each way, a smaller window or a smaller depth"
            )
        blocks = vgg_blocks(config.width, config.depth)
        last = blocks[-1][0]
        self.backbone = PoolingEncoder(blocks)
        self.classifier = "vgg16_bn" if blocks == VGG16 else None  # whose weights --init takes
        self.fc = nn.Sequential(
            *normed(nn.Conv2d(last, config.fc, config.window)),
            *normed(nn.Conv2d(config.fc, config.fc, 1)),
            *normed(nn.ConvTranspose2d(config.fc, last, config.window)),
        )
        self.decoder = nn.ModuleList(mirrored(blocks, nn.ConvTranspose2d))
        self.score = nn.Conv2d(blocks[0][0], len(labels), 1)

    def forward(self, x: Tensor) -> Tensor:
        x, pooled = self.backbone(x)
        x = self.fc(x)
        for block, (places, before) in zip(self.decoder, reversed(pooled), strict=True):
            x = block(max_unpool(x, places, before, 2, 2))
        return self.score(x)


def normed(layer: nn.Conv2d | nn.ConvTranspose2d) -> list[nn.Module]:
    return [layer, nn.BatchNorm2d(layer.out_channels), nn.ReLU()]


def deconvnet(config: DeconvnetConfig, labels: Sequence[str]) -> Deconvnet:
    """A DeconvNet, randomly initialised."""
    module = Deconvnet(config, labels)
    for layer in (*module.fc.modules(), *module.decoder.modules()):
        if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    return module
