"""torch.ops.regionrt.nms: the op as PyTorch sees it (eager by the reference, fake tensors for export)."""

import torch
from torch import Tensor

from . import reference


@torch.library.custom_op("regionrt::nms", mutates_args=())
def nms(boxes: Tensor, classes: Tensor, iou_threshold: float, num_classes: int) -> Tensor:
    """keep bool [N, Q] for `boxes` float32 [N, Q, 4], best first, and `classes` int32 [N, Q] in -1..num_classes-1."""
    keep = reference.nms(boxes.cpu().numpy(), classes.cpu().numpy(), iou_threshold=iou_threshold)
    return torch.from_numpy(keep).to(boxes.device)


@nms.register_fake
def _(boxes, classes, iou_threshold, num_classes):
    return boxes.new_empty(boxes.shape[:2], dtype=torch.bool)
