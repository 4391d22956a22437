"""Our CUDA kernels on torch's tensors and torch's current stream, for measurements beside PyTorch.

Each method checks its tensors and gives a `Prepared` op; calling that puts the kernels on the stream that is torch's
current one at the time, waits for nothing and allocates nothing, so it can be captured in a `torch.cuda.graph`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from regionrt.plugins.native import cuda as sources
from regionrt.runtime.backends.cuda import open_cuda
from regionrt.runtime.gpu import detections, masks, max_unpool, nms, proposals, pyramid_pool, roi_align, roi_pool, warp
from regionrt.runtime.gpu.arrays import GpuArray
from regionrt.runtime.gpu.kernels import Kernels, Launch
from regionrt.train.models.region import MAX_CANDIDATES

_TYPES = {
    torch.float32: "float32",
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
    torch.int32: "int32",
    torch.uint8: "uint8",
}


class Proposals(NamedTuple):
    """Rows from counts[n] on are zero."""

    rois: Tensor  # float32 [N, P, 4]
    scores: Tensor  # float32 [N, P]
    counts: Tensor  # int32 [N]


class Found(NamedTuple):
    """Rows from num_detections[n] on: zero boxes, score −1, label −1, roi −1."""

    num_detections: Tensor  # int32 [N]
    boxes: Tensor  # float32 [N, D, 4]
    scores: Tensor  # float32 [N, D]
    labels: Tensor  # int32 [N, D]
    roi_index: Tensor  # int32 [N, D]
    overflow: Tensor  # int32 [N]


@dataclass(frozen=True)
class Prepared:
    """Kernels with their arguments. `held` keeps alive the memory that they read and write."""

    launches: Sequence[Launch]
    stream: Callable[[], int]
    held: object

    def __call__(self) -> None:
        stream = self.stream()
        for launch in self.launches:
            launch.enqueue(stream)


def open_torch_kernels(device: int = 0) -> TorchKernels:
    """The kernels of this checkout, compiled by NVRTC for the GPU. BackendError where that cannot be."""
    with suppress(OSError):  # in an installation they are there already
        sources.write_sources()
    kernels = Kernels(open_cuda(device, "cuda-python"))
    return TorchKernels(kernels, lambda: torch.cuda.current_stream(device).cuda_stream)


class TorchKernels:
    """stream: gives the handle of the stream that kernels are put on."""

    def __init__(self, kernels: Kernels, stream: Callable[[], int]) -> None:
        self._kernels, self._stream = kernels, stream

    def roi_align(
        self,
        maps: Sequence[Tensor],
        rois: Tensor,
        counts: Tensor,
        out: Tensor,
        *,
        scales: Sequence[float],
        sampling_ratio: int = 2,
        canonical_scale: float = 224,
        canonical_level: int = 4,
        channels_last: bool = False,
    ) -> Prepared:
        """maps [N, C, H, W] each, with `channels_last` in that memory format; rois [N, P, 4]; out [N, P, C, h, w], or
        with `channels_last` [N, P, h, w, C]."""
        levels = [_map(level, channels_last) for level in maps]
        bins = (out.shape[2], out.shape[3]) if channels_last else (out.shape[3], out.shape[4])
        launches = roi_align.roi_align(
            self._kernels, levels, array(rois), array(counts), array(out),
            spatial_scales=scales, output_size=bins, sampling_ratio=sampling_ratio,
            canonical_scale=canonical_scale, canonical_level=canonical_level, channels_last=channels_last,
        )  # fmt: skip
        return self._prepared(launches, maps, rois, counts, out)

    def nms(self, boxes: Tensor, classes: Tensor, keep: Tensor, *, num_classes: int, iou_threshold: float) -> Prepared:
        """boxes [N, Q, 4], best first; classes int32 [N, Q]; keep uint8 [N, Q]."""
        launches = nms.nms(
            self._kernels, array(boxes), array(classes), array(keep),
            num_classes=num_classes, iou_threshold=iou_threshold,
        )  # fmt: skip
        return self._prepared(launches, boxes, classes, keep)

    def proposals(
        self,
        objectness: Sequence[Tensor],
        deltas: Sequence[Tensor],
        anchors: Sequence[Tensor],
        image_sizes: Tensor,
        out: Proposals,
        *,
        pre_nms: int,
        iou_threshold: float,
        score_threshold: float = 0.0,
        min_size: float = 1e-3,
        box_weights: Sequence[float] = (1.0, 1.0, 1.0, 1.0),
    ) -> Prepared:
        """Per level objectness [N, A] (logits), deltas [N, A, 4], anchors float32 [A, 4]; image_sizes int32 [N, 2]."""
        size = proposals.proposals_workspace(len(image_sizes), [len(level) for level in anchors], pre_nms)
        workspace = torch.empty(size, dtype=torch.uint8, device=image_sizes.device)
        launches = proposals.proposals(
            self._kernels,
            [array(level) for level in objectness],
            [array(level) for level in deltas],
            [array(level) for level in anchors],
            array(image_sizes),
            (array(out.rois), array(out.scores), array(out.counts)),
            _aligned(workspace),
            pre_nms=pre_nms,
            post_nms=out.rois.shape[1],
            iou_threshold=iou_threshold,
            score_threshold=score_threshold,
            min_size=min_size,
            box_weights=box_weights,
        )
        return self._prepared(launches, objectness, deltas, anchors, image_sizes, out, workspace)

    def detections(
        self,
        class_logits: Tensor,
        box_deltas: Tensor,
        rois: Tensor,
        counts: Tensor,
        image_sizes: Tensor,
        out: Found,
        *,
        score_threshold: float,
        iou_threshold: float,
        candidates: int = MAX_CANDIDATES,
        box_weights: Sequence[float] = (10.0, 10.0, 5.0, 5.0),
    ) -> Prepared:
        """class_logits [N, P, K + 1], box_deltas [N, P, 4(K + 1)], rois [N, P, 4], counts [N], image_sizes [N, 2]."""
        images, rows, columns = class_logits.shape
        size = detections.detections_workspace(images, rows, columns - 1, candidates)
        workspace = torch.empty(size, dtype=torch.uint8, device=rois.device)
        launches = detections.detections(
            self._kernels,
            array(class_logits),
            array(box_deltas),
            array(rois),
            array(counts),
            array(image_sizes),
            [array(value) for value in out],
            _aligned(workspace),
            score_threshold=score_threshold,
            iou_threshold=iou_threshold,
            max_detections=out.boxes.shape[1],
            candidates=candidates,
            box_weights=box_weights,
        )
        return self._prepared(launches, class_logits, box_deltas, rois, counts, image_sizes, out, workspace)

    def mask_paste(self, roi_masks: Tensor, boxes: Tensor, out: Tensor) -> Prepared:
        """roi_masks float32 [D, M, M], boxes float32 [D, 4]; out uint8 [D, H, W], 1 where above 0.5."""
        launches = masks.mask_paste(self._kernels, array(roi_masks), array(boxes), array(out))
        return self._prepared(launches, roi_masks, boxes, out)

    def roi_pool(
        self, feature: Tensor, rois: Tensor, counts: Tensor, out: Tensor, *, scale: float, channels_last: bool = False
    ) -> Prepared:
        """feature [N, C, H, W], with `channels_last` in that memory format; rois [N, P, 4]; out [N, P, C, h, w], or
        with `channels_last` [N, P, h, w, C]."""
        bins = (out.shape[2], out.shape[3]) if channels_last else (out.shape[3], out.shape[4])
        launches = roi_pool.roi_pool(
            self._kernels, _map(feature, channels_last), array(rois), array(counts), array(out),
            spatial_scale=scale, output_size=bins, channels_last=channels_last,
        )  # fmt: skip
        return self._prepared(launches, feature, rois, counts, out)

    def pyramid_pool(
        self,
        feature: Tensor,
        rois: Tensor,
        counts: Tensor,
        out: Tensor,
        *,
        scale: float,
        bins: Sequence[int],
        channels_last: bool = False,
    ) -> Prepared:
        """feature [N, C, H, W], with `channels_last` in that memory format; rois [N, P, 4]; out [N, P, C · Σb²], or
        with `channels_last` [N, P, Σb², C]."""
        launches = pyramid_pool.pyramid_pool(
            self._kernels, _map(feature, channels_last), array(rois), array(counts), array(out),
            spatial_scale=scale, bins=bins, channels_last=channels_last,
        )  # fmt: skip
        return self._prepared(launches, feature, rois, counts, out)

    def warp(
        self, images: Tensor, rois: Tensor, counts: Tensor, out: Tensor, *, context: int, channels_last: bool = False
    ) -> Prepared:
        """images [N, C, H, W], with `channels_last` in that memory format; rois [N, P, 4]; out [N, P, C, h, w], or
        with `channels_last` [N, P, h, w, C]."""
        size = (out.shape[2], out.shape[3]) if channels_last else (out.shape[3], out.shape[4])
        launches = warp.warp(
            self._kernels, _map(images, channels_last), array(rois), array(counts), array(out),
            output_size=size, context=context, channels_last=channels_last,
        )  # fmt: skip
        return self._prepared(launches, images, rois, counts, out)

    def max_pool(self, x: Tensor, values: Tensor, argmax: Tensor, *, kernel: int = 2, stride: int = 2) -> Prepared:
        """x [N, C, H, W]; values [N, C, h, w] and argmax int32, likewise (the place in the window)."""
        launches = max_unpool.max_pool(
            self._kernels, array(x), array(values), array(argmax), kernel=kernel, stride=stride
        )
        return self._prepared(launches, x, values, argmax)

    def max_unpool(self, x: Tensor, argmax: Tensor, out: Tensor, *, kernel: int = 2, stride: int = 2) -> Prepared:
        """x [N, C, h, w], argmax int32, likewise; out [N, C, H, W]."""
        launches = max_unpool.max_unpool(
            self._kernels, array(x), array(argmax), array(out), kernel=kernel, stride=stride
        )
        return self._prepared(launches, x, argmax, out)

    def _prepared(self, launches: Sequence[Launch], *held: object) -> Prepared:
        return Prepared(launches, self._stream, held)


def proposal_buffers(images: int, most: int, device: str) -> Proposals:
    """Memory for proposals, full of rubbish."""
    return Proposals(
        torch.empty(images, most, 4, device=device),
        torch.empty(images, most, device=device),
        torch.empty(images, dtype=torch.int32, device=device),
    )


def detection_buffers(images: int, most: int, device: str) -> Found:
    """Memory for detections, full of rubbish."""
    number, index = (torch.empty(shape, dtype=torch.int32, device=device) for shape in ((images,), (images, most)))
    boxes, scores = torch.empty(images, most, 4, device=device), torch.empty(images, most, device=device)
    return Found(number, boxes, scores, index, torch.empty_like(index), torch.empty_like(number))


def array(tensor: Tensor) -> GpuArray:
    """A contiguous tensor as the kernels take it."""
    if not tensor.is_contiguous():
        raise ValueError(f"expected contiguous memory, found the strides {tensor.stride()} for {list(tensor.shape)}")
    return GpuArray(tensor.data_ptr(), tuple(tensor.shape), _TYPES[tensor.dtype])


def _map(value: Tensor, channels_last: bool) -> GpuArray:
    """A map [N, C, H, W] as it lies in memory."""
    return array(value.permute(0, 2, 3, 1) if channels_last else value)


def _aligned(workspace: Tensor) -> int:
    """Its address, which torch aligns to at least 256 bytes on a GPU (and to 64 on a CPU, where tests do without)."""
    return workspace.data_ptr()
