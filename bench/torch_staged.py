"""A torchvision detector in stages: dense ones run by torch, our kernels between them, on a GPU in one CUDA graph.

It shows what kernels and graph are worth where no engine library is: it is no engine. Sizes are fixed, counts stay on
the GPU, nothing waits for it. Stages, their order and the values between them are those of `train.models.region.eager`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList

from regionrt.train.models.mask_heads import masks_of
from regionrt.train.models.region import MAX_CANDIDATES
from regionrt.train.models.region_pool import RegionPool

from .errors import BenchError
from .fused_layers import fuse
from .torch_kernels import TorchKernels, detection_buffers, proposal_buffers


@dataclass(frozen=True)
class DenseForm:
    """How torch runs the dense stages. layers: "eager" (the module's own), "folded" (norms in the convolutions) or
    "fused" (and ReLU and residual sums in cuDNN's kernels)."""

    dtype: torch.dtype = torch.float16
    layers: str = "fused"

    def __post_init__(self) -> None:
        if self.layers not in ("eager", "folded", "fused"):
            raise ValueError(f"layers {self.layers!r}: choose eager, folded or fused")


class TorchStaged:
    """images uint8 [N, H, W, 3] and image_sizes int32 [N, 2] are inputs and stay where they are; `run` puts all stages
    on torch's current stream and leaves `found` and, for Mask R-CNN, `masks` float32 [N, D, M, M] (probabilities).

    module: Faster or Mask R-CNN of torchvision's parts, in eval mode; a copy of it is taken. BenchError for another.
    candidates: (RoI, class) pairs per image that enter the last NMS at most.
    """

    def __init__(
        self,
        module: nn.Module,
        kernels: TorchKernels,
        batch: int,
        size: tuple[int, int],
        form: DenseForm,
        candidates: int = MAX_CANDIDATES,
    ) -> None:
        heads = module.roi_heads
        if not isinstance(heads.box_head, TwoMLPHead) or not isinstance(heads.box_predictor, FastRCNNPredictor):
            raise BenchError("expected a box head of two fully connected layers (TwoMLPHead, FastRCNNPredictor)")
        if isinstance(heads.box_roi_pool, RegionPool):
            raise BenchError(
                f"expected RoI features by RoIAlign's mean, found {heads.box_roi_pool}: build it with pool=align"
            )
        device = next(module.parameters()).device
        made = copy.deepcopy(module)
        if form.layers != "eager":
            made = fuse(made, in_cudnn=form.layers == "fused")
        self.module = made.to(device, form.dtype).to(memory_format=torch.channels_last).eval()
        self.form, self._kernels, self._candidates = form, kernels, candidates
        _take_channels_last(self.module.roi_heads.box_head.fc6, heads.box_roi_pool.output_size)
        self.images = torch.zeros(batch, *size, 3, dtype=torch.uint8, device=device)
        self.image_sizes = torch.tensor([size] * batch, dtype=torch.int32, device=device)
        mean, std = (
            torch.tensor(list(v), device=device) for v in (made.transform.image_mean, made.transform.image_std)
        )
        self._scale, self._shift = 1 / (255 * std), -mean / std
        rpn = module.rpn
        self.proposals = proposal_buffers(batch, rpn._post_nms_top_n["testing"], str(device))
        self.found = detection_buffers(batch, heads.detections_per_img, str(device))
        self.masks: Tensor | None = None
        self._rpn, self._heads = rpn, heads  # thresholds are read from the module that was given
        with torch.inference_mode():
            self._body()
            shapes = [value.shape[-2:] for value in self._features]
            self._anchors = _anchors(module, self._features, size)
            self._scales = [2.0 ** round(float(torch.tensor(s[0] / size[0]).log2())) for s in shapes]

    def stages(self) -> list[tuple[str, Callable[[], None]]]:
        """Names and functions, in their order; each leaves its values for those behind it."""
        stages = [
            ("body: backbone, FPN, RPN head", self._body),
            ("proposals", self._propose),
            ("RoIAlign", self._pool),
            ("box head", self._box_head),
            ("detections", self._detect),
        ]
        if self._heads.has_mask():
            stages += [("RoIAlign of masks", self._pool_masks), ("mask head", self._mask_head)]
        return stages

    @torch.inference_mode()
    def run(self) -> None:
        for _, stage in self.stages():
            stage()

    def _body(self) -> None:
        features = self.module.backbone(self._normalised())
        self._names = list(features)
        self._features = [value.contiguous(memory_format=torch.channels_last) for value in features.values()]
        objectness, deltas = self.module.rpn.head(self._features)
        images = len(self.images)
        # Channels last is the order of the anchors: [N, H, W, A] and [N, H, W, 4A] are views.
        self._objectness = [value.permute(0, 2, 3, 1).reshape(images, -1) for value in objectness]
        self._deltas = [value.permute(0, 2, 3, 1).reshape(images, -1, 4) for value in deltas]

    def _normalised(self) -> Tensor:
        """As `train.models.region.normalise`, whose constants would be copied from the host in every run: [N, 3, H, W],
        channels last, zero outside the valid part."""
        _, height, width, _ = self.images.shape
        x = torch.addcmul(self._shift, self.images.float(), self._scale)
        rows, columns = (torch.arange(side, device=x.device) for side in (height, width))
        valid = (rows[:, None] < self.image_sizes[:, 0, None, None]) & (columns < self.image_sizes[:, 1, None, None])
        return (x * valid[..., None]).to(self.form.dtype).permute(0, 3, 1, 2)

    def _propose(self) -> None:
        self._kernels.proposals(
            self._objectness, self._deltas, self._anchors, self.image_sizes, self.proposals,
            pre_nms=self._rpn._pre_nms_top_n["testing"], iou_threshold=self._rpn.nms_thresh,
            score_threshold=self._rpn.score_thresh, min_size=self._rpn.min_size,
            box_weights=self._rpn.box_coder.weights,
        )()  # fmt: skip

    def _pool(self) -> None:
        self._pooled = self._roi_align(self._heads.box_roi_pool, self.proposals.rois, self.proposals.counts)

    def _box_head(self) -> None:
        heads = self.module.roi_heads
        images, rows = self._pooled.shape[:2]
        hidden = heads.box_head.fc6(self._pooled.reshape(images * rows, -1)).relu_()
        hidden = heads.box_head.fc7(hidden).relu_()
        self._class_logits = heads.box_predictor.cls_score(hidden).reshape(images, rows, -1)
        self._box_deltas = heads.box_predictor.bbox_pred(hidden).reshape(images, rows, -1)

    def _detect(self) -> None:
        self._kernels.detections(
            self._class_logits, self._box_deltas, self.proposals.rois, self.proposals.counts, self.image_sizes,
            self.found, score_threshold=self._heads.score_thresh, iou_threshold=self._heads.nms_thresh,
            box_weights=self._heads.box_coder.weights, candidates=self._candidates,
        )()  # fmt: skip

    def _pool_masks(self) -> None:
        self._mask_pooled = self._roi_align(self._heads.mask_roi_pool, self.found.boxes, self.found.num_detections)

    def _mask_head(self) -> None:
        heads = self.module.roi_heads
        images, rows = self._mask_pooled.shape[:2]
        x = self._mask_pooled.flatten(0, 1).permute(0, 3, 1, 2)  # channels last in memory
        logits = heads.mask_predictor(heads.mask_head(x))  # [N · D, K + 1, M, M]
        masks = masks_of(heads, logits, self.found.labels.flatten().clamp(min=0).long())
        self.masks = masks.reshape(images, rows, *masks.shape[1:])

    def _roi_align(self, pool: nn.Module, rois: Tensor, counts: Tensor) -> Tensor:
        """[N, P, h, w, C]."""
        read = [i for i, name in enumerate(self._names) if name in pool.featmap_names]
        maps = [self._features[i] for i in read]
        out = torch.empty(*rois.shape[:2], *pool.output_size, maps[0].shape[1], dtype=maps[0].dtype, device=rois.device)
        self._kernels.roi_align(
            maps, rois, counts, out, scales=[self._scales[i] for i in read],
            sampling_ratio=pool.sampling_ratio, canonical_scale=pool.canonical_scale,
            canonical_level=pool.canonical_level, channels_last=True,
        )()  # fmt: skip
        return out


def _anchors(module: nn.Module, features: Sequence[Tensor], size: tuple[int, int]) -> list[Tensor]:
    """float32 [A, 4] of each level, the same for each image."""
    maps = [value[:1].float() for value in features]
    (anchors,) = module.rpn.anchor_generator(ImageList(maps[0].new_zeros(1, 3, *size), [size]), maps)
    per_cell = module.rpn.anchor_generator.num_anchors_per_location()
    counts = [cells.shape[2] * cells.shape[3] * each for cells, each in zip(maps, per_cell, strict=True)]
    return [part.float().contiguous() for part in anchors.split(counts)]


def _take_channels_last(fc: nn.Linear, output_size: Sequence[int]) -> None:
    """Weights of [C, h, w] flattened become those of [h, w, C] flattened, in place."""
    height, width = output_size
    weight = fc.weight.detach().reshape(fc.out_features, -1, height, width).permute(0, 2, 3, 1)
    fc.weight = nn.Parameter(weight.reshape(fc.out_features, -1).contiguous(), requires_grad=False)
