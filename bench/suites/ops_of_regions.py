"""RoIAlign, NMS, proposals and detections beside torchvision, ONNX Runtime and OpenVINO on a CPU."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import torch
from torchvision.models.detection import roi_heads, rpn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import MultiScaleRoIAlign, batched_nms
from torchvision.ops import nms as torchvision_nms
from torchvision.ops import roi_align as torchvision_roi_align

from regionrt.runtime import native
from regionrt.runtime.native.arrays import narrowed

from .one_node import OneNode
from .ops_case import CHANNELS, CLASSES, HEIGHT, ROIS, STRIDES, WIDTH, Case, boxes_on_canvas, error_of


def roi_align_cases(threads: int) -> list[Case]:
    rng = np.random.default_rng(0)
    maps = [rng.standard_normal((1, CHANNELS, HEIGHT // s, WIDTH // s), dtype=np.float32) for s in STRIDES]
    last = [np.ascontiguousarray(m.transpose(0, 2, 3, 1)) for m in maps]
    narrow = [narrowed(m, np.dtype(np.uint16)) for m in last]
    tensors = [torch.from_numpy(m) for m in maps]
    boxes = boxes_on_canvas(rng, ROIS)
    rois, counts, rows = boxes[None], np.array([ROIS], np.int32), torch.from_numpy(boxes)
    cases = []
    for side in (7, 14):
        number = ROIS if side == 7 else 100
        pool = MultiScaleRoIAlign(["0", "1", "2", "3"], side, 2)
        features = OrderedDict((str(i), t) for i, t in enumerate(tensors))

        def ours(values, dtype, channels_last, side=side, number=number):
            shape = (side, side, CHANNELS) if channels_last else (CHANNELS, side, side)
            out = np.empty((1, number, *shape), dtype)
            return lambda: native.roi_align(
                values,
                rois[:, :number],
                np.minimum(counts, number),
                spatial_scales=[1 / s for s in STRIDES],
                output_size=(side, side),
                channels_last=channels_last,
                out=out,
                threads=threads,
            )

        def peer(pool=pool, features=features, number=number):
            return pool(features, [rows[:number]], [(HEIGHT, WIDTH)])

        calls = {
            "ours": ours(last, np.float32, False),
            "torchvision": peer,
            "ours, channels last": ours(last, np.float32, True),
            "ours, channels last bf16": ours(narrow, np.uint16, True),
        }
        agreement = lambda calls=calls, peer=peer: error_of(calls["ours"]()[0], peer().numpy())  # noqa: E731
        cases.append(Case(f"RoIAlign {number}×{CHANNELS}×{side}×{side}, 4 levels", "ours", calls, agreement))

    level, scale = 1, 1 / STRIDES[1]
    node = OneNode(
        "RoiAlign",
        {"x": maps[level], "rois": boxes, "batch": np.zeros(ROIS, np.int64)},
        {"output_height": 7, "output_width": 7, "sampling_ratio": 2, "spatial_scale": scale,
         "coordinate_transformation_mode": "output_half_pixel"},
        threads,
    )  # fmt: skip
    out = np.empty((1, ROIS, CHANNELS, 7, 7), np.float32)
    single = {
        "ours": lambda: native.roi_align(
            last[level : level + 1],
            rois,
            counts,
            spatial_scales=[scale],
            output_size=(7, 7),
            out=out,
            threads=threads,
        ),
        "torchvision": lambda: torchvision_roi_align(tensors[level], [rows], 7, scale, 2),
        "ONNX Runtime": node.onnxruntime(),
        "OpenVINO": node.openvino(),
    }
    name = f"RoIAlign {ROIS}×{CHANNELS}×7×7, one level"
    cases.append(Case(name, "ours", single, lambda: error_of(single["ours"]()[0], single["torchvision"]().numpy())))
    return cases


def nms_cases(threads: int) -> list[Case]:
    rng = np.random.default_rng(1)
    number, iou = 5000, 0.7
    boxes = boxes_on_canvas(rng, number)
    scores = np.sort(rng.random(number).astype(np.float32))[::-1].copy()
    tensor, tensor_scores = torch.from_numpy(boxes), torch.from_numpy(scores)
    one_class = np.zeros((1, number), np.int32)
    node = OneNode(
        "NonMaxSuppression",
        {
            "boxes": boxes[None],
            "scores": scores[None, None],
            "most": np.array([number], np.int64),
            "iou": np.array([iou], np.float32),
        },
        {},
        threads,
    )
    calls = {
        "ours": lambda: native.nms(boxes[None], one_class, iou_threshold=iou, threads=threads),
        "torchvision": lambda: torchvision_nms(tensor, tensor_scores, iou),
        "ONNX Runtime": node.onnxruntime(),
        "OpenVINO": node.openvino(),
    }

    def agreement() -> str:
        found = np.flatnonzero(calls["ours"]()[0])
        return "equal" if np.array_equal(found, calls["torchvision"]().numpy()) else "different boxes"

    many, labels = 4096, rng.integers(0, CLASSES, 4096).astype(np.int32)
    tensor_labels = torch.from_numpy(labels)
    classes = {
        "ours": lambda: native.nms(boxes[None, :many], labels[None], iou_threshold=0.5, threads=threads),
        "torchvision": lambda: batched_nms(tensor[:many], tensor_scores[:many], tensor_labels, 0.5),
    }

    def of_classes() -> str:
        ours, theirs = np.flatnonzero(classes["ours"]()[0]), np.sort(classes["torchvision"]().numpy())
        return f"{len(np.intersect1d(ours, theirs)) / len(np.union1d(ours, theirs)):.2%} of the boxes"

    return [
        Case(f"NMS, {number} boxes", "ours", calls, agreement),
        Case(f"NMS, {many} boxes of {CLASSES} classes", "ours", classes, of_classes),
    ]


def proposals_cases(threads: int) -> list[Case]:
    rng = np.random.default_rng(2)
    shapes = [(HEIGHT // s, WIDTH // s) for s in (*STRIDES, 64)]
    sizes = tuple((32 * 2**i,) for i in range(5))
    generator = AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * 5)
    images = ImageList(torch.zeros(1, 3, HEIGHT, WIDTH), [(HEIGHT, WIDTH)])
    all_anchors = generator(images, [torch.zeros(1, 1, *shape) for shape in shapes])[0]
    counts = [3 * h * w for h, w in shapes]
    anchors = [part.numpy() for part in all_anchors.split(counts)]
    logits = [rng.normal(-4, 2, (1, count)).astype(np.float32) for count in counts]
    deltas = [rng.normal(0, 0.2, (1, count, 4)).astype(np.float32) for count in counts]
    sizes_array = np.array([[HEIGHT, WIDTH]], np.int32)
    head = rpn.RegionProposalNetwork(
        generator, torch.nn.Identity(), 0.7, 0.3, 256, 0.5, {"testing": 1000, "training": 1000},
        {"testing": 1000, "training": 1000}, 0.7,
    ).eval()  # fmt: skip
    objectness = torch.from_numpy(np.concatenate(logits, 1)).reshape(-1, 1)
    flat_deltas = torch.from_numpy(np.concatenate(deltas, 1)).reshape(-1, 4)

    def theirs():
        decoded = head.box_coder.decode(flat_deltas, [all_anchors]).view(1, -1, 4)
        return head.filter_proposals(decoded, objectness, [(HEIGHT, WIDTH)], counts)

    def ours():
        return native.proposals(
            logits, deltas, anchors, sizes_array, pre_nms=1000, post_nms=1000, iou_threshold=0.7, threads=threads
        )

    def agreement() -> str:
        found, expected = ours(), theirs()[0][0].numpy()
        rois = found.rois[0, : found.counts[0]]
        if rois.shape != expected.shape:
            return f"{len(rois)} proposals, theirs {len(expected)}"
        return f"{np.abs(rois - expected).max(1).__lt__(0.01).mean():.1%} of the proposals"

    name = f"proposals, {sum(counts):,} anchors"
    return [Case(name, "ours", {"ours": ours, "torchvision": theirs}, agreement)]


def detections_cases(threads: int) -> list[Case]:
    rng = np.random.default_rng(3)
    logits = rng.normal(0, 1, (1, ROIS, CLASSES + 1)).astype(np.float32)
    logits[..., 0] += 4
    for roi in range(0, ROIS, 3):
        logits[0, roi, 1 + rng.integers(CLASSES)] += 7
    deltas = rng.normal(0, 0.5, (1, ROIS, 4 * (CLASSES + 1))).astype(np.float32)
    rois = boxes_on_canvas(rng, ROIS)[None]
    counts, sizes = np.array([ROIS], np.int32), np.array([[HEIGHT, WIDTH]], np.int32)
    heads = roi_heads.RoIHeads(
        None, None, None, 0.5, 0.5, 512, 0.25, None, score_thresh=0.05, nms_thresh=0.5, detections_per_img=100
    ).eval()
    tensors = [torch.from_numpy(array) for array in (logits[0], deltas[0], rois[0])]

    def ours():
        return native.detections(
            logits, deltas, rois, counts, sizes,
            score_threshold=0.05, iou_threshold=0.5, max_detections=100, candidates=3840, threads=threads,
        )  # fmt: skip

    def theirs():
        return heads.postprocess_detections(tensors[0], tensors[1], [tensors[2]], [(HEIGHT, WIDTH)])

    def agreement() -> str:
        found, (_, scores, labels) = ours(), [values[0].numpy() for values in theirs()]
        pairs = set(zip(labels.tolist(), np.round(scores, 4).tolist(), strict=True))
        mine = set(zip(found.labels[0].tolist(), np.round(found.scores[0], 4).tolist(), strict=True))
        return f"{len(pairs & mine) / max(len(pairs), 1):.0%} of the detections"

    name = f"detections, {ROIS} RoIs × {CLASSES} classes"
    return [Case(name, "ours", {"ours": ours, "torchvision": theirs}, agreement)]
