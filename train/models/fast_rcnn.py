"""Fast R-CNN (Girshick, arXiv:1504.08083): one pass of convolutions for a photo, its proposals pooled from the map."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from regionrt.plugins.roi_align import torch_op as roi_align
from regionrt.plugins.roi_pool import torch_op as roi_pool

from .errors import ModelError
from .proposal_net import FullyConnected, ProposalConfig, ProposalNet, one_map
from .scales import Sheet

_SAMPLES = 2  # of RoIAlign, per bin and axis
_CANONICAL = (224.0, 4)  # which level a region is pooled from: there is but one


@dataclass(frozen=True)
class FastRcnnConfig(ProposalConfig):
    """pool: "max" (the paper's RoI pooling) or "align" (RoIAlign, arXiv:1703.06870). bins: of each side of a region."""

    pool: str = "max"
    bins: int = 7

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pool not in ("max", "align"):
            raise ModelError(f'pool {self.pool!r}: give "max" or "align"')


class FastRcnn(ProposalNet):
    """Fast R-CNN with softmax; see `ProposalNet`."""

    config: FastRcnnConfig

    def __init__(self, config: FastRcnnConfig, labels: Sequence[str]) -> None:
        backbone, stride = one_map(config)
        inputs = int(backbone.out_channels) * config.bins**2  # type: ignore[arg-type]
        super().__init__(config, labels, stride, FullyConnected(inputs, config, len(labels)))
        self.backbone = backbone
        self.sheet = Sheet(config.scales, config.size, stride)
        self.fixed = not self.sheet.alone

    def features(self, x: Tensor) -> Tensor:
        return self.sheet.maps(self.backbone, x)  # [N, C, H/stride, W/stride] at one scale

    def placed(self, rois: Tensor) -> Tensor:
        return self.sheet.place(rois)

    def cut(self, feature: Tensor, rois: Tensor, counts: Tensor) -> Tensor:
        scale, bins = 1 / self.stride, self.config.bins
        if self.config.pool == "max":
            pool = roi_pool.differentiable if torch.is_grad_enabled() else roi_pool.roi_pool
            return pool(feature, rois, counts, scale, bins, bins)  # [N, P, C, h, w]
        align = roi_align.differentiable if torch.is_grad_enabled() else roi_align.roi_align
        return align([feature], rois, counts, [scale], bins, bins, _SAMPLES, False, "avg", *_CANONICAL)


def fast_rcnn(config: FastRcnnConfig, labels: Sequence[str]) -> FastRcnn:
    """A Fast R-CNN, randomly initialised."""
    return FastRcnn(config, labels)
