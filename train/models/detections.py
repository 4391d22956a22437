"""From class logits and box deltas to detections, and rows padded to fixed sizes: what all detectors end with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import clip_boxes_to_image, nms, remove_small_boxes

_MIN_DETECTION_PX = 1e-2  # RoIHeads.postprocess_detections


def detections_of(
    heads: Any, logits: Tensor, deltas: Tensor, rois: Tensor, size: tuple[int, int], candidates: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, int]:
    """Boxes, scores, labels, RoI indices and overflow of one image, by falling score (postprocess_detections).

    heads: `box_coder`, `score_thresh`, `nms_thresh` and `detections_per_img`, as torchvision's RoIHeads has them.
    """
    classes = logits.shape[1]
    boxes = clip_boxes_to_image(heads.box_coder.decode(deltas, [rois]).reshape(len(rois), classes, 4), size)
    scores = logits.softmax(-1)[:, 1:].flatten()  # [P·K], RoI by RoI
    above = torch.where(scores > heads.score_thresh)[0]
    overflow = max(len(above) - candidates, 0)
    scores, order = top(scores[above], candidates)
    pair = above[order]
    roi_index = pair // (classes - 1)
    labels = pair % (classes - 1) + 1
    boxes = boxes[roi_index, labels]
    big = remove_small_boxes(boxes, _MIN_DETECTION_PX)
    kept = []
    for label in labels[big].unique():
        of_class = big[labels[big] == label]
        kept.append(of_class[nms(boxes[of_class], scores[of_class], heads.nms_thresh)])
    keep = torch.cat(kept).sort()[0] if kept else big[:0]  # candidates are in the order of falling scores
    keep = keep[: heads.detections_per_img]
    return boxes[keep], scores[keep], labels[keep], roi_index[keep], overflow


def padded_detections(found: Sequence[tuple[Tensor, Tensor, Tensor, Tensor, int]], limit: int) -> dict[str, Tensor]:
    """What `detections_of` gives for each image, as the outputs of artefacts are, and `roi_index`."""
    boxes, scores, labels, roi_index, overflow = (list(v) for v in zip(*found, strict=True))
    whole: dict[str, Any] = {"dtype": torch.int32, "device": boxes[0].device}
    return {
        "num_detections": torch.tensor([len(b) for b in boxes], **whole),
        "boxes": padded(boxes, limit),
        "scores": padded(scores, limit, -1),
        "labels": padded(labels, limit, -1).to(torch.int32),
        "overflow": torch.tensor(overflow, **whole),
        "roi_index": padded(roi_index, limit, -1).to(torch.int32),
    }


def top(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of a vector, falling, equal ones by index as ONNX's TopK has it (torch.topk leaves that open)."""
    ordered, index = values.sort(descending=True, stable=True)
    return ordered[:k], index[:k]


def padded(rows: Sequence[Tensor], slots: int, value: float | Tensor = 0) -> Tensor:
    """One tensor [n_i, …] per image -> [N, slots, …], unused rows filled with `value` (a number, or one row)."""
    shape = (len(rows), slots, *rows[0].shape[1:])
    if isinstance(value, Tensor):
        padded = value.expand(shape).clone()
    else:
        padded = rows[0].new_full(shape, value)
    for target, source in zip(padded, rows, strict=True):
        target[: len(source)] = source
    return padded


def pairs(image_sizes: Tensor) -> list[tuple[int, int]]:
    """(height, width) of each image."""
    return [(int(h), int(w)) for h, w in image_sizes.tolist()]
