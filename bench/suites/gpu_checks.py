"""Kernels on the GPU against their definition (`plugins/<op>/reference.py`, on the CPU) and torchvision's CUDA ops.

A smoke test of what the figures are about, on fresh random inputs, outputs full of rubbish beforehand:
RoIAlign in fp32, fp16 and bf16, both layouts, channels that fill vectors and that do not, fewer RoIs than room;
NMS with one class, many, padding and ties, exactly; proposals and detections in fp32 and fp16, with images of which
one has no RoIs; pasted masks; the other poolings, warping and unpooling. Every corner of every op is for the tests to
show.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torchvision.models.detection.roi_heads import paste_masks_in_image
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops import nms as torchvision_nms

from regionrt.bench.torch_kernels import TorchKernels, detection_buffers, proposal_buffers
from regionrt.plugins.detections import reference as detections_reference
from regionrt.plugins.mask_paste import reference as mask_paste_reference
from regionrt.plugins.nms import reference as nms_reference
from regionrt.plugins.proposals import reference as proposals_reference
from regionrt.plugins.roi_align import reference as roi_align_reference

from .gpu_compare import LIMITS, REFERENCE, TORCHVISION, equal, layout_of, name_of, relative, tensors, wide
from .gpu_inputs import clustered_boxes, scattered_boxes
from .gpu_pooling_checks import check_max_unpool, check_pyramid_pool, check_roi_pool, check_warp
from .gpu_schema import Check

TORCHVISION_LIMIT = 1e-4
"""torchvision works its geometry out in fp32, ours in fp64: on a large canvas samples move by 1e-5 of a cell."""
SIZE = (128, 160)
STRIDES = (4, 8, 16, 32)
SCALES = tuple(1 / stride for stride in STRIDES)


def run_checks(kernels: TorchKernels, device: str, seed: int, tell: Callable[[str], None]) -> Iterator[Check]:
    """All checks; one that raises is one that failed, with the reason."""
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    for check in CHECKS:
        tell(check.__name__)
        try:
            yield from check(kernels, device, rng)
        except Exception as error:
            op = check.__name__.removeprefix("check_")
            yield Check(op, "", "", None, 0.0, "", False, f"{type(error).__name__}: {error}"[:500])


def check_roi_align(kernels: TorchKernels, device: str, rng: np.random.Generator) -> Iterator[Check]:
    images, most = 2, 6
    counts = np.array([most, 4], np.int32)
    rois = np.stack([scattered_boxes(rng, most, SIZE, 4) for _ in range(images)])
    rois[0, 0] = (-40, -30, 10, 20)  # reaches out of the image
    for channels, bins, ratio in ((16, 7, 2), (5, 14, 2), (8, 3, 0)):
        shapes = [(SIZE[0] // s, SIZE[1] // s) for s in STRIDES]
        for dtype, limit in LIMITS.items():
            maps = [torch.randn(images, channels, *shape, device=device).to(dtype) for shape in shapes]
            expected = roi_align_reference.roi_align(
                [m.double().cpu().numpy() for m in maps], rois, counts,
                spatial_scales=SCALES, output_size=(bins, bins), sampling_ratio=ratio,
            )  # fmt: skip
            for last in (True, False):
                found = _roi_align(kernels, maps, rois, counts, bins, ratio, last)
                case = f"{channels} channels, {bins}×{bins}, ratio {ratio}, {name_of(dtype)}, {layout_of(last)}"
                yield relative("roi_align", case, REFERENCE, found, expected, limit)
    shapes = [(800 // s, 1088 // s) for s in STRIDES]
    maps = [torch.randn(1, 64, *shape, device=device) for shape in shapes]
    boxes = scattered_boxes(rng, 200, (800, 1088))
    pool = MultiScaleRoIAlign(["0", "1", "2", "3"], 7, 2)
    named = OrderedDict((str(i), m) for i, m in enumerate(maps))
    theirs = pool(named, [torch.from_numpy(boxes).to(device)], [(800, 1088)]).double().cpu().numpy()
    for last in (True, False):
        found = _roi_align(kernels, maps, boxes[None], np.array([200], np.int32), 7, 2, last)
        case = f"200×64×7×7 on 800×1088, fp32, {layout_of(last)}"
        yield relative("roi_align", case, TORCHVISION, found, theirs[None], TORCHVISION_LIMIT)


def _roi_align(
    kernels: TorchKernels, maps: Sequence[Tensor], rois: np.ndarray, counts: np.ndarray, bins: int, ratio: int,
    last: bool,
) -> np.ndarray:  # fmt: skip
    """float64 [N, P, C, h, w]."""
    device, channels = maps[0].device, maps[0].shape[1]
    layout = torch.channels_last if last else torch.contiguous_format
    shape = (bins, bins, channels) if last else (channels, bins, bins)
    out = torch.full((*rois.shape[:2], *shape), float("nan"), dtype=maps[0].dtype, device=device)
    boxes, numbers = tensors(device, rois, counts)
    kernels.roi_align(
        [m.contiguous(memory_format=layout) for m in maps], boxes, numbers, out,
        scales=SCALES, sampling_ratio=ratio, channels_last=last,
    )()  # fmt: skip
    return (out.permute(0, 1, 4, 2, 3) if last else out).double().cpu().numpy()


def check_nms(kernels: TorchKernels, device: str, rng: np.random.Generator) -> Iterator[Check]:
    for count, classes in ((1, 1), (33, 3), (300, 1), (300, 91)):
        made = [clustered_boxes(rng, count, SIZE, classes, objects=6) for _ in range(2)]
        boxes, labels = np.stack([m[0] for m in made]), np.stack([m[2] for m in made])
        labels[1, count // 2 :] = -1  # padding
        if count > 40:
            boxes[0, 20:25] = boxes[0, 10:15]  # the same box again
        expected = nms_reference.nms(boxes, labels, iou_threshold=0.5)
        found = _nms(kernels, device, boxes, labels, classes)
        yield equal("nms", f"2×{count} boxes of {classes} classes", REFERENCE, found, expected, "boxes that differ")
    boxes, scores, labels = clustered_boxes(rng, 1000, (800, 1344), 91)
    found = _nms(kernels, device, boxes[None], labels[None], 91)[0]
    box, score, label = tensors(torch.device(device), boxes, scores, labels)
    theirs = np.zeros(len(boxes), np.uint8)
    for index in label.unique():
        rows = (label == index).nonzero()[:, 0]
        theirs[rows[torchvision_nms(box[rows], score[rows], 0.5)].cpu().numpy()] = 1
    yield equal("nms", "1000 boxes of 91 classes", TORCHVISION, found, theirs, "boxes that differ")


def _nms(kernels: TorchKernels, device: str, boxes: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    keep = torch.full(labels.shape, 7, dtype=torch.uint8, device=device)
    box, label = tensors(keep.device, boxes, labels)
    kernels.nms(box, label, keep, num_classes=classes, iou_threshold=0.5)()
    return keep.cpu().numpy()


def check_proposals(kernels: TorchKernels, device: str, rng: np.random.Generator) -> Iterator[Check]:
    images, pre_nms, post_nms = 2, 100, 150
    numbers = (3000, 700, 90)
    anchors = [scattered_boxes(rng, count, SIZE, 8) for count in numbers]
    sizes = np.array([SIZE, (100, 160)], np.int32)
    for dtype in (torch.float32, torch.float16):
        on = {"device": device, "dtype": dtype}
        logits = [torch.randn(images, count, **on) for count in numbers]  # type: ignore[call-overload]
        deltas = [torch.randn(images, count, 4, **on) * 0.3 for count in numbers]  # type: ignore[call-overload]
        out = proposal_buffers(images, post_nms, device)
        for value in out:
            value.fill_(-7)
        (size,), boxes = tensors(torch.device(device), sizes), tensors(torch.device(device), *anchors)
        kernels.proposals(logits, deltas, boxes, size, out, pre_nms=pre_nms, iou_threshold=0.7)()
        expected = proposals_reference.proposals(
            [wide(value) for value in logits], [wide(value) for value in deltas], anchors, sizes,
            pre_nms=pre_nms, post_nms=post_nms, iou_threshold=0.7,
        )  # fmt: skip
        case = f"{images} images, {sum(numbers)} anchors, {name_of(dtype)}"
        for what, found, reference in zip(("rois", "scores", "counts"), out, expected, strict=True):
            unit = f"{what} that differ"
            yield equal("proposals", case, REFERENCE, found.cpu().numpy(), reference, unit)


def check_detections(kernels: TorchKernels, device: str, rng: np.random.Generator) -> Iterator[Check]:
    images, rows, classes, limit = 3, 80, 6, 40
    rois = np.stack([clustered_boxes(rng, rows, SIZE, 1, objects=5)[0] for _ in range(images)])
    counts, sizes = np.array([rows, 0, 33], np.int32), np.array([SIZE] * images, np.int32)
    for dtype in (torch.float32, torch.float16):
        logits = (torch.randn(images, rows, classes + 1, device=device) * 2).to(dtype)
        deltas = torch.randn(images, rows, 4 * (classes + 1), device=device).to(dtype)
        out = detection_buffers(images, limit, device)
        for value in out:
            value.fill_(-7)
        boxes, numbers, size = tensors(torch.device(device), rois, counts, sizes)
        kernels.detections(
            logits, deltas, boxes, numbers, size, out,
            score_threshold=0.2, iou_threshold=0.5, candidates=300,
        )()  # fmt: skip
        expected = detections_reference.detections(
            wide(logits), wide(deltas), rois, counts, sizes,
            score_threshold=0.2, iou_threshold=0.5, max_detections=limit, candidates=300,
        )  # fmt: skip
        case = f"{images} images, {rows} RoIs × {classes} classes, {name_of(dtype)}"
        for what in ("num_detections", "labels", "roi_index", "overflow"):
            found, reference = getattr(out, what).cpu().numpy(), getattr(expected, what)
            yield equal("detections", case, REFERENCE, found, reference, f"{what} that differ")
        # The sum behind a softmax is taken in another order than the reference's.
        for what, limit_of in (("boxes", 1e-6), ("scores", 1e-6)):
            found, reference = getattr(out, what).double().cpu().numpy(), getattr(expected, what)
            yield relative("detections", f"{what}, {case}", REFERENCE, found, reference, limit_of)


def check_mask_paste(kernels: TorchKernels, device: str, rng: np.random.Generator) -> Iterator[Check]:
    for count, side, size, against in ((3, 28, (60, 80), REFERENCE), (40, 28, (800, 1088), TORCHVISION)):
        boxes = scattered_boxes(rng, count, size, 6)
        boxes[0] += (-9, -7, 4, 3)  # reaches out of the photo
        masks = rng.random((count, side, side), dtype=np.float32)
        mask, box = tensors(torch.device(device), masks, boxes)
        out = torch.full((count, *size), 7, dtype=torch.uint8, device=device)
        kernels.mask_paste(mask, box, out)()
        if against == REFERENCE:
            expected = np.stack(
                [mask_paste_reference.paste_mask(m, b, size) for m, b in zip(masks, boxes, strict=True)]
            )
        else:
            expected = (paste_masks_in_image(mask[:, None], box, size) > 0.5)[:, 0].byte().cpu().numpy()
        found = out.cpu().numpy()
        case = f"{count} masks, {size[0]}×{size[1]}"
        if against == REFERENCE:
            yield equal("mask_paste", case, against, found, expected, "pixels that differ")
        else:  # theirs may fuse multiplications with additions; masks of noise cross the threshold everywhere
            share = float((found != expected).mean())
            yield Check("mask_paste", case, against, share, 1e-4, "of the pixels differ", share <= 1e-4)


CHECKS = (
    check_roi_align, check_nms, check_proposals, check_detections, check_mask_paste, check_roi_pool, check_pyramid_pool,
    check_warp, check_max_unpool,
)  # fmt: skip
