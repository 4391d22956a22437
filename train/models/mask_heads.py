"""Mask R-CNN's ablations of its mask branch (arXiv:1703.06870, table 2): softmax masks (b), an MLP as mask head (e)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads, fastrcnn_loss, project_masks_on_boxes

MASK_SIDE = 28
"""Cells along each side of a mask."""

DEFAULT_LAYERS = {"fcn": (256, 256, 256, 256), "mlp": (1024, 1024)}
"""The paper's: four 3×3 convolutions before the upsampling, or two fully connected layers before that of the masks."""


def mask_layers(
    kind: str, channels: int, pooled_side: int, widths: Sequence[int], classes: int
) -> tuple[nn.Module, nn.Module]:
    """(head, predictor) for RoI features [R, channels, pooled_side, pooled_side]; together they give [R, classes, 28,
    28]. kind: a key of `DEFAULT_LAYERS`; of "fcn" `pooled_side` is half of the masks'."""
    if kind == "fcn":
        return MaskRCNNHeads(channels, widths, dilation=1), MaskRCNNPredictor(widths[-1], widths[-1], classes)
    layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    inputs = channels * pooled_side**2
    for number, width in enumerate(widths, start=1):
        layers[f"fc{number}"], layers[f"relu{number}"] = nn.Linear(inputs, width), nn.ReLU(inplace=True)
        inputs = width
    predictor = OrderedDict(
        logits=nn.Linear(inputs, classes * MASK_SIDE**2),
        maps=nn.Unflatten(1, (classes, MASK_SIDE, MASK_SIDE)),
    )
    return nn.Sequential(layers), nn.Sequential(predictor)


def masks_of(heads: nn.Module, logits: Tensor, labels: Tensor) -> Tensor:
    """Mask probabilities [R, M, M] of the class that each RoI has, from logits [R, K+1, M, M] and labels int64 [R]."""
    together = isinstance(heads, SoftmaxMaskHeads)
    values = logits.softmax(1) if together else logits
    of_class = values.gather(1, labels.reshape(-1, 1, 1, 1).expand(-1, 1, *values.shape[2:]))[:, 0].float()
    return of_class if together else of_class.sigmoid()


class SoftmaxMaskHeads(RoIHeads):
    """RoI heads whose masks are one multinomial choice for each pixel among all classes and the background, as FCNs
    have it, in place of a sigmoid for each class: of a RoI of class k the pixels in the object are of class k, the
    others of class 0."""

    @classmethod
    def like(cls, heads: RoIHeads) -> SoftmaxMaskHeads:
        """With the parts of torchvision's heads, and trained in the same way."""
        matcher, sampler = heads.proposal_matcher, heads.fg_bg_sampler
        return cls(
            heads.box_roi_pool, heads.box_head, heads.box_predictor, matcher.high_threshold, matcher.low_threshold,
            sampler.batch_size_per_image, sampler.positive_fraction, heads.box_coder.weights, heads.score_thresh,
            heads.nms_thresh, heads.detections_per_img, heads.mask_roi_pool, heads.mask_head, heads.mask_predictor,
        )  # fmt: skip

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: list[dict[str, Tensor]] | None = None,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """As torchvision's, but for the masks: (detections of each image, {}), in training ([], losses)."""
        if not self.training:
            return self._found(features, proposals, image_shapes), {}
        if targets is None:
            raise ValueError("expected targets in training mode, found none: give them, or call module.eval()")
        proposals, matched, labels, box_targets = self.select_training_samples(proposals, targets)
        logits, deltas = self.box_predictor(self.box_head(self.box_roi_pool(features, proposals, image_shapes)))
        of_classes, of_boxes = fastrcnn_loss(logits, deltas, labels, box_targets)
        positive = [each > 0 for each in labels]
        boxes, objects, classes = (
            [values[keep] for values, keep in zip(each, positive, strict=True)] for each in (proposals, matched, labels)
        )
        mask_logits = self._mask_logits(features, boxes, image_shapes)
        goals = [
            project_masks_on_boxes(target["masks"], of_image, which, mask_logits.shape[-1])
            for target, of_image, which in zip(targets, boxes, objects, strict=True)
        ]
        of_masks = multinomial_loss(mask_logits, torch.cat(goals), torch.cat(classes))
        return [], {"loss_classifier": of_classes, "loss_box_reg": of_boxes, "loss_mask": of_masks}

    def _found(
        self, features: dict[str, Tensor], proposals: list[Tensor], image_shapes: list[tuple[int, int]]
    ) -> list[dict[str, Tensor]]:
        logits, deltas = self.box_predictor(self.box_head(self.box_roi_pool(features, proposals, image_shapes)))
        boxes, scores, labels = self.postprocess_detections(logits, deltas, proposals, image_shapes)
        masks = masks_of(self, self._mask_logits(features, boxes, image_shapes), torch.cat(labels))
        parts: Any = zip(boxes, labels, scores, masks[:, None].split([len(b) for b in boxes]), strict=True)
        return [dict(zip(("boxes", "labels", "scores", "masks"), values, strict=True)) for values in parts]

    def _mask_logits(
        self, features: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]
    ) -> Tensor:
        return self.mask_predictor(self.mask_head(self.mask_roi_pool(features, boxes, image_shapes)))


def multinomial_loss(logits: Tensor, goals: Tensor, labels: Tensor) -> Tensor:
    """Mean over the pixels of the cross entropy of logits [R, K+1, M, M]; 0 where there is no RoI.

    goals: how much of each pixel belongs to the object, float [R, M, M], 0..1; the rest of it is background. labels:
    int64 [R], the classes.
    """
    if not len(labels):
        return logits.sum() * 0
    log_shares = F.log_softmax(logits, 1)
    of_class = log_shares[torch.arange(len(labels), device=labels.device), labels]
    return -(goals * of_class + (1 - goals) * log_shares[:, 0]).mean()
