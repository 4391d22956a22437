"""torch.ops.regionrt.detections: the op as PyTorch sees it (eager by the reference, fake tensors for export)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from . import reference


@torch.library.custom_op("regionrt::detections", mutates_args=())
def detections(
    class_logits: Tensor,
    box_deltas: Tensor,
    rois: Tensor,
    counts: Tensor,
    image_sizes: Tensor,
    score_threshold: float,
    iou_threshold: float,
    max_detections: int,
    candidates: int,
    min_size: float,
    box_weights: Sequence[float],
    class_agnostic: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """num_detections, boxes, scores, labels, roi_index, overflow; see reference.py."""
    results = reference.detections(
        class_logits.detach().float().cpu().numpy(),
        box_deltas.detach().float().cpu().numpy(),
        rois.detach().float().cpu().numpy(),
        counts.cpu().numpy(),
        image_sizes.cpu().numpy(),
        score_threshold=score_threshold,
        iou_threshold=iou_threshold,
        max_detections=max_detections,
        candidates=candidates,
        min_size=min_size,
        box_weights=box_weights,
        class_agnostic=class_agnostic,
    )
    num, boxes, scores, labels, roi_index, overflow = (torch.from_numpy(r).to(rois.device) for r in results)
    return num, boxes, scores, labels, roi_index, overflow


@detections.register_fake
def _(class_logits, box_deltas, rois, counts, image_sizes, score_threshold, iou_threshold, max_detections, *_):
    images = rois.shape[0]
    boxes = rois.new_empty((images, max_detections, 4))
    integers = image_sizes.new_empty((images, max_detections))
    number = image_sizes.new_empty((images,))
    return (
        number,
        boxes,
        rois.new_empty((images, max_detections)),
        integers,
        torch.empty_like(integers),
        torch.empty_like(number),
    )
