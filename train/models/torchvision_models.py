"""torchvision's own Faster and Mask R-CNN builders, so that a user's plain state_dict goes straight in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn
from torchvision.models import detection

from .errors import ModelError
from .region import check_size
from .svd_pairs import with_svd_pairs

BUILDERS = (
    "fasterrcnn_resnet50_fpn",
    "fasterrcnn_resnet50_fpn_v2",
    "fasterrcnn_mobilenet_v3_large_fpn",
    "fasterrcnn_mobilenet_v3_large_320_fpn",
    "maskrcnn_resnet50_fpn",
    "maskrcnn_resnet50_fpn_v2",
)
BACKBONE_OF = {  # model -> the classifier that its backbone is cut from
    f"torchvision/{name}": "resnet50" if "resnet50" in name else "mobilenet_v3_large" for name in BUILDERS
}
STRIDE = 32
_ARGUMENTS = {  # our option -> torchvision's arguments
    "min_size": ("min_size",),
    "max_size": ("max_size",),
    "mean": ("image_mean",),
    "std": ("image_std",),
    "score": ("box_score_thresh",),
    "nms": ("box_nms_thresh",),
    "detections": ("box_detections_per_img",),
    "proposals": ("rpn_pre_nms_top_n_test", "rpn_post_nms_top_n_test"),
    "proposal_nms": ("rpn_nms_thresh",),
    "anchors_per_image": ("rpn_batch_size_per_image",),
    "rois_per_image": ("box_batch_size_per_image",),
}


def torchvision_model(builder: str, config: Mapping[str, Any], labels: Sequence[str]) -> nn.Module:
    """The builder's module without weights, for `labels`, in torchvision's own keys.

    Options: those of `_ARGUMENTS`, `size` (the canvas), `norm_eps` and `svd`. Without weights the builders use
    BatchNorm with eps 1e-5; torchvision's published COCO_V1 weights of the two plain ResNet-50 builders were trained
    with `norm_eps` 0.
    """
    known = {*_ARGUMENTS, "size", "norm_eps", "svd"}
    if unknown := sorted(set(config) - known):
        raise ModelError(
            f"unknown option {', '.join(map(repr, unknown))} of torchvision/{builder}: "
            f"known are {', '.join(sorted(known))}"
        )
    arguments = {theirs: config[ours] for ours in _ARGUMENTS if ours in config for theirs in _ARGUMENTS[ours]}
    size = check_size(config["size"], STRIDE) if "size" in config else None
    module = getattr(detection, builder)(weights=None, weights_backbone=None, num_classes=len(labels), **arguments)
    if size:
        module.canvas_size = size
    if "norm_eps" in config:
        for layer in module.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.eps = float(config["norm_eps"])
    return with_svd_pairs(module, config.get("svd", {}))
