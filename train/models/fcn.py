"""Fully convolutional networks (Long, Shelhamer and Darrell, arXiv:1411.4038): FCN-32s, -16s and -8s.

The paper pads its input by 100 px so that fc6 still fits, and crops what it scores; here fc6 pads itself, and every map
is the canvas divided by its stride.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .dense import DenseNet
from .dense_backbones import build_dense_backbone
from .dense_config import CanvasConfig
from .errors import ModelError
from .upsampling import bilinear_upsampling


@dataclass(frozen=True)
class FcnConfig(CanvasConfig):
    """fc: width of fc6 and fc7 (the paper's 4096). kernel: of fc6. finest: stride of the finest map that is scored."""

    backbone: str = "squeezenet1_1"
    norm: str = "batch"
    fc: int = 256
    kernel: int = 3
    dropout: float = 0.1
    finest: int = 8


class Fcn(DenseNet):
    """Scores the coarsest map, doubles the scores, adds those of the next finer map, and so on up to `finest`."""

    def __init__(self, config: FcnConfig, labels: Sequence[str]) -> None:
        backbone = build_dense_backbone(config.backbone, config.norm)
        strides = [stride for stride in backbone.strides if stride >= config.finest]
        if not strides or strides[0] != config.finest:
            raise ModelError(
                f"finest {config.finest}: {config.backbone} gives maps of the strides {list(backbone.strides)}: "
                "take another FCN or another backbone"
            )
        super().__init__(config, labels, strides[-1])
        if config.kernel % 2 == 0:
            raise ModelError(f"kernel {config.kernel}: give an odd number")
        self.backbone = backbone
        self.skip = len(backbone.strides) - len(strides)  # maps that are too fine to be scored
        classes, *finer = len(labels), *backbone.channels[self.skip : -1]
        self.head = nn.Sequential(
            nn.Conv2d(backbone.channels[-1], config.fc, config.kernel, padding=config.kernel // 2),
            nn.ReLU(),
            nn.Dropout2d(config.dropout),
            nn.Conv2d(config.fc, config.fc, 1),
            nn.ReLU(),
            nn.Dropout2d(config.dropout),
            nn.Conv2d(config.fc, classes, 1),
        )
        self.scores = nn.ModuleList(nn.Conv2d(channels, classes, 1) for channels in finer)
        self.doubled = nn.ModuleList(bilinear_upsampling(classes, 2) for _ in finer)
        self.upsampled = bilinear_upsampling(classes, config.finest)
        for score in self.scores:  # a skip begins at nothing: the net starts as its coarser form (section 4.2)
            nn.init.zeros_(score.weight)
            nn.init.zeros_(score.bias)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.backbone(x)[self.skip :]
        scores = self.head(maps[-1])  # [N, K, H/s, W/s]
        for finer, score, doubled in zip(maps[-2::-1], reversed(self.scores), self.doubled, strict=True):
            scores = doubled(scores) + score(finer)
        return self.upsampled(scores)


def fcn(config: FcnConfig, labels: Sequence[str]) -> Fcn:
    """An FCN, randomly initialised, its upsampling bilinear."""
    with torch.no_grad():
        return Fcn(config, labels)
