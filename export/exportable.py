"""A torchvision detector rewritten as one tensor program in which our ops are the only region-dependent steps."""

import math
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import MultiScaleRoIAlign

from regionrt.plugins.boxes import MAX_LOG_RATIO
from regionrt.plugins.detections.torch_op import detections
from regionrt.plugins.proposals.torch_op import proposals
from regionrt.plugins.roi_align.reference import level_thresholds
from regionrt.plugins.roi_align.torch_op import roi_align
from regionrt.plugins.roi_pool.torch_op import roi_pool
from regionrt.train.models.mask_heads import SoftmaxMaskHeads, masks_of
from regionrt.train.models.region import normalise
from regionrt.train.models.region_pool import RegionPool

from .errors import ExportError

OUTPUTS = ("num_detections", "boxes", "scores", "labels", "overflow", "masks")
MIN_DETECTION_PX = 1e-2  # torchvision's RoIHeads.postprocess_detections


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
        self.outputs = OUTPUTS if module.roi_heads.has_mask() else OUTPUTS[:-1]
        with torch.no_grad():
            features = self._features(torch.zeros(1, 3, height, width))
        self.box_pool = _PoolSettings(module.roi_heads.box_roi_pool, features, height)
        self.mask_pool = None
        if module.roi_heads.has_mask():
            self.mask_pool = _PoolSettings(module.roi_heads.mask_roi_pool, features, height)
        self.pooled_levels = [pool.levels for pool in (self.box_pool, self.mask_pool) if pool is not None]
        if not dynamic:
            for level, anchors in enumerate(self._anchors(height, width, list(features.values()))):
                self.register_buffer(f"anchors_{level}", anchors, persistent=False)

    def forward(self, images: Tensor, image_sizes: Tensor) -> tuple[Tensor, ...]:
        """images uint8 [N, H, W, 3] (the canvas), image_sizes int32 [N, 2] (its valid part)."""
        module, heads = self.module, self.module.roi_heads
        transform = module.transform
        # channels last in memory, a mean over a map would be exported with index arithmetic for its strides
        x = normalise(images, image_sizes, transform.image_mean, transform.image_std, channels_first=True)
        features = self._features(x)
        rois, _, counts = self._proposals(images, image_sizes, list(features.values()))

        pooled = self.box_pool.apply(features, rois, counts)  # [N, P, C, h, w]
        logits, deltas = heads.box_predictor(heads.box_head(pooled.flatten(0, 1)))
        outputs = detected(heads, logits, deltas, rois, counts, image_sizes, self.candidates)
        number, boxes, _, labels, _ = outputs
        if self.mask_pool is None:
            return outputs
        pooled = self.mask_pool.apply(features, boxes, number)
        mask_logits = heads.mask_predictor(heads.mask_head(pooled.flatten(0, 1)))  # [N·D, K+1, M, M]
        masks = masks_of(heads, mask_logits, labels.clamp(min=0).long().flatten()).unflatten(0, (-1, labels.shape[1]))
        return (*outputs, torch.where((labels > 0)[..., None, None], masks, 0.0))

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
            rpn.min_size,
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


def detected(
    heads: Any, logits: Tensor, deltas: Tensor, rois: Tensor, counts: Tensor, image_sizes: Tensor, candidates: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """A detector's outputs without masks, of logits [N·P, K+1] and deltas [N·P, 4(K+1)] of `rois` [N, P, 4].

    heads: has the thresholds and the box coder, under torchvision's names. One box for all classes where the deltas
    are [N·P, 4].
    """
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
        candidates,
        MIN_DETECTION_PX,
        list(heads.box_coder.weights),
        deltas.shape[1] == 4 and logits.shape[1] > 1,
    )
    return number, boxes, scores, labels, overflow


class _PoolSettings:
    """What a MultiScaleRoIAlign or RegionPool does, as arguments of our ops."""

    def __init__(self, pool: MultiScaleRoIAlign, features: OrderedDict[str, Tensor], height: int):
        self.names = [name for name in features if name in pool.featmap_names]
        self.levels = [level for level, name in enumerate(features) if name in self.names]  # of all the backbone's maps
        if not self.names:
            raise ExportError(
                f"the RoI pool reads the feature maps {pool.featmap_names}, the backbone gives {list(features)}: "
                "name one of the backbone's"
            )
        # As MultiScaleRoIAlign infers them, but from the canvas and not from the valid part of one batch.
        self.scales = [2.0 ** round(math.log2(features[name].shape[-2] / height)) for name in self.names]
        self.size = pool.output_size
        self.kind = pool.kind if isinstance(pool, RegionPool) else "align"
        self.sampling_ratio = pool.sampling_ratio
        self.canonical_scale, self.canonical_level = float(pool.canonical_scale), pool.canonical_level
        try:
            level_thresholds(self.scales, self.canonical_scale, self.canonical_level)
        except ValueError as error:
            raise ExportError(f"the RoI pool reads the feature maps {self.names}: {error}") from error

    def apply(self, features: OrderedDict[str, Tensor], rois: Tensor, counts: Tensor) -> Tensor:
        maps = [features[name] for name in self.names]
        if self.kind == "max":
            return roi_pool(maps[0], rois, counts, self.scales[0], *self.size)
        return roi_align(
            maps,
            rois,
            counts,
            self.scales,
            *self.size,
            self.sampling_ratio,
            False,
            "max" if self.kind == "align_max" else "avg",
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
    if module.roi_heads.has_keypoint():
        raise ExportError("keypoint heads are not covered: export the detector without its keypoint branch")
    for name, part, expected, methods in _rewritten_parts(module):
        if not isinstance(part, expected):
            raise ExportError(f"expected a {expected.__name__} as {name}, found {type(part).__name__}")
        own = [m for m in methods if getattr(type(part), m) is not getattr(expected, m) or m in vars(part)]
        if own:
            raise ExportError(
                f"{name} ({type(part).__name__}) overrides {', '.join(own)}, which the export would ignore: "
                f"it computes what {expected.__name__} does"
            )
    for name, coder in (("rpn.box_coder", module.rpn.box_coder), ("roi_heads.box_coder", module.roi_heads.box_coder)):
        if coder.bbox_xform_clip != MAX_LOG_RATIO:
            raise ExportError(
                f"expected {name}.bbox_xform_clip to be torchvision's log(1000/16), found {coder.bbox_xform_clip:.4g}"
            )
    transform = module.transform
    if transform.fixed_size is not None or transform._skip_resize:
        raise ExportError(
            "expected images to be resized by min_size and max_size, found a transform with "
            f"{'_skip_resize' if transform._skip_resize else 'fixed_size'}: build the detector without it"
        )
    types = {p.dtype for p in module.parameters() if p.is_floating_point()} - {torch.float32}
    if types:
        raise ExportError(
            f"expected weights in float32, found {', '.join(sorted(map(str, types)))}: call module.float() first "
            "(--precision fp16 is made from float32)"
        )


def _rewritten_parts(module: FasterRCNN) -> Iterator[tuple[str, object, type, tuple[str, ...]]]:
    """Parts whose code `ExportableDetector` does not call but rewrites: name, object, class, the methods rewritten."""
    rpn, heads = module.rpn, module.roi_heads
    decode = ("decode", "decode_single")
    yield "the detector", module, FasterRCNN, ("forward",)
    yield "transform", module.transform, GeneralizedRCNNTransform, ("forward", "normalize", "resize", "batch_images")
    yield "rpn", rpn, RegionProposalNetwork, ("forward", "filter_proposals")
    yield "rpn.anchor_generator", rpn.anchor_generator, AnchorGenerator, ("forward", "grid_anchors")
    yield "rpn.box_coder", rpn.box_coder, BoxCoder, decode
    kind = SoftmaxMaskHeads if isinstance(heads, SoftmaxMaskHeads) else RoIHeads
    yield "roi_heads", heads, kind, ("forward", "postprocess_detections")
    yield "roi_heads.box_coder", heads.box_coder, BoxCoder, decode
    for name in ("box_roi_pool", "mask_roi_pool")[: 2 if heads.has_mask() else 1]:
        pool = getattr(heads, name)
        expected = RegionPool if isinstance(pool, RegionPool) else MultiScaleRoIAlign
        yield f"the RoI pool roi_heads.{name}", pool, expected, ("forward",)
