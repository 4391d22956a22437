"""Training on proposals: which are sampled, what they are to become, and the loss of both (arXiv:1504.08083, 2.3)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import box_iou

from .dense import normalised
from .proposal_net import ProposalConfig, ProposalNet


def losses(
    module: ProposalNet, images: Tensor, image_sizes: Tensor, targets: list[dict[str, Tensor]]
) -> dict[str, Tensor]:
    """`loss_class`, log loss over K + 1 classes, and `loss_box`, smooth L1 of the foreground's deltas, weighted.

    Both are means over all sampled regions; where SVMs and ridge regression come later, the classes' alone. targets:
    per image `boxes` float [n, 4] (canvas px), `labels` int64 [n], `proposals` float [m, 4]. The objects' own boxes are
    proposals too. A batch without any costs nothing.
    """
    x = normalised(module, images, image_sizes)
    sampled = [_sampled({k: v.to(x.device) for k, v in target.items()}, module.config) for target in targets]
    counts = [len(rois) for rois, _, _ in sampled]
    most = max(max(counts), 1)
    rois = x.new_zeros(len(counts), most, 4)
    for n, (boxes, _, _) in enumerate(sampled):
        rois[n, : counts[n]] = boxes
    pooled = module.pool(module.features(x), rois, torch.tensor(counts, dtype=torch.int32, device=x.device))
    real = torch.arange(most, device=x.device) < torch.tensor(counts, device=x.device)[:, None]
    alone = module.config.classifier == "svm"
    if not real.any():
        # Of what learns, as crops and maps of a frozen backbone have no gradients; DDP misses any that gets none.
        zero = sum((p.sum() for p in module.parameters() if p.requires_grad), pooled.sum()) * 0
        return {"loss_class": zero} if alone else {"loss_class": zero, "loss_box": zero}
    logits, deltas = (value.float() for value in module.classify(pooled[real]))
    labels = torch.cat([labels for _, labels, _ in sampled])
    if alone:
        return {"loss_class": F.cross_entropy(logits, labels)}
    wanted = module.heads.box_coder.encode([objects for _, _, objects in sampled], [boxes for boxes, _, _ in sampled])
    foreground = torch.where(labels > 0)[0]
    own = deltas.unflatten(1, (-1, 4))[foreground, labels[foreground]]
    apart = F.smooth_l1_loss(own, torch.cat(wanted)[foreground], reduction="sum", beta=1.0)
    return {
        "loss_class": F.cross_entropy(logits, labels),
        "loss_box": module.config.box_weight * apart / len(labels),
    }


def _sampled(target: dict[str, Tensor], config: ProposalConfig) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes [R, 4], their labels [R] (0: background) and the object [R, 4] of each."""
    objects = target["boxes"]
    boxes = torch.cat([objects, target["proposals"].to(objects.dtype)])
    if len(objects):
        overlap, nearest = box_iou(boxes, objects).max(1)
    else:
        overlap, nearest = boxes.new_zeros(len(boxes)), torch.zeros(len(boxes), dtype=torch.long, device=boxes.device)
    low, high = config.background_iou if len(objects) else (0.0, 1.0)
    is_foreground = overlap >= config.foreground_iou
    is_background = (overlap < high) & ~is_foreground & (overlap >= low)
    most = round(config.rois_per_image * config.foreground)
    foreground = _some_of(is_foreground, most)
    background = _some_of(is_background, config.rois_per_image - len(foreground))
    chosen = torch.cat([foreground, background])
    labels = torch.zeros(len(chosen), dtype=torch.long, device=boxes.device)
    matched = boxes[chosen].clone()  # of the background: itself, which no loss reads
    if len(objects):
        labels[: len(foreground)] = target["labels"][nearest[foreground]]
        matched[: len(foreground)] = objects[nearest[foreground]]
    return boxes[chosen], labels, matched


def _some_of(mask: Tensor, most: int) -> Tensor:
    """At most so many of the places where `mask` holds, at random."""
    places = torch.where(mask)[0]
    return places[torch.randperm(len(places), device=places.device)[:most]]
