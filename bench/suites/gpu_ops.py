"""Single ops on a GPU: our kernels against torchvision's CUDA ops and the byte floor, on the same inputs.

Torchvision's ops are called as a user calls them; where they wait for the GPU on the way (levels are split, NMS gives
as many rows as it keeps), the host's part is in their time, and a second row shows their kernels alone where that can
be. Ours never wait and stand in a CUDA graph. Outputs are poisoned before the agreement is taken.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torchvision.models.detection import roi_heads, rpn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import MultiScaleRoIAlign, batched_nms, nms
from torchvision.ops import roi_align as torchvision_roi_align

from regionrt.bench.torch_kernels import detection_buffers, proposal_buffers
from regionrt.plugins.roi_align.reference import level_thresholds

from .gpu_case import OURS, OpCase, OpSetting, error_of, named, rows_of, told
from .gpu_clock import Call, Candidate, Clock
from .gpu_floor import roi_align_bytes
from .gpu_inputs import clustered_boxes, scattered_boxes
from .gpu_pooling_ops import max_pool_cases, pyramid_pool_cases, roi_pool_cases, warp_cases
from .gpu_schema import OpRow

STRIDES = (4, 8, 16, 32)
SCALES = tuple(1 / stride for stride in STRIDES)
CLASSES = 91


def run_ops(
    setting: OpSetting, clock: Clock, seconds: float, bytes_per_second: float, tell: Callable[[str], None],
    late: Callable[[], str],
) -> Iterator[OpRow]:  # fmt: skip
    """The rows of all cases. late: says why no further case is begun, or ""."""
    for make in CASES:
        try:
            cases = make(setting)
        except Exception as error:
            yield OpRow(make.__name__, OURS, True, failed=told(error))
            continue
        for case in cases:
            if why := late():
                yield OpRow(case.name, OURS, True, failed=why)
                continue
            tell(case.name)
            yield from rows_of(case, clock, seconds, bytes_per_second)


def roi_align_cases(setting: OpSetting) -> list[OpCase]:
    first, *others = setting.sizes
    cases = [_roi_align(setting, first, setting.rois, 7, dtype, True) for dtype in setting.dtypes]
    cases += [_roi_align(setting, first, setting.rois, 7, dtype, False) for dtype in setting.dtypes]
    cases += [_roi_align(setting, size, setting.rois, 7, setting.dtypes[0], True) for size in others]
    cases += [
        _roi_align(setting, setting.sizes[-1], max(setting.rois // 10, 1), 14, setting.dtypes[0], last)
        for last in (True, False)
    ]
    return cases


def _roi_align(
    setting: OpSetting, size: tuple[int, int], count: int, bins: int, dtype: torch.dtype, channels_last: bool
) -> OpCase:
    shapes = [(size[0] // stride, size[1] // stride) for stride in STRIDES]
    channels, width = setting.channels, torch.finfo(dtype).bits // 8
    boxes = scattered_boxes(setting.rng, count, size)
    read = sum(h * w for h, w in shapes) * channels * width
    copies, beyond = setting.copies(read)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    maps = [
        [setting.normal(1, channels, *shape, dtype=dtype).to(memory_format=layout) for shape in shapes]
        for _ in range(copies)
    ]
    rois = setting.tensor(boxes)
    counts = torch.full((1,), count, dtype=torch.int32, device=setting.device)
    shape = (bins, bins, channels) if channels_last else (channels, bins, bins)
    outs = [torch.empty(1, count, *shape, dtype=dtype, device=setting.device) for _ in range(copies)]

    def ours(levels: Sequence[Tensor], out: Tensor) -> Call:
        return setting.kernels.roi_align(levels, rois[None], counts, out, scales=SCALES, channels_last=channels_last)

    plain = [[m.contiguous() for m in levels] for levels in maps]  # torchvision's best layout: it copies any other
    pool = MultiScaleRoIAlign(["0", "1", "2", "3"], bins, 2)
    typed = rois.to(dtype)

    def theirs(levels: Sequence[Tensor]) -> Call:
        features = OrderedDict((str(i), level) for i, level in enumerate(levels))
        return lambda: pool(features, [typed], [size])

    thresholds = torch.tensor(level_thresholds(SCALES, 224.0, 4), device=setting.device)
    area = (rois[:, 2] - rois[:, 0]) * (rois[:, 3] - rois[:, 1])
    of_level = (area[:, None] >= thresholds).sum(1)
    numbered = torch.cat([torch.zeros_like(typed[:, :1]), typed], 1)  # with the image's index, as the op takes them
    split = [numbered[of_level == level] for level in range(len(STRIDES))]

    def kernels_alone(levels: Sequence[Tensor]) -> Call:
        return lambda: [
            torchvision_roi_align(level, boxes, bins, scale, 2)
            for level, boxes, scale in zip(levels, split, SCALES, strict=True)
        ]

    candidates: dict[str, Callable[[], Candidate]] = {
        OURS: lambda: Candidate([ours(levels, out) for levels, out in zip(maps, outs, strict=True)]),
        "torchvision": lambda: Candidate([theirs(levels) for levels in plain], graph=False),
        "torchvision's kernels alone, RoIs split by level beforehand": lambda: Candidate(
            [kernels_alone(levels) for levels in plain]
        ),
    }
    if channels_last:
        candidates["torchvision, channels last"] = lambda: Candidate([theirs(levels) for levels in maps], graph=False)

    def agreement() -> str:
        outs[0].fill_(float("nan"))
        ours(maps[0], outs[0])()
        found = (outs[0][0].permute(0, 3, 1, 2) if channels_last else outs[0][0]).float()
        # In fp32 with fp32 boxes: half boxes move by half a pixel, and then both are right about different RoIs.
        wide = OrderedDict((str(i), level.float()) for i, level in enumerate(plain[0]))
        return error_of(found, MultiScaleRoIAlign(["0", "1", "2", "3"], bins, 2)(wide, [rois], [size]))

    name = f"RoIAlign {count}×{channels}×{bins}×{bins}, 4 levels of {size[0]}×{size[1]}, {named(dtype)}, " + (
        "channels last" if channels_last else "channels first"
    )
    moved = roi_align_bytes(boxes, shapes, SCALES, bins, 2, channels, width)
    return OpCase(name, moved, copies, beyond, candidates, agreement)


def nms_cases(setting: OpSetting) -> list[OpCase]:
    count, size = setting.rois, setting.sizes[0]
    boxes, scores, labels = clustered_boxes(setting.rng, count, size, CLASSES)
    one = np.zeros(count, np.int32)
    heap, _, _ = clustered_boxes(setting.rng, count, size, 1, objects=3)
    spread = scattered_boxes(setting.rng, count, size)
    return [
        _nms(setting, f"NMS, {count} boxes of {CLASSES} classes", boxes, scores, labels, CLASSES),
        _nms(setting, f"NMS, {count} boxes of one class around 3 objects", heap, scores, one, 1),
        _nms(setting, f"NMS, {count} scattered boxes of one class (the most are kept)", spread, scores, one, 1),
    ]


def _nms(
    setting: OpSetting, name: str, boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray, classes: int
) -> OpCase:
    count, iou = len(boxes), 0.5
    copies, beyond = setting.copies(boxes.nbytes + labels.nbytes)
    box, label, score = (setting.tensor(values) for values in (boxes, labels, scores))
    shuffled = torch.randperm(count, device=setting.device)
    keep = torch.empty(1, count, dtype=torch.uint8, device=setting.device)
    sets = [(box.clone(), label.clone(), score.clone()) for _ in range(copies)]
    mixed = [tuple(values[shuffled].contiguous() for values in one) for one in sets]
    wide = [label.long() for _, label, _ in mixed]

    def ours(box: Tensor, label: Tensor, _: Tensor) -> Call:
        return setting.kernels.nms(box[None], label[None], keep, num_classes=classes, iou_threshold=iou)

    def ours_unsorted(box: Tensor, label: Tensor, score: Tensor) -> Call:
        sorted_box, sorted_label = torch.empty_like(box), torch.empty_like(label)
        suppress = ours(sorted_box, sorted_label, score)

        def call() -> None:
            order = score.argsort(descending=True, stable=True)
            torch.index_select(box, 0, order, out=sorted_box)
            torch.index_select(label, 0, order, out=sorted_label)
            suppress()

        return call

    def theirs(box: Tensor, label: Tensor, score: Tensor) -> Call:
        return lambda: batched_nms(box, score, label, iou)

    def agreement() -> str:
        keep.fill_(7)
        ours(*sets[0])()
        found = keep[0].nonzero()[:, 0].tolist() if keep.max() < 2 else []
        exact: list[int] = []  # per class, on boxes as they are: batched_nms shifts them by class, which rounds
        for index in label.unique():
            rows = (label == index).nonzero()[:, 0]
            exact += rows[nms(box[rows], score[rows], iou)].tolist()
        shifted = batched_nms(box, score, label.long(), iou).tolist()
        told = "equal to torchvision's nms class by class" if found == sorted(exact) else "differs from torchvision's"
        return f"{told}; {len(set(found) ^ set(shifted))} boxes differ from batched_nms; {len(found)} kept"

    candidates = {
        OURS: lambda: Candidate([ours(*one) for one in sets]),
        "ours, boxes not sorted: torch sorts": lambda: Candidate([ours_unsorted(*one) for one in mixed]),
        "torchvision batched_nms": lambda: Candidate(
            [theirs(one[0], wide[i], one[2]) for i, one in enumerate(mixed)], graph=False
        ),
    }
    return OpCase(name, boxes.nbytes + labels.nbytes + count, copies, beyond, candidates, agreement)


def proposals_cases(setting: OpSetting) -> list[OpCase]:
    return [_proposals(setting, pre_nms) for pre_nms in setting.pre_nms]


def _proposals(setting: OpSetting, pre_nms: int) -> OpCase:
    size, post_nms, iou = setting.sizes[0], min(pre_nms, 1000), 0.7
    shapes = [(-(-size[0] // s), -(-size[1] // s)) for s in (*STRIDES, 64)]
    generator = AnchorGenerator(tuple((32 * 2**i,) for i in range(5)), ((0.5, 1.0, 2.0),) * 5)
    images = ImageList(torch.zeros(1, 3, *size, device=setting.device), [size])
    all_anchors = generator(images, [torch.zeros(1, 1, *shape, device=setting.device) for shape in shapes])[0]
    numbers = [3 * h * w for h, w in shapes]
    anchors = [part.contiguous() for part in all_anchors.split(numbers)]
    copies, beyond = setting.copies(sum(numbers) * 5 * 4)
    # Smooth logits: neighbouring anchors score alike, as a trained head's do, and compete in NMS.
    logits = [[_smooth(setting, 3, *shape) * 2 - 4 for shape in shapes] for _ in range(copies)]
    deltas = [[setting.normal(1, count, 4) * 0.2 for count in numbers] for _ in range(copies)]
    sizes = torch.tensor([size], dtype=torch.int32, device=setting.device)
    head = rpn.RegionProposalNetwork(
        generator, torch.nn.Identity(), 0.7, 0.3, 256, 0.5, {"testing": pre_nms, "training": pre_nms},
        {"testing": post_nms, "training": post_nms}, iou,
    ).eval()  # fmt: skip
    out = proposal_buffers(1, post_nms, setting.device)

    def ours(logit: Sequence[Tensor], delta: Sequence[Tensor]) -> Call:
        return setting.kernels.proposals(logit, delta, anchors, sizes, out, pre_nms=pre_nms, iou_threshold=iou)

    flat = [
        (torch.cat(logit, 1).reshape(-1, 1), torch.cat(delta, 1).reshape(-1, 4))
        for logit, delta in zip(logits, deltas, strict=True)
    ]

    def theirs(logit: Tensor, delta: Tensor) -> Call:
        def call() -> tuple[list[Tensor], list[Tensor]]:
            decoded = head.box_coder.decode(delta, [all_anchors]).view(1, -1, 4)
            return head.filter_proposals(decoded, logit, [size], numbers)

        return call

    def agreement() -> str:
        for value in out:
            value.fill_(-7)
        ours(logits[0], deltas[0])()
        expected = theirs(*flat[0])()[0][0]  # type: ignore[index]
        found = out.rois[0, : int(out.counts[0])]
        near = (found[:, None] - expected[None]).abs().amax(-1).amin(1) < 0.01 if len(expected) else found[:0, 0] < 0
        return f"{len(found)} proposals, theirs {len(expected)}, the same {near.float().mean().item():.1%}"

    candidates = {
        OURS: lambda: Candidate([ours(*one) for one in zip(logits, deltas, strict=True)]),
        "torchvision decode + filter_proposals": lambda: Candidate([theirs(*one) for one in flat], graph=False),
    }
    # All logits are read once; of the rest only what the best `pre_nms` of each level need.
    chosen = sum(min(pre_nms, count) for count in numbers)
    moved = sum(numbers) * 4 + chosen * 32 + post_nms * 20
    name = f"proposals, {sum(numbers)} anchors, pre-NMS {pre_nms}, post-NMS {post_nms}"
    return OpCase(name, moved, copies, beyond, candidates, agreement)


def detections_cases(setting: OpSetting) -> list[OpCase]:
    size, count, limit = setting.sizes[0], setting.rois, 100
    boxes, _, labels = clustered_boxes(setting.rng, count, size, CLASSES - 1)
    copies, beyond = setting.copies(count * CLASSES * 5 * 4)
    rois = setting.tensor(boxes)
    sure = setting.tensor(np.arange(0, count, 3))
    of = setting.tensor(labels[::3].astype(np.int64)) + 1

    def logits() -> Tensor:
        made = setting.normal(count, CLASSES)
        made[:, 0] += 4
        made[sure, of] += 7
        return made

    sets = [(logits(), setting.normal(count, 4 * CLASSES) * 0.5) for _ in range(copies)]
    counts = torch.full((1,), count, dtype=torch.int32, device=setting.device)
    sizes = torch.tensor([size], dtype=torch.int32, device=setting.device)
    heads = roi_heads.RoIHeads(
        None, None, None, 0.5, 0.5, 512, 0.25, None, score_thresh=0.05, nms_thresh=0.5, detections_per_img=limit
    ).eval()
    out = detection_buffers(1, limit, setting.device)

    def ours(logit: Tensor, delta: Tensor) -> Call:
        return setting.kernels.detections(
            logit[None], delta[None], rois[None], counts, sizes, out, score_threshold=0.05, iou_threshold=0.5
        )

    def theirs(logit: Tensor, delta: Tensor) -> Call:
        return lambda: heads.postprocess_detections(logit, delta, [rois], [size])

    def agreement() -> str:
        for value in out:
            value.fill_(-7)
        ours(*sets[0])()
        number = int(out.num_detections[0])
        boxes, scores, labels = (value[0] for value in theirs(*sets[0])())  # type: ignore[attr-defined]
        same = matched((boxes, labels), (out.boxes[0, :number], out.labels[0, :number].long()), 0.99)
        return f"{number} detections, theirs {len(scores)}, the same {same:.1%}"

    candidates = {
        OURS: lambda: Candidate([ours(*one) for one in sets]),
        "torchvision postprocess_detections": lambda: Candidate([theirs(*one) for one in sets], graph=False),
    }
    moved = count * CLASSES * 4 + count * 16 + limit * 36
    name = f"detections, {count} RoIs × {CLASSES} classes"
    return [OpCase(name, moved, copies, beyond, candidates, agreement)]


def mask_cases(setting: OpSetting) -> list[OpCase]:
    size, count, side = setting.sizes[-1], setting.masks, 28
    boxes = scattered_boxes(setting.rng, count, size, 30)
    y, x = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
    radius = setting.rng.uniform(0.4, 1, (count, 1, 1))
    masks = (1 / (1 + np.exp(8 * (x**2 + y**2 - radius)))).astype(np.float32)
    mask, box = setting.tensor(masks), setting.tensor(boxes)
    copies, beyond = setting.copies(masks.nbytes + count * size[0] * size[1])
    outs = [torch.empty(count, *size, dtype=torch.uint8, device=setting.device) for _ in range(copies)]

    def ours(out: Tensor) -> Call:
        return setting.kernels.mask_paste(mask, box, out)

    def theirs() -> Tensor:
        return roi_heads.paste_masks_in_image(mask[:, None], box, size) > 0.5

    def agreement() -> str:
        outs[0].fill_(7)
        ours(outs[0])()
        return f"{(outs[0] == theirs()[:, 0]).float().mean().item():.4%} of the pixels"

    candidates = {
        OURS: lambda: Candidate([ours(out) for out in outs]),
        "torchvision paste_masks_in_image": lambda: Candidate([theirs], graph=False),
    }
    moved = masks.nbytes + boxes.nbytes + count * size[0] * size[1]
    return [OpCase(f"pasting {count} masks, {size[0]}×{size[1]}", moved, copies, beyond, candidates, agreement)]


CASES: Sequence[Callable[[OpSetting], list[OpCase]]] = (
    roi_align_cases,
    nms_cases,
    proposals_cases,
    detections_cases,
    mask_cases,
    roi_pool_cases,
    pyramid_pool_cases,
    warp_cases,
    max_pool_cases,
)


def matched(expected: tuple[Tensor, Tensor], found: tuple[Tensor, Tensor], min_iou: float) -> float:
    """Share of `expected` (boxes, labels) that are in `found` with the same label and IoU > `min_iou`, one to one."""
    from torchvision.ops import box_iou

    if not len(expected[0]):
        return 1.0 if not len(found[0]) else 0.0
    if not len(found[0]):
        return 0.0
    overlap = box_iou(expected[0].float(), found[0].float())
    overlap[expected[1][:, None] != found[1][None]] = 0
    pairs = overlap.cpu().numpy()
    hits = 0
    for row in pairs:
        best = int(row.argmax())
        if row[best] > min_iou:
            hits += 1
            pairs[:, best] = 0
    return hits / len(pairs)


def _smooth(setting: OpSetting, anchors: int, height: int, width: int) -> Tensor:
    """Logits [1, H · W · anchors] of neighbours alike."""
    coarse = setting.normal(1, anchors, max(height // 6, 2), max(width // 6, 2))
    fine = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    fine = fine + setting.normal(1, anchors, height, width) * 0.3
    return fine.permute(0, 2, 3, 1).reshape(1, -1).contiguous()
