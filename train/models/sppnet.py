"""SPPnet (He et al., arXiv:1406.4729): one pass of convolutions for a photo, a pyramid of maxima of each proposal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from regionrt.plugins.pyramid_pool import torch_op as pyramid_pool
from regionrt.plugins.pyramid_pool.reference import check

from .errors import ModelError
from .proposal_net import FullyConnected, ProposalConfig, ProposalNet, one_map
from .scales import Sheet


@dataclass(frozen=True)
class SppnetConfig(ProposalConfig):
    """pyramid: bins of each side of a region's window on the map, level by level (section 4.1: 6, 3, 2 and 1)."""

    pyramid: tuple[int, ...] = (6, 3, 2, 1)
    classifier: str = "svm"

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            check((None, None), self.pyramid)
        except ValueError as error:
            raise ModelError(f"pyramid {list(self.pyramid)}: {error}") from error


class Sppnet(ProposalNet):
    """SPPnet's detector; see `ProposalNet`. A level with more bins than a window has cells repeats cells."""

    config: SppnetConfig

    def __init__(self, config: SppnetConfig, labels: Sequence[str]) -> None:
        backbone, stride = one_map(config)
        inputs = int(backbone.out_channels) * sum(bins**2 for bins in config.pyramid)  # type: ignore[arg-type]
        super().__init__(config, labels, stride, FullyConnected(inputs, config, len(labels)))
        self.backbone = backbone
        self.sheet = Sheet(config.scales, config.size, stride)
        self.fixed = not self.sheet.alone

    def features(self, x: Tensor) -> Tensor:
        return self.sheet.maps(self.backbone, x)  # [N, C, H/stride, W/stride] at one scale

    def placed(self, rois: Tensor) -> Tensor:
        return self.sheet.place(rois)

    def cut(self, feature: Tensor, rois: Tensor, counts: Tensor) -> Tensor:
        pool = pyramid_pool.differentiable if torch.is_grad_enabled() else pyramid_pool.pyramid_pool
        return pool(feature, rois, counts, 1 / self.stride, list(self.config.pyramid))  # [N, P, C · Σb²]


def sppnet(config: SppnetConfig, labels: Sequence[str]) -> Sppnet:
    """An SPPnet, randomly initialised."""
    return Sppnet(config, labels)
