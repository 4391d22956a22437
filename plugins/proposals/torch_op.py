"""torch.ops.regionrt.proposals: the op as PyTorch sees it (eager by the reference, fake tensors for export)."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from . import reference


@torch.library.custom_op("regionrt::proposals", mutates_args=())
def proposals(
    objectness: Sequence[Tensor],
    deltas: Sequence[Tensor],
    anchors: Sequence[Tensor],
    image_sizes: Tensor,
    pre_nms: int,
    post_nms: int,
    iou_threshold: float,
    score_threshold: float,
    min_size: float,
    box_weights: Sequence[float],
) -> tuple[Tensor, Tensor, Tensor]:
    """rois float32 [N, P, 4], scores float32 [N, P], counts int32 [N]; see reference.py."""
    results = reference.proposals(
        _arrays(objectness),
        _arrays(deltas),
        _arrays(anchors),
        image_sizes.cpu().numpy(),
        pre_nms=pre_nms,
        post_nms=post_nms,
        iou_threshold=iou_threshold,
        score_threshold=score_threshold,
        min_size=min_size,
        box_weights=box_weights,
    )
    rois, scores, counts = (torch.from_numpy(r).to(image_sizes.device) for r in results)
    return rois, scores, counts


def _arrays(levels: Sequence[Tensor]) -> list[np.ndarray]:
    return [level.detach().float().cpu().numpy() for level in levels]


@proposals.register_fake
def _(objectness, deltas, anchors, image_sizes, pre_nms, post_nms, *_):
    images = objectness[0].shape[0]
    rois = objectness[0].new_empty((images, post_nms, 4), dtype=torch.float32)
    return rois, rois.new_empty((images, post_nms)), image_sizes.new_empty((images,))
