"""Faster and Mask R-CNN on the canvas: losses for training, and the eager reference that every artefact is judged by.

Works on any torchvision `FasterRCNN`/`MaskRCNN` (Ren et al., arXiv:1506.01497; He et al., arXiv:1703.06870), ours or
the user's. torchvision's `GeneralizedRCNNTransform` is bypassed: of it only `image_mean`, `image_std`, `min_size` and
`max_size` are read. Inputs are the canvas and the size of its valid part, as in every artefact.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import MultiScaleRoIAlign, clip_boxes_to_image, nms, remove_small_boxes

from regionrt.runtime.image import Canvas

from .detections import detections_of, padded, padded_detections, pairs, top
from .errors import ModelError
from .mask_heads import masks_of
from .memory_layout import takes_channels_first

MAX_CANDIDATES = 3840  # TensorRT's TopK takes no more
_PROBE_PX = 128


def stride_of(module: nn.Module) -> int:
    """Pixels per cell of the coarsest feature map that RoIs are pooled from: canvas sizes are multiples of it.

    torchvision's extra `pool` level feeds the RPN only and may be of odd size, as in torchvision itself.
    """
    training = {m: m.training for m in module.modules()}
    weight = next(module.parameters())
    try:
        module.eval()  # a probe must not touch the running statistics of BatchNorm
        with torch.no_grad():
            features = _features(module, weight.new_zeros(1, 3, _PROBE_PX, _PROBE_PX))
    finally:
        for m, mode in training.items():
            m.training = mode
    pooled = [f for name, f in features.items() if name in module.roi_heads.box_roi_pool.featmap_names]
    if not pooled:
        raise ModelError(
            f"the RoI pool reads the feature maps {module.roi_heads.box_roi_pool.featmap_names}, "
            f"the backbone gives {list(features)}: rename one of them"
        )
    return max(2 ** round(float(torch.tensor(_PROBE_PX / f.shape[-2]).log2())) for f in pooled)


def check_size(size: Sequence[int], stride: int) -> tuple[int, int]:
    """(height, width) of a canvas if both are positive multiples of `stride`, else ModelError."""
    height, width = (int(v) for v in size)
    if min(height, width) < stride or height % stride or width % stride:
        below = [max(v // stride, 1) * stride for v in (height, width)]
        above = [max(-(-v // stride), 1) * stride for v in (height, width)]
        nearest = " or ".join(dict.fromkeys(f"{h}x{w}" for h, w in (below, above)))
        raise ModelError(
            f"size {height}x{width} (height x width) is not a multiple of the stride {stride}: give {nearest}"
        )
    return height, width


def canvas_of(module: nn.Module, size: Sequence[int] | None = None, dynamic: bool = False) -> Canvas:
    """The canvas for a module's own resize rule.

    `size` is (height, width); without it the module's `canvas_size` (which `build_model` sets), and without that the
    landscape canvas that holds what the rule makes of any landscape photo. ModelError where it does not fit the stride.
    """
    stride = stride_of(module)
    min_size, max_size = int(module.transform.min_size[-1]), int(module.transform.max_size)
    if size is None:
        size = getattr(module, "canvas_size", None)
    if size is None:
        size = [-(-v // stride) * stride for v in (min_size, max_size)]
    height, width = check_size(size, stride)
    return Canvas(height, width, min_size=min_size, max_size=max_size, multiple=stride, dynamic=dynamic)


def thresholds_of(module: nn.Module) -> dict[str, float]:
    """What a module's detections are filtered by, under the names that a bundle's manifest gives them."""
    rpn, heads = module.rpn, module.roi_heads
    return {
        "score": float(heads.score_thresh),
        "nms": float(heads.nms_thresh),
        "detections": int(heads.detections_per_img),
        "proposals": int(rpn._post_nms_top_n["testing"]),
        "proposal_nms": float(rpn.nms_thresh),
        "candidates": MAX_CANDIDATES,
    }


def normalise(
    images: Tensor,
    image_sizes: Tensor,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype = torch.float32,
    *,
    channels_first: bool = False,
) -> Tensor:
    """Canvas uint8 [N, H, W, 3] and valid sizes int [N, 2] -> [N, 3, H, W] of `dtype`, in memory channels last or not.

    (value / 255 − mean) / std, then zero outside the valid part: zero after normalisation is what torchvision pads
    with.
    """
    x = images.to(dtype).permute(0, 3, 1, 2)  # at once: engines are slow where the last axis has three numbers
    x = (x.contiguous() if channels_first else x) / 255
    x = (x - x.new_tensor(list(mean))[:, None, None]) / x.new_tensor(list(std))[:, None, None]
    rows = torch.arange(x.shape[2], device=x.device)[None, :, None]
    columns = torch.arange(x.shape[3], device=x.device)[None, None, :]
    sizes = image_sizes.to(x.device)
    valid = (rows < sizes[:, 0, None, None]) & (columns < sizes[:, 1, None, None])  # [N, H, W]
    return x * valid[:, None].to(dtype)


def losses(
    module: nn.Module, images: Tensor, image_sizes: Tensor, targets: list[dict[str, Tensor]]
) -> dict[str, Tensor]:
    """The training losses of a batch of canvases, by name (`loss_…`), to be summed.

    targets: per image `boxes` float [n, 4] (canvas px, xyxy), `labels` int64 [n] and for Mask R-CNN `masks` uint8 [n,
    H, W]. The module must be in training mode. Under autocast the box arithmetic stays fp32.
    """
    if not module.training:
        raise ValueError("losses needs module.train(): torchvision computes none in eval mode")
    x = _normalised(module, images, image_sizes)
    shapes = [(x.shape[2], x.shape[3])] * len(x)
    _forget_scales(module)
    with _fp32_boxes(module):
        features = _features(module, x)
        proposals, rpn_losses = module.rpn(ImageList(x, pairs(image_sizes)), features, targets)
        # In training mode RoIHeads reads the shapes only to infer the scale of each feature map: that is the canvas's.
        _, roi_losses = module.roi_heads(features, proposals, shapes, targets)
    return {**rpn_losses, **roi_losses}


@torch.no_grad()
def eager(
    module: nn.Module, images: Tensor, image_sizes: Tensor, *, candidates: int = MAX_CANDIDATES, stages: bool = True
) -> dict[str, Tensor]:
    """Detections of a batch of canvases and every value on the way, padded to fixed sizes: what artefacts must match.

    images uint8 [N, H, W, 3], image_sizes int [N, 2]; the module in eval mode, its own thresholds. The semantics are
    torchvision's `RegionProposalNetwork.filter_proposals` and `RoIHeads.postprocess_detections`, except that NMS is
    exact per level and per class (torchvision shifts boxes by class, which rounds), that ties keep the lower index
    first, and that at most `candidates` (RoI, class) pairs with the highest scores enter the final NMS; `overflow`
    int32 [N] counts the pairs above the score threshold that this cap dropped.

    Names and shapes, with P proposals, D detections, K classes, A_l anchors of level l:
    `features.l`, `objectness.l` [N, A_l] (logits), `rpn_deltas.l` [N, A_l, 4], `anchors.l` [A_l, 4], `rois` [N, P, 4],
    `roi_scores` [N, P], `roi_counts` [N], `roi_features` [N, P, C, h, w], `class_logits` [N, P, K+1], `box_deltas`
    [N, P, 4(K+1)], `num_detections` [N], `boxes` [N, D, 4], `scores` [N, D], `labels` [N, D], `roi_index` [N, D],
    `overflow` [N]; Mask R-CNN also `mask_roi_features` [N, D, C, m, m] and `masks` [N, D, M, M]. Padding is zero (for
    class logits and box deltas: what the head gives on zero features), but −1 in scores, labels and `roi_index`.
    `stages=False` returns only what artefacts return.
    """
    if module.training:
        raise ValueError("eager needs module.eval()")
    sizes = pairs(image_sizes)
    x = _normalised(module, images, image_sizes)
    shapes = [(x.shape[2], x.shape[3])] * len(x)
    _forget_scales(module)
    heads = module.roi_heads
    with _fp32_boxes(module):
        features = _features(module, x)
        rpn_values = _rpn(module, x, features)
        rois, roi_scores = _proposals(module, rpn_values, sizes)
        pooled = heads.box_roi_pool(features, rois, shapes)  # [ΣP, C, h, w]
        # One zero row more shows what the head gives on padding, without running it on all of the padding.
        with_zero = torch.cat([pooled, pooled.new_zeros(1, *pooled.shape[1:])])
        class_logits, box_deltas = heads.box_predictor(heads.box_head(with_zero))
        counts = [len(r) for r in rois]
        found = [
            detections_of(heads, logits, deltas, boxes, size, candidates)
            for logits, deltas, boxes, size in zip(
                class_logits[:-1].split(counts), box_deltas[:-1].split(counts), rois, sizes, strict=True
            )
        ]
        limit = heads.detections_per_img
        boxes, _, labels, _, _ = (list(v) for v in zip(*found, strict=True))
        values = padded_detections(found, limit)
        roi_index = values.pop("roi_index")
        if heads.has_mask():
            mask_pooled = heads.mask_roi_pool(features, boxes, shapes)  # [ΣD, C, m, m]
            logits = heads.mask_predictor(heads.mask_head(mask_pooled))  # [ΣD, K+1, M, M]
            masks = masks_of(heads, logits, torch.cat(labels))
            per_image = [len(b) for b in boxes]
            values["masks"] = padded(masks.split(per_image), limit)
    if not stages:
        return values
    slots = module.rpn._post_nms_top_n["testing"]
    values |= rpn_values | {f"features.{i}": f for i, f in enumerate(features.values())}
    values |= {
        "rois": padded(rois, slots),
        "roi_scores": padded(roi_scores, slots),
        "roi_counts": x.new_tensor(counts, dtype=torch.int32),
        "roi_features": padded(pooled.split(counts), slots),
        "class_logits": padded(class_logits[:-1].split(counts), slots, class_logits[-1]),
        "box_deltas": padded(box_deltas[:-1].split(counts), slots, box_deltas[-1]),
        "roi_index": roi_index,
    }
    if heads.has_mask():
        values["mask_roi_features"] = padded(mask_pooled.split(per_image), limit)
    return values


def _normalised(module: nn.Module, images: Tensor, image_sizes: Tensor) -> Tensor:
    weight = next(module.parameters())
    transform = module.transform
    return normalise(
        images.to(weight.device), image_sizes, transform.image_mean, transform.image_std, weight.dtype,
        channels_first=takes_channels_first(module),
    )  # fmt: skip


def _features(module: nn.Module, x: Tensor) -> OrderedDict[str, Tensor]:
    features = module.backbone(x)
    return OrderedDict([("0", features)]) if isinstance(features, Tensor) else features


def _forget_scales(module: nn.Module) -> None:
    """Have the RoI pools infer their scales anew from the canvas.

    They infer them at their first call, from the largest *valid* size in that batch if torchvision's own forward ran
    it, and a batch with much padding then fixes scales that are wrong by a factor of two.
    """
    for pool in (module.roi_heads.box_roi_pool, module.roi_heads.mask_roi_pool):
        if isinstance(pool, MultiScaleRoIAlign):
            pool.scales = pool.map_levels = None


@contextmanager
def _fp32_boxes(module: nn.Module) -> Iterator[None]:
    """Heads give fp32 under autocast too: torchvision decodes in the dtype of the deltas; bf16 loses whole pixels."""

    def widen(_module: nn.Module, _inputs: object, outputs: object) -> object:
        if isinstance(outputs, Tensor):
            return outputs.float() if outputs.dtype in (torch.bfloat16, torch.float16) else outputs
        return type(outputs)(widen(_module, _inputs, o) for o in outputs)  # type: ignore[attr-defined, call-arg]

    heads = (module.rpn.head, module.roi_heads.box_predictor, module.roi_heads.mask_predictor)
    hooks = [head.register_forward_hook(widen) for head in heads if head is not None]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _rpn(module: nn.Module, x: Tensor, features: OrderedDict[str, Tensor]) -> dict[str, Tensor]:
    maps = list(features.values())
    objectness, deltas = module.rpn.head(maps)  # per level [N, A, H, W] and [N, 4A, H, W]
    # Anchors are the same for each image and are laid over the whole canvas.
    (anchors,) = module.rpn.anchor_generator(ImageList(x, [(x.shape[2], x.shape[3])]), maps)
    anchors = anchors.split([o[0].numel() for o in objectness])
    values: dict[str, Tensor] = {}
    for i, (o, d, a) in enumerate(zip(objectness, deltas, anchors, strict=True)):
        n, per_cell, height, width = o.shape
        values[f"objectness.{i}"] = o.permute(0, 2, 3, 1).reshape(n, -1)
        values[f"rpn_deltas.{i}"] = d.reshape(n, per_cell, 4, height, width).permute(0, 3, 4, 1, 2).reshape(n, -1, 4)
        values[f"anchors.{i}"] = a.to(d.dtype)
    return values


def _proposals(
    module: nn.Module, values: dict[str, Tensor], sizes: list[tuple[int, int]]
) -> tuple[list[Tensor], list[Tensor]]:
    """Boxes [P_i, 4] and objectness probabilities [P_i] per image, by falling score (filter_proposals)."""
    rpn = module.rpn
    levels = sum(name.startswith("objectness.") for name in values)
    all_boxes, all_scores = [], []
    for i, size in enumerate(sizes):
        boxes_of_level, scores_of_level = [], []
        for level in range(levels):
            logits, best = top(values[f"objectness.{level}"][i], rpn._pre_nms_top_n["testing"])
            deltas, anchors = values[f"rpn_deltas.{level}"][i, best], values[f"anchors.{level}"][best]
            boxes = clip_boxes_to_image(rpn.box_coder.decode(deltas, [anchors])[:, 0], size)
            scores = logits.sigmoid()
            keep = remove_small_boxes(boxes, rpn.min_size)
            keep = keep[scores[keep] >= rpn.score_thresh]
            keep = keep[nms(boxes[keep], scores[keep], rpn.nms_thresh)]
            boxes_of_level.append(boxes[keep])
            scores_of_level.append(scores[keep])
        scores, order = top(torch.cat(scores_of_level), rpn._post_nms_top_n["testing"])
        all_boxes.append(torch.cat(boxes_of_level)[order])
        all_scores.append(scores)
    return all_boxes, all_scores
