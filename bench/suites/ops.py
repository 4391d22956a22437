"""Single ops against torchvision, ONNX Runtime and OpenVINO: each op on the same inputs, interleaved in one process.

`python -m regionrt.bench.suites.ops --out FOLDER` (or `regionrt bench --suite ops --out FOLDER`) writes ops.json and
ops.md. Sizes are those of a Faster or Mask R-CNN R50-FPN on an 800 × 1088 canvas. Each row says how far ours is from
the first peer on these inputs; that every op equals its definition is for the tests to show.
"""

from __future__ import annotations

import argparse
import json
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchvision.models.detection import roi_heads, rpn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import MultiScaleRoIAlign, batched_nms
from torchvision.ops import nms as torchvision_nms
from torchvision.ops import roi_align as torchvision_roi_align

from regionrt.runtime import native
from regionrt.runtime.atomic import write_file_atomic
from regionrt.runtime.clock import TimingOptions, measure
from regionrt.runtime.machine import describe_machine, usable_cores
from regionrt.runtime.native.arrays import narrowed

from .one_node import OneNode

HEIGHT, WIDTH = 800, 1088
STRIDES = (4, 8, 16, 32)
CHANNELS, ROIS, CLASSES = 256, 1000, 90


@dataclass(frozen=True)
class Case:
    """One op on one set of inputs: what each library calls, ours first, and how far ours is from the first peer."""

    name: str
    ours: str
    calls: Mapping[str, Callable[[], Any]]
    agreement: Callable[[], str]


@dataclass(frozen=True)
class Row:
    """Medians in milliseconds by library, and how many times faster ours is than each."""

    name: str
    ours: str
    median_ms: Mapping[str, float]
    times_faster: Mapping[str, float]
    disturbed: Mapping[str, int]
    samples: int
    agreement: str


@dataclass(frozen=True)
class OpsReport:
    """The table, and what it was measured with."""

    machine: Mapping[str, Any]
    threads: int
    native: Mapping[str, Any]
    versions: Mapping[str, str]
    rows: Sequence[Row]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def to_markdown(self) -> str:
        peers = list(OrderedDict.fromkeys(name for row in self.rows for name in row.median_ms if name != row.ours))
        lines = [
            f"Single ops, median ms, {self.threads} threads, {self.machine['processor']}, variant "
            f"{self.native['variant']}; in brackets how many times faster ours is.",
            "",
            f"| op | ours | {' | '.join(peers)} | agreement |",
            f"|---|---|{'---|' * len(peers)}---|",
        ]
        for row in self.rows:
            cells = [
                f"{row.median_ms[peer]:.2f} ({row.times_faster[peer]:.1f}×)" if peer in row.median_ms else ""
                for peer in peers
            ]
            lines.append(f"| {row.name} | {row.median_ms[row.ours]:.2f} | {' | '.join(cells)} | {row.agreement} |")
        return "\n".join([*lines, ""])


def run_ops(seconds: float = 1.0, only: str = "", progress: Callable[[str], None] | None = None) -> OpsReport:
    """Measures every case whose name contains `only`, `seconds` each (at least five rounds)."""
    threads = usable_cores()
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    rows = []
    try:
        with torch.inference_mode():
            for make in CASES:
                for case in make(threads):
                    if only and only not in case.name:
                        continue
                    if progress:
                        progress(case.name)
                    rows.append(_measured(case, seconds))
    finally:
        torch.set_num_threads(before)
    return OpsReport(describe_machine(), threads, asdict(native.about()) | {"path": None}, _versions(), rows)


def _measured(case: Case, seconds: float) -> Row:
    options = TimingOptions(warmup_rounds=2, warmup_seconds=0.0, seconds=seconds, least_rounds=5)
    timings = measure(case.calls, options).timings
    medians = {name: timing.p50_ms for name, timing in timings.items()}
    faster = {name: median / medians[case.ours] for name, median in medians.items() if name != case.ours}
    disturbed = {name: timing.disturbed for name, timing in timings.items()}
    samples = len(timings[case.ours].samples_ms)
    return Row(case.name, case.ours, medians, faster, disturbed, samples, case.agreement())


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("numpy", "torch", "torchvision", "onnxruntime", "openvino")}


def _boxes(rng: np.random.Generator, count: int, least: float = 16, most: float = 500) -> np.ndarray:
    """Of all sizes and places on the canvas, inside it."""
    center = rng.uniform(0, 1, (count, 2)) * (WIDTH, HEIGHT)
    side = np.exp(rng.uniform(np.log(least), np.log(most), (count, 2)))
    boxes = np.concatenate([center - side / 2, center + side / 2], 1).astype(np.float32)
    return np.clip(boxes, 0, np.array([WIDTH, HEIGHT, WIDTH, HEIGHT], np.float32))


def _largest_error(found: np.ndarray, expected: np.ndarray) -> str:
    return f"{np.abs(found - expected).max() / np.abs(expected).max():.0e} of the maximum"


def roi_align_cases(threads: int) -> list[Case]:
    rng = np.random.default_rng(0)
    maps = [rng.standard_normal((1, CHANNELS, HEIGHT // s, WIDTH // s), dtype=np.float32) for s in STRIDES]
    last = [np.ascontiguousarray(m.transpose(0, 2, 3, 1)) for m in maps]
    narrow = [narrowed(m, np.dtype(np.uint16)) for m in last]
    tensors = [torch.from_numpy(m) for m in maps]
    boxes = _boxes(rng, ROIS)
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
        agreement = lambda calls=calls, peer=peer: _largest_error(calls["ours"]()[0], peer().numpy())  # noqa: E731
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
    cases.append(
        Case(name, "ours", single, lambda: _largest_error(single["ours"]()[0], single["torchvision"]().numpy()))
    )
    return cases


def nms_cases(threads: int) -> list[Case]:
    rng = np.random.default_rng(1)
    number, iou = 5000, 0.7
    boxes = _boxes(rng, number)
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
    from torchvision.models.detection.image_list import ImageList

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
    rois = _boxes(rng, ROIS)[None]
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


def mask_cases(threads: int) -> list[Case]:
    from pycocotools import mask as coco

    rng = np.random.default_rng(4)
    number, size = 70, (HEIGHT, WIDTH)
    boxes = _boxes(rng, number, 30, 600)
    y, x = np.mgrid[-1:1:28j, -1:1:28j]
    masks = np.stack([1 / (1 + np.exp(8 * (x**2 + y**2 - r))) for r in rng.uniform(0.4, 1, number)]).astype(np.float32)
    tensors = torch.from_numpy(masks)[:, None], torch.from_numpy(boxes)
    out = np.empty((number, *size), np.uint8)

    def theirs():
        return roi_heads.paste_masks_in_image(*tensors, size) > 0.5

    def encoded():
        pasted = theirs()[:, 0].numpy()
        return [coco.encode(np.asfortranarray(mask.view(np.uint8)))["counts"].decode() for mask in pasted]

    dense = {"ours": lambda: native.paste_masks(masks, boxes, size, out=out, threads=threads), "torchvision": theirs}
    crops = {"ours": lambda: native.paste_crops(masks, boxes, size, threads=threads), "torchvision": theirs}
    text = {"ours": lambda: native.paste_rles(masks, boxes, size, threads=threads), "torchvision": encoded}
    return [
        Case(f"pasting {number} masks, dense", "ours", dense,
             lambda: f"{(dense['ours']() == theirs()[:, 0].numpy()).mean():.4%} of the pixels"),
        Case(f"pasting {number} masks, cut out", "ours", crops, lambda: "as dense"),
        Case(f"pasting {number} masks to RLE", "ours", text,
             lambda: f"{sum(a == b for a, b in zip(text['ours'](), encoded(), strict=True))} of {number} texts"),
    ]  # fmt: skip


def resize_cases(threads: int) -> list[Case]:
    rng = np.random.default_rng(5)
    cases = []
    for (h, w), (height, width) in (((480, 640), (800, 1066)), ((3024, 4032), (800, 1066))):
        image = rng.integers(0, 256, (h, w, 3), dtype=np.uint8)
        out = np.empty((height, width, 3), np.uint8)

        def ours(image=image, height=height, width=width, out=out):
            return native.resize_bilinear(image, height, width, out=out, threads=threads)

        def theirs(image=image, size=(height, width)):
            values = torch.from_numpy(image).permute(2, 0, 1)[None].float()
            resized = torch.nn.functional.interpolate(values, size, mode="bilinear", align_corners=False)
            return resized.round_().byte()[0].permute(1, 2, 0).contiguous()

        calls = {"ours": ours, "torchvision": theirs}
        same = lambda calls=calls: f"{(calls['ours']() == calls['torchvision']().numpy()).mean():.3%} of the values"  # noqa: E731
        cases.append(Case(f"resize {h}×{w} → {height}×{width}", "ours", calls, same))
    return cases


def unpool_cases(threads: int) -> list[Case]:
    """The first pooling of SegNet on half a CamVid frame, and the way back."""
    x = np.random.default_rng(6).standard_normal((1, 64, 180, 240), np.float32)
    tensor = torch.from_numpy(x)
    values, argmax = native.max_pool(x, kernel=2, stride=2, threads=threads)
    held, out = native.MaxPooled(np.empty_like(values), np.empty_like(argmax)), np.empty_like(x)
    pooled, flat = torch.nn.functional.max_pool2d(tensor, 2, 2, return_indices=True)
    pooling = {
        "ours": lambda: native.max_pool(x, kernel=2, stride=2, out=held, threads=threads).values,
        "torchvision": lambda: torch.nn.functional.max_pool2d(tensor, 2, 2, return_indices=True)[0],
    }
    back = {
        "ours": lambda: native.max_unpool(
            values, argmax, kernel=2, stride=2, size=x.shape[2:], out=out, threads=threads
        ),
        "torchvision": lambda: torch.nn.functional.max_unpool2d(pooled, flat, 2, 2),
    }

    def same(calls: Mapping[str, Callable[[], Any]]) -> str:
        return "equal" if np.array_equal(calls["ours"](), calls["torchvision"]().numpy()) else "different values"

    return [
        Case("max pooling with places 64×180×240", "ours", pooling, lambda: same(pooling)),
        Case("max unpooling 64×180×240", "ours", back, lambda: same(back)),
    ]


CASES: Sequence[Callable[[int], list[Case]]] = (
    roi_align_cases,
    nms_cases,
    proposals_cases,
    detections_cases,
    mask_cases,
    resize_cases,
    unpool_cases,
)


def write(report: OpsReport, folder: Path) -> list[Path]:
    """ops.json and ops.md in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / "ops.json", folder / "ops.md"]
    write_file_atomic(files[0], json.dumps(report.to_json(), indent=1) + "\n")
    write_file_atomic(files[1], report.to_markdown())
    return files


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m regionrt.bench.suites.ops", description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, help="folder for ops.json and ops.md; default: only print")
    parser.add_argument("--seconds", type=float, default=1.0, help="of measurement for each case")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    options = parser.parse_args(arguments)
    report = run_ops(options.seconds, options.only)
    if options.out:
        write(report, options.out)
    print(report.to_markdown())


if __name__ == "__main__":
    main()
