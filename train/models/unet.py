"""U-Net (Ronneberger, Fischer and Brox, arXiv:1505.04597) of any depth and width.

Convolutions are padded and normalised, so that the result has the canvas's size; the paper crops instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .dense import DenseNet
from .dense_config import CanvasConfig
from .errors import ModelError


@dataclass(frozen=True)
class UnetConfig(CanvasConfig):
    """width: channels of the first level (the paper's 64), doubled at each; depth: how often it is pooled (4)."""

    width: int = 16
    depth: int = 4
    dropout: float = 0.0  # of the coarsest level


class Contracting(nn.Module):
    """The way down: [N, 3, H, W] -> the maps of all levels, finest first."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.levels = nn.ModuleList(two_convolutions(a, b) for a, b in zip([3, *widths[:-1]], widths, strict=True))

    def forward(self, x: Tensor) -> list[Tensor]:
        maps: list[Tensor] = []
        for level in self.levels:
            maps.append(level(F.max_pool2d(maps[-1], 2) if maps else x))
        return maps


class Unet(DenseNet):
    """Up from the coarsest map: doubled by a transposed convolution, joined with the map of that size, convolved."""

    def __init__(self, config: UnetConfig, labels: Sequence[str]) -> None:
        if config.depth > 8:
            raise ModelError(f"depth {config.depth}: give 1 to 8")
        super().__init__(config, labels, 2**config.depth)
        widths = [config.width * 2**level for level in range(config.depth + 1)]
        self.backbone = Contracting(widths)
        self.dropout = nn.Dropout2d(config.dropout)
        self.doubled = nn.ModuleList(
            nn.ConvTranspose2d(2 * width, width, 2, stride=2) for width in reversed(widths[:-1])
        )
        self.joined = nn.ModuleList(two_convolutions(2 * width, width) for width in reversed(widths[:-1]))
        self.score = nn.Conv2d(config.width, len(labels), 1)

    def forward(self, x: Tensor) -> Tensor:
        *finer, x = self.backbone(x)
        x = self.dropout(x)
        for skip, doubled, joined in zip(reversed(finer), self.doubled, self.joined, strict=True):
            x = joined(torch.cat([skip, doubled(x)], 1))
        return self.score(x)


def two_convolutions(inputs: int, width: int) -> nn.Sequential:
    """Two 3×3 convolutions, each with BatchNorm and ReLU."""
    layers: list[nn.Module] = []
    for channels in (inputs, width):
        layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    return nn.Sequential(*layers)


def unet(config: UnetConfig, labels: Sequence[str]) -> Unet:
    """A U-Net, randomly initialised."""
    return Unet(config, labels)
