"""Mask R-CNN (He et al., arXiv:1703.06870) from torchvision's parts, with a choice of backbone."""

from __future__ import annotations

from collections.abc import Sequence

from torchvision.models.detection import MaskRCNN

from .config import RegionConfig
from .faster_rcnn import parts
from .mask_heads import DEFAULT_LAYERS, MASK_SIDE, SoftmaxMaskHeads, mask_layers
from .region_pool import region_pool


def mask_rcnn(config: RegionConfig, labels: Sequence[str]) -> MaskRCNN:
    """A torchvision MaskRCNN for `labels` (with `__background__` first), randomly initialised; masks are 28×28."""
    arguments = parts(config, len(labels))
    pooled_side = MASK_SIDE // 2
    head, predictor = mask_layers(
        config.mask_head, arguments["backbone"].out_channels, pooled_side,
        config.mask_layers or DEFAULT_LAYERS[config.mask_head], len(labels),
    )  # fmt: skip
    module = MaskRCNN(
        **arguments,
        mask_roi_pool=region_pool(
            config.pool, arguments["box_roi_pool"].featmap_names, pooled_side, canonical_scale=config.canonical_scale
        ),
        mask_head=head,
        mask_predictor=predictor,
    )
    if config.mask_loss == "softmax":
        module.roi_heads = SoftmaxMaskHeads.like(module.roi_heads)
    module.canvas_size = tuple(config.size)  # type: ignore[assignment]  # what `canvas_of` reads
    return module
