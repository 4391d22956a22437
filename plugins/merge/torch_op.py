"""torch.ops.regionrt.merge: the op as PyTorch sees it (eager by the reference, fake tensors for export)."""

import torch
from torch import Tensor

from . import reference


@torch.library.custom_op("regionrt::merge", mutates_args=())
def merge(
    class_logits: Tensor,
    box_edges: Tensor,
    windows: Tensor,
    image_sizes: Tensor,
    window_threshold: float,
    merge_threshold: float,
    score_threshold: float,
    max_detections: int,
    candidates: int,
    min_size: float,
    class_agnostic: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """num_detections, boxes, scores, labels, overflow; see reference.py."""
    results = reference.merge(
        class_logits.detach().float().cpu().numpy(),
        box_edges.detach().float().cpu().numpy(),
        windows.detach().float().cpu().numpy(),
        image_sizes.cpu().numpy(),
        window_threshold=window_threshold,
        merge_threshold=merge_threshold,
        score_threshold=score_threshold,
        max_detections=max_detections,
        candidates=candidates,
        min_size=min_size,
        class_agnostic=class_agnostic,
    )
    num, boxes, scores, labels, overflow = (torch.from_numpy(r).to(class_logits.device) for r in results)
    return num, boxes, scores, labels, overflow


@merge.register_fake
def _(class_logits, box_edges, windows, image_sizes, window_threshold, merge_threshold, score_threshold, most, *_):
    images = class_logits.shape[0]
    number = image_sizes.new_empty((images,))
    return (
        number,
        class_logits.new_empty((images, most, 4)),
        class_logits.new_empty((images, most)),
        image_sizes.new_empty((images, most)),
        torch.empty_like(number),
    )
