"""Tiny nets and canvases, with which tests take seconds."""

from __future__ import annotations

import torch

from regionrt.train.models import build_model

LABELS = ("__background__", "disc", "square")
TINY = {"size": [96, 128], "representation": 32, "mask_layers": [16, 16], "rois_per_image": 32, "proposals": 200}


def tiny(name: str = "faster_rcnn", seed: int = 0, **config):
    """A small net whose random weights give many detections with scores far from ties."""
    torch.manual_seed(seed)
    module = build_model(name, TINY | config, LABELS)
    with torch.no_grad():
        predictor = module.roi_heads.box_predictor
        predictor.cls_score.weight.mul_(20)
        predictor.bbox_pred.weight.mul_(5)
        module.rpn.head.cls_logits.weight.mul_(20)
        module.rpn.head.bbox_pred.weight.mul_(10)
    return module


def canvases(sizes: list[tuple[int, int]], height: int = 96, width: int = 128, seed: int = 0):
    """Noise photos at the top left of zero canvases: uint8 [N, H, W, 3] and int32 [N, 2]."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.zeros(len(sizes), height, width, 3, dtype=torch.uint8)
    for image, (h, w) in zip(images, sizes, strict=True):
        coarse = torch.randint(0, 256, (1, 3, 6, 8), generator=generator).float()
        smooth = torch.nn.functional.interpolate(coarse, (h, w), mode="bilinear")[0].permute(1, 2, 0)
        noise = torch.randint(-20, 21, (h, w, 3), generator=generator)
        image[:h, :w] = (smooth + noise).clamp(0, 255).to(torch.uint8)
    return images, torch.tensor(sizes, dtype=torch.int32)


def targets(count: int, masks: bool = False, height: int = 96, width: int = 128):
    """Two boxes per image, as training wants them."""
    boxes = torch.tensor([[10.0, 12, 50, 60], [40, 30, 90, 70]])
    found = []
    for _ in range(count):
        target = {"boxes": boxes.clone(), "labels": torch.tensor([1, 2])}
        if masks:
            target["masks"] = torch.zeros(2, height, width, dtype=torch.uint8)
            for mask, (left, top, right, bottom) in zip(target["masks"], boxes.int().tolist(), strict=True):
                mask[top:bottom, left:right] = 1
        found.append(target)
    return found
