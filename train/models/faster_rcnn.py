"""Faster R-CNN (Ren et al., arXiv:1506.01497) from torchvision's parts, with a choice of backbone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead

from .backbones import BACKBONES, anchor_sizes, build_backbone
from .config import RegionConfig
from .region import MAX_CANDIDATES, check_size
from .region_pool import region_pool

ORIGINAL = RegionConfig(
    backbone="vgg16",
    size=(608, 1008),  # multiples of the stride that hold what is resized to 600 px, and to 1000 at most
    min_size=600,
    max_size=1000,
    anchor_sizes=(128, 256, 512),
    pool="max",
    representation=4096,
    rois_per_image=64,
    nms=0.3,
    proposals=300,
    proposal_candidates=MAX_CANDIDATES,
)
"""The net of the paper (sections 3.1, 3.3 and 4): one map of VGG16, 9 anchors, RoIPool, two layers of 4096, 300
proposals. RoIs and NMS are Fast R-CNN's. Its code lets 6000 anchors enter the proposals' NMS; TensorRT sorts 3840."""


def faster_rcnn(config: RegionConfig, labels: Sequence[str]) -> FasterRCNN:
    """A torchvision FasterRCNN for `labels` (with `__background__` first), randomly initialised."""
    module = FasterRCNN(**parts(config, len(labels)))
    module.canvas_size = tuple(config.size)  # type: ignore[assignment]  # what `canvas_of` reads
    return module


def parts(config: RegionConfig, num_classes: int) -> dict[str, Any]:
    """The arguments that FasterRCNN and MaskRCNN have in common. ModelError where the size does not fit."""
    backbone = build_backbone(config)
    entry = BACKBONES[config.backbone]
    check_size(config.size, entry.stride)
    sizes = anchor_sizes(config)
    maps = [str(i) for i in range(max(entry.levels - 1, 1))]  # a pyramid's last level is for the RPN only
    pool = region_pool(config.pool, maps, 7, canonical_scale=config.canonical_scale)
    return {
        "backbone": backbone,
        "num_classes": None,  # the predictors know
        "min_size": config.min_size or min(config.size),
        "max_size": config.max_size or max(config.size),
        "image_mean": list(config.mean),
        "image_std": list(config.std),
        "rpn_anchor_generator": AnchorGenerator(sizes, (tuple(config.aspect_ratios),) * len(sizes)),
        "rpn_batch_size_per_image": config.anchors_per_image,
        "rpn_pre_nms_top_n_train": config.train_proposals,
        "rpn_post_nms_top_n_train": config.train_proposals,
        "rpn_pre_nms_top_n_test": config.proposal_candidates or config.proposals,
        "rpn_post_nms_top_n_test": config.proposals,
        "rpn_nms_thresh": config.proposal_nms,
        "box_roi_pool": pool,
        "box_head": TwoMLPHead(backbone.out_channels * 7 * 7, config.representation),
        "box_predictor": FastRCNNPredictor(config.representation, num_classes),
        "box_score_thresh": config.score,
        "box_nms_thresh": config.nms,
        "box_detections_per_img": config.detections,
        "box_batch_size_per_image": config.rois_per_image,
    }
