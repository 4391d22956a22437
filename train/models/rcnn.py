"""R-CNN (Girshick et al., arXiv:1311.2524): each proposal is cut out, warped to one size, and goes through the net."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from regionrt.plugins.warp.reference import check
from regionrt.plugins.warp.torch_op import warp

from .backbones import BACKBONES
from .errors import ModelError
from .proposal_net import FullyConnected, ProposalConfig, ProposalNet, one_map


@dataclass(frozen=True)
class RcnnConfig(ProposalConfig):
    """crop: side of a warped proposal in px, of which `context` px on each side show what is around it (section 2.1).

    Of the sampled regions a quarter are objects, the others any with a lower IoU (section 2.3: 32 and 96 of 128).
    """

    crop: int = 227
    context: int = 16
    background_iou: tuple[float, float] = (0.0, 0.5)
    classifier: str = "svm"
    from_zero = "context"

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            check((self.crop, self.crop), self.context)
        except ValueError as error:
            raise ModelError(f"crop {self.crop}: {error}") from error


class Rcnn(ProposalNet):
    """R-CNN's detector; see `ProposalNet`. Its regions are cut from pixels: `features.0` is the normalised image."""

    config: RcnnConfig
    rows_at_once = 64

    def __init__(self, config: RcnnConfig, labels: Sequence[str]) -> None:
        if config.scales != (1.0,):
            raise ModelError(f"scales {list(config.scales)}: R-CNN cuts regions from the photo, which has one scale")
        backbone, stride = one_map(config)
        kernel, step = BACKBONES[config.backbone].last_pooling  # which backbones for detection leave out
        with torch.no_grad():
            side = backbone.eval()(torch.zeros(1, 3, config.crop, config.crop)).shape[-1]
        if side < kernel:
            raise ModelError(
                f"crop {config.crop}: leaves a map of {side} cells a side, give {kernel * stride} px or more"
            )
        inputs = int(backbone.out_channels) * ((side - kernel) // step + 1) ** 2  # type: ignore[arg-type]
        super().__init__(config, labels, stride, FullyConnected(inputs, config, len(labels)))
        self.backbone = backbone
        self.last_pooling = nn.MaxPool2d(kernel, step)

    def features(self, x: Tensor) -> Tensor:
        return x

    def cut(self, feature: Tensor, rois: Tensor, counts: Tensor) -> Tensor:
        crop = self.config.crop
        return warp(
            feature, rois, counts, crop, crop, self.config.context
        )  # [N, P, 3, crop, crop]; pixels learn nothing

    def cells(self, rows: Tensor) -> Tensor:
        return self.last_pooling(self.backbone(rows))


def rcnn(config: RcnnConfig, labels: Sequence[str]) -> Rcnn:
    """An R-CNN, randomly initialised."""
    return Rcnn(config, labels)
