"""Mask R-CNN (He et al., arXiv:1703.06870) from torchvision's parts, with a choice of backbone."""

from __future__ import annotations

from collections.abc import Sequence

from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import MultiScaleRoIAlign

from .config import RegionConfig
from .faster_rcnn import parts


def mask_rcnn(config: RegionConfig, labels: Sequence[str]) -> MaskRCNN:
    """A torchvision MaskRCNN for `labels` (with `__background__` first), randomly initialised; masks are 28×28."""
    arguments = parts(config, len(labels))
    width = config.mask_layers[-1]
    module = MaskRCNN(
        **arguments,
        mask_roi_pool=MultiScaleRoIAlign(
            arguments["box_roi_pool"].featmap_names,
            output_size=14,
            sampling_ratio=2,
            canonical_scale=config.canonical_scale,
        ),
        mask_head=MaskRCNNHeads(arguments["backbone"].out_channels, config.mask_layers, dilation=1),
        mask_predictor=MaskRCNNPredictor(width, width, len(labels)),
    )
    module.canvas_size = tuple(config.size)  # type: ignore[assignment]  # what `canvas_of` reads
    return module
