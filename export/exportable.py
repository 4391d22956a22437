"""A torchvision detector rewritten as one tensor program in which our ops are the only region-dependent steps."""

import math
from collections import OrderedDict

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.ops import MultiScaleRoIAlign

from regionrt.plugins.detections.torch_op import detections
from regionrt.plugins.proposals.torch_op import proposals
from regionrt.plugins.roi_align.torch_op import roi_align
from regionrt.train.models.region import normalise

from .errors import ExportError

MIN_PROPOSAL_PX, MIN_DETECTION_PX = 1e-3, 1e-2  # torchvision's RegionProposalNetwork and RoIHeads


class ExportableDetector(nn.Module):
    """`module` (torchvision FasterRCNN or MaskRCNN, eval mode) as images, image_sizes -> fixed-size outputs.

    Outputs, in order: num_detections int32 [N], boxes float32 [N, D, 4] (canvas px), scores [N, D], labels int32
    [N, D], overflow int32 [N], and for Mask R-CNN masks [N, D, M, M]. Raises ExportError for a module whose parts this
    program does not cover, naming the part.
    """

    def __init__(self, module: nn.Module, height: int, width: int, *, candidates: int, dynamic: bool):
        super().__init__()
        check_supported(module)
        self.module = module
        self.candidates = candidates
        self.dynamic = dynamic
        with torch.no_grad():
            features = self._features(torch.zeros(1, 3, height, width))
        self.box_pool = _PoolSettings(module.roi_heads.box_roi_pool, features, height)
        self.mask_pool = None
        if module.roi_heads.has_mask():
            self.mask_pool = _PoolSettings(module.roi_heads.mask_roi_pool, features, height)
        if not dynamic:
            for level, anchors in enumerate(self._anchors(height, width, list(features.values()))):
                self.register_buffer(f"anchors_{level}", anchors, persistent=False)

    def forward(self, images: Tensor, image_sizes: Tensor) -> tuple[Tensor, ...]:
        """images uint8 [N, H, W, 3] (the canvas), image_sizes int32 [N, 2] (its valid part)."""
        module, heads = self.module, self.module.roi_heads
        transform = module.transform
        x = normalise(images, image_sizes, transform.image_mean, transform.image_std)  # [N, 3, H, W]
        features = self._features(x)
        rois, _, counts = self._proposals(images, image_sizes, list(features.values()))

        pooled = self.box_pool.apply(features, rois, counts)  # [N, P, C, h, w]
        logits, deltas = heads.box_predictor(heads.box_head(pooled.flatten(0, 1)))
        rows = rois.shape[1]
        number, boxes, scores, labels, _, overflow = detections(
            logits.unflatten(0, (-1, rows)).float(),
            deltas.unflatten(0, (-1, rows)).float(),
            rois,
            counts,
            image_sizes,
            heads.score_thresh,
            heads.nms_thresh,
            heads.detections_per_img,
            self.candidates,
            MIN_DETECTION_PX,
            list(heads.box_coder.weights),
            deltas.shape[1] == 4 and logits.shape[1] > 1,
        )
        outputs = (number, boxes, scores, labels, overflow)
        if self.mask_pool is None:
            return outputs
        pooled = self.mask_pool.apply(features, boxes, number)
        mask_logits = heads.mask_predictor(heads.mask_head(pooled.flatten(0, 1)))  # [N·D, K+1, M, M]
        column = labels.clamp(min=0).long().reshape(-1, 1, 1, 1).expand(-1, 1, *mask_logits.shape[2:])
        masks = mask_logits.gather(1, column)[:, 0].unflatten(0, (-1, labels.shape[1])).float()
        return (*outputs, torch.where((labels > 0)[..., None, None], masks.sigmoid(), 0.0))

    def _features(self, x: Tensor) -> OrderedDict[str, Tensor]:
        features = self.module.backbone(x)
        return OrderedDict([("0", features)]) if isinstance(features, Tensor) else features

    def _proposals(self, images: Tensor, image_sizes: Tensor, features: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        rpn = self.module.rpn
        objectness, deltas = rpn.head(features)  # per level [N, A, H, W] and [N, 4A, H, W]
        if self.dynamic:
            anchors = self._anchors(images.shape[1], images.shape[2], features)
        else:
            anchors = [getattr(self, f"anchors_{level}") for level in range(len(features))]
        return proposals(
            [o.permute(0, 2, 3, 1).flatten(1).float() for o in objectness],
            [d.permute(0, 2, 3, 1).reshape(d.shape[0], -1, 4).float() for d in deltas],
            anchors,
            image_sizes,
            rpn._pre_nms_top_n["testing"],
            rpn._post_nms_top_n["testing"],
            rpn.nms_thresh,
            rpn.score_thresh,
            MIN_PROPOSAL_PX,
            list(rpn.box_coder.weights),
        )

    def _anchors(self, height: int, width: int, features: list[Tensor]) -> list[Tensor]:
        """Anchors of each level [H·W·A, 4], laid out as by torchvision's AnchorGenerator, strides rounded down too."""
        anchors = []
        for cell, feature in zip(self.module.rpn.anchor_generator.cell_anchors, features, strict=True):
            rows, columns = feature.shape[-2:]
            y = torch.arange(rows, dtype=torch.int32) * (height // rows)
            x = torch.arange(columns, dtype=torch.int32) * (width // columns)
            y, x = torch.meshgrid(y.float(), x.float(), indexing="ij")
            shifts = torch.stack([x, y, x, y], dim=-1).reshape(-1, 1, 4)
            anchors.append((shifts + cell.float()[None]).reshape(-1, 4))
        return anchors


class _PoolSettings:
    """What a MultiScaleRoIAlign does, as arguments of our op."""

    def __init__(self, pool: MultiScaleRoIAlign, features: OrderedDict[str, Tensor], height: int):
        self.names = [name for name in features if name in pool.featmap_names]
        if not self.names:
            raise ExportError(
                f"the RoI pool reads the feature maps {pool.featmap_names}, the backbone gives {list(features)}: "
                "name one of the backbone's"
            )
        # As MultiScaleRoIAlign infers them, but from the canvas and not from the valid part of one batch.
        self.scales = [2.0 ** round(math.log2(features[name].shape[-2] / height)) for name in self.names]
        self.size = pool.output_size
        self.sampling_ratio = pool.sampling_ratio
        self.canonical_scale, self.canonical_level = float(pool.canonical_scale), pool.canonical_level

    def apply(self, features: OrderedDict[str, Tensor], rois: Tensor, counts: Tensor) -> Tensor:
        return roi_align(
            [features[name] for name in self.names],
            rois,
            counts,
            self.scales,
            *self.size,
            self.sampling_ratio,
            False,
            "avg",
            self.canonical_scale,
            self.canonical_level,
        )


def check_supported(module: nn.Module) -> None:
    """ExportError naming the first part that is not torchvision's own and that the program would silently ignore."""
    if not isinstance(module, FasterRCNN):
        raise ExportError(
            f"expected torchvision's FasterRCNN or MaskRCNN, found {type(module).__name__}: "
            "pass the detector itself, not a wrapper around it"
        )
    if module.training:
        raise ExportError("expected the module in evaluation mode, found it in training mode: call module.eval() first")
    heads = module.roi_heads
    pools = [heads.box_roi_pool] + ([heads.mask_roi_pool] if heads.has_mask() else [])
    for pool in pools:
        if not isinstance(pool, MultiScaleRoIAlign):
            raise ExportError(f"expected a MultiScaleRoIAlign as RoI pool, found {type(pool).__name__}")
    if heads.has_keypoint():
        raise ExportError("keypoint heads are not covered: export the detector without its keypoint branch")
