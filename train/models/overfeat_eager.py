"""OverFeat's detections in PyTorch: the reference that artefacts are judged by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from regionrt.runtime.image import Canvas

from .dense import canvas_of as dense_canvas
from .dense import normalised
from .detections import padded, pairs, top
from .errors import ModelError
from .overfeat import Merging, Overfeat

MIN_DETECTION_PX = 1e-2  # as other detectors'


def canvas_of(module: Overfeat, size: Sequence[int] | None = None, dynamic: bool = False) -> Canvas:
    """The canvas for a module's own resize rule, or of another `size`. ModelError for a dynamic one."""
    if dynamic:
        raise ModelError("OverFeat's windows follow from the canvas: leave --dynamic out, or export once for each size")
    canvas = dense_canvas(module, size)
    module.layout((canvas.height, canvas.width))  # says which windows do not fit
    return canvas


def thresholds_of(module: Overfeat) -> dict[str, Any]:
    """What a module's detections are filtered by, under the names that a bundle's manifest gives them."""
    heads = module.heads
    return {
        "score": heads.score,
        "window_score": heads.window_score,
        "merge": heads.merge,
        "detections": heads.detections,
        "candidates": heads.candidates,
    }


@torch.no_grad()
def eager(
    module: Overfeat,
    images: Tensor,
    image_sizes: Tensor,
    *,
    candidates: int | None = None,
    stages: bool = True,
) -> dict[str, Tensor]:
    """Detections of a batch of canvases, and with `stages` what they are made of.

    images uint8 [N, H, W, 3], image_sizes int [N, 2]; the module in eval mode. Names and shapes are those of artefacts,
    and `class_logits` [N, Q, K+1], `box_edges` [N, Q, 4 or 4K], `windows` [Q, 4]. plugins/merge/reference.py says how
    boxes are merged; here pairs are kept in a matrix. candidates: no more than the module's own are merged.
    """
    if module.training:
        raise ValueError("eager needs module.eval()")
    x = normalised(module, images, image_sizes)
    logits, edges = (value.float() for value in module(x))
    windows = module.layout(x.shape[2:]).windows.to(x.device)
    heads = module.heads
    cap = heads.candidates if candidates is None else min(candidates, heads.candidates)
    found = [
        _of_image(heads, cap, scores, parts, windows, size)
        for scores, parts, size in zip(logits, edges, pairs(image_sizes), strict=True)
    ]
    boxes, sums, labels, overflow = (list(values) for values in zip(*found, strict=True))
    values = {
        "num_detections": torch.tensor([len(b) for b in boxes], dtype=torch.int32),
        "boxes": padded(boxes, heads.detections),
        "scores": padded(sums, heads.detections, -1),
        "labels": padded(labels, heads.detections, -1).to(torch.int32),
        "overflow": torch.tensor(overflow, dtype=torch.int32),
    }
    return values | {"class_logits": logits, "box_edges": edges, "windows": windows} if stages else values


def boxes_of(edges: Tensor, windows: Tensor) -> Tensor:
    """xyxy boxes [..., 4] in canvas px of edges [..., 4], parts of the sides of `windows` [..., 4]."""
    corner, far = windows.split(2, -1)
    return torch.cat([corner, corner], -1) + edges * torch.cat([far - corner] * 2, -1)


def _of_image(
    heads: Merging, cap: int, logits: Tensor, edges: Tensor, windows: Tensor, size: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor, int]:
    """Boxes, scores, labels by falling score, and how many candidates the cap dropped."""
    classes = logits.shape[1] - 1
    scores = logits.softmax(-1)[:, 1:].where(_in_image(windows, size)[:, None], 0).flatten()  # 0 is above no score
    above = torch.where(scores > heads.window_score)[0]
    overflow = max(len(above) - cap, 0)
    confidences, order = top(scores[above], cap)
    pair = above[order]
    window, label = pair // classes, pair % classes
    own = edges.unflatten(1, (-1, 4))
    boxes = boxes_of(own[window, 0 if own.shape[1] == 1 else label], windows[window])
    limits = boxes.new_tensor([size[1], size[0], size[1], size[0]])
    boxes = torch.minimum(boxes.clamp(min=0), limits)
    large = ((boxes[:, 2:] - boxes[:, :2]) >= MIN_DETECTION_PX).all(1)
    boxes, confidences, label = boxes[large], confidences[large], label[large] + 1
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    for one in label.unique():
        of_class = label == one
        merged, sums = merged_boxes(boxes[of_class], confidences[of_class], heads.merge)
        parts.append((merged, sums, torch.full((len(merged),), int(one), device=label.device)))
    if not parts:
        return boxes, confidences, label, overflow
    boxes, sums, label = (torch.cat(values) for values in zip(*parts, strict=True))
    scores = sums / (1 + sums)
    order = sums.sort(descending=True, stable=True)[1]
    order = order[scores[order] > heads.score][: heads.detections]
    return boxes[order], scores[order], label[order], overflow


def _in_image(windows: Tensor, size: tuple[int, int]) -> Tensor:
    """bool [Q]: windows with their centre in the valid part, of each scale its first row and column at least."""
    corner, far = windows.split(2, -1)
    return ((corner <= 0) | ((corner + far) / 2 < windows.new_tensor([size[1], size[0]]))).all(1)


def merged_boxes(boxes: Tensor, confidences: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """The nearest two of `boxes` [M, 4] become their mean by confidence until their score is above `threshold`.

    Returns the boxes that are left and their summed confidences. Each round renews one row of the scores of all pairs.
    """
    boxes, sums = boxes.clone(), confidences.clone()
    never = torch.inf
    scores = _match_scores(boxes, boxes)
    scores.fill_diagonal_(never)
    least, partner = scores.min(1) if len(boxes) else (sums, sums)
    alive = torch.ones(len(boxes), dtype=torch.bool, device=boxes.device)
    while len(boxes) and float(least.min()) <= threshold:
        i = int(least.argmin())
        i, j = sorted((i, int(partner[i])))
        boxes[i] = (boxes[i] * sums[i] + boxes[j] * sums[j]) / (sums[i] + sums[j])
        sums[i] += sums[j]
        alive[j] = False
        row = _match_scores(boxes[i : i + 1], boxes)[0]
        row[~alive] = never
        row[i] = never
        scores[i], scores[:, i] = row, row
        scores[j], scores[:, j] = never, never
        least, partner = scores.min(1)
    return boxes[alive], sums[alive]


def _match_scores(one: Tensor, other: Tensor) -> Tensor:
    """[A, B]: distance of the centres by the diagonal around both, plus 1 − IoU (as plugins/merge says)."""
    one, other = one[:, None], other[None]
    sides = (torch.minimum(one[..., 2:], other[..., 2:]) - torch.maximum(one[..., :2], other[..., :2])).clamp(min=0)
    shared = sides.prod(-1)
    joined = (one[..., 2:] - one[..., :2]).prod(-1) + (other[..., 2:] - other[..., :2]).prod(-1) - shared
    around = torch.maximum(one[..., 2:], other[..., 2:]) - torch.minimum(one[..., :2], other[..., :2])
    apart = (one[..., :2] + one[..., 2:]) - (other[..., :2] + other[..., 2:])
    return 0.5 * (apart.square().sum(-1) / around.square().sum(-1)).sqrt() + (1 - shared / joined)


def merging_of(thresholds: Mapping[str, Any]) -> Merging:
    """The way back from `thresholds_of`."""
    return Merging(
        float(thresholds["window_score"]),
        float(thresholds["merge"]),
        float(thresholds["score"]),
        int(thresholds["detections"]),
        int(thresholds["candidates"]),
    )
