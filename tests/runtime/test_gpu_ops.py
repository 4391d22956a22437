"""The faces of the CUDA kernels on a fake GPU: the real kernels' results, and what they refuse."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from on_gpu import FakeGpu

from regionrt.plugins.detections.reference import detections as reference_detections
from regionrt.plugins.nms.reference import nms as reference_nms
from regionrt.plugins.proposals.reference import proposals as reference_proposals
from regionrt.plugins.roi_align.reference import roi_align as reference_roi_align
from regionrt.runtime import native
from regionrt.runtime.errors import BackendError
from regionrt.runtime.gpu.detections import detections, detections_workspace
from regionrt.runtime.gpu.masks import mask_paste
from regionrt.runtime.gpu.nms import nms
from regionrt.runtime.gpu.proposals import proposals, proposals_workspace
from regionrt.runtime.gpu.roi_align import roi_align

# float32: sums of a few dozen terms; 16 bits: the result is rounded once to its type
TOLERANCES = {"float32": 1e-5, "float16": 2e-3, "bfloat16": 1e-2}


@pytest.fixture
def gpu() -> FakeGpu:
    return FakeGpu()


def typed(values: np.ndarray, dtype: str) -> np.ndarray:
    if dtype == "bfloat16":
        return native.narrowed(values.astype(np.float32), np.dtype(np.uint16))
    return values.astype(dtype)


def widened(values: np.ndarray) -> np.ndarray:
    return native.widened(values) if values.dtype == np.uint16 else values.astype(np.float32)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", list(TOLERANCES))
@pytest.mark.parametrize("levels", [1, 3, 5])
def test_roi_align(gpu: FakeGpu, dtype: str, channels_last: bool, levels: int) -> None:
    rng = np.random.default_rng(levels)
    images, rows, channels, size = 2, 4, 8, (3, 2)
    shapes = [(images, channels, 40 // 2**level + 1, 48 // 2**level) for level in range(levels)]
    maps = [typed(rng.standard_normal(shape), dtype) for shape in shapes]
    corners = rng.uniform(-20, 170, (images, rows, 2, 2)).astype(np.float32)
    rois = np.concatenate([corners.min(2), corners.max(2)], -1)
    counts = np.array([rows, 2], np.int32)
    options: dict[str, Any] = {
        "spatial_scales": [0.25 / 2**level for level in range(levels)],
        "output_size": size,
        "sampling_ratio": 2,
        "aligned": False,
        "mode": "avg",
        "canonical_scale": 60.0,
        "canonical_level": 3,
    }
    expected = reference_roi_align([widened(m) for m in maps], rois, counts, **options)
    order = (0, 2, 3, 1) if channels_last else (0, 1, 2, 3)
    placed = [gpu.put(np.ascontiguousarray(m.transpose(order)), dtype) for m in maps]
    out = gpu.empty((images, rows, *size, channels) if channels_last else (images, rows, channels, *size), dtype)
    gpu.run(roi_align(gpu.kernels, placed, gpu.put(rois), gpu.put(counts), out, channels_last=channels_last, **options))
    found = widened(gpu.get(out))
    found = found.transpose(0, 1, 4, 2, 3) if channels_last else found
    np.testing.assert_allclose(found, expected, atol=TOLERANCES[dtype] * np.abs(expected).max(), rtol=0)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_proposals(gpu: FakeGpu, dtype: str) -> None:
    rng = np.random.default_rng(3)
    images, anchor_counts = 2, [90, 24, 7]
    logits = [typed(rng.normal(0, 3, (images, a)), dtype) for a in anchor_counts]
    deltas = [typed(rng.normal(0, 0.5, (images, a, 4)), dtype) for a in anchor_counts]
    anchors = []
    for count in anchor_counts:
        center, half = rng.uniform(-20, 150, (count, 2)), rng.uniform(1, 40, (count, 2))
        anchors.append(np.concatenate([center - half, center + half], 1).astype(np.float32))
    sizes = np.array([[100, 120], [64, 40]], np.int32)
    options: dict[str, Any] = {
        "pre_nms": 50,
        "post_nms": 30,
        "iou_threshold": 0.6,
        "score_threshold": 0.1,
        "min_size": 2.0,
        "box_weights": (1.0, 2.0, 1.0, 0.5),
    }
    expected = reference_proposals(*([widened(v) for v in of] for of in (logits, deltas)), anchors, sizes, **options)
    out = gpu.empty((images, 30, 4), "float32"), gpu.empty((images, 30), "float32"), gpu.empty((images,), "int32")
    workspace = gpu.empty((proposals_workspace(images, anchor_counts, 50),), "uint8")
    placed = [[gpu.put(values, dtype) for values in of] for of in (logits, deltas)]
    gpu.run(
        proposals(
            gpu.kernels, *placed, [gpu.put(a) for a in anchors], gpu.put(sizes), out, workspace.address, **options
        )
    )
    for array, reference in zip(out, expected, strict=True):
        np.testing.assert_array_equal(gpu.get(array), reference)


@pytest.mark.parametrize("class_agnostic", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_detections(gpu: FakeGpu, dtype: str, class_agnostic: bool) -> None:
    rng = np.random.default_rng(5)
    images, rows, classes, most = 2, 30, 4, 12
    logits = typed(rng.normal(0, 2, (images, rows, classes + 1)), dtype)
    deltas = typed(rng.normal(0, 1, (images, rows, 4 if class_agnostic else 4 * (classes + 1))), dtype)
    corners = rng.uniform(-10, 100, (images, rows, 2))
    rois = np.concatenate([corners, corners + rng.uniform(0, 50, (images, rows, 2))], -1).astype(np.float32)
    counts, sizes = np.array([rows, 11], np.int32), np.array([[100, 120], [64, 90]], np.int32)
    options: dict[str, Any] = {
        "score_threshold": 0.1,
        "iou_threshold": 0.4,
        "max_detections": most,
        "candidates": 60,
        "min_size": 3.0,
        "box_weights": (10.0, 9.0, 5.0, 4.0),
        "class_agnostic": class_agnostic,
    }
    expected = reference_detections(widened(logits), widened(deltas), rois, counts, sizes, **options)
    shapes = ((images,), (images, most, 4), *[(images, most)] * 3, (images,))
    types = ("int32", "float32", "float32", "int32", "int32", "int32")
    out = [gpu.empty(shape, kind) for shape, kind in zip(shapes, types, strict=True)]
    workspace = gpu.empty((detections_workspace(images, rows, classes, 60),), "uint8")
    inputs = [gpu.put(logits, dtype), gpu.put(deltas, dtype), *map(gpu.put, (rois, counts, sizes))]
    gpu.run(detections(gpu.kernels, *inputs, out, workspace.address, **options))
    for array, reference in zip(out, expected, strict=True):
        np.testing.assert_array_equal(gpu.get(array), reference)


def test_nms(gpu: FakeGpu) -> None:
    rng = np.random.default_rng(7)
    corners = rng.integers(0, 40, (2, 90, 2))
    boxes = np.concatenate([corners, corners + rng.integers(1, 15, (2, 90, 2))], -1).astype(np.float32)
    classes = rng.integers(-1, 3, (2, 90)).astype(np.int32)
    keep = gpu.empty((2, 90), "uint8")
    gpu.run(nms(gpu.kernels, gpu.put(boxes), gpu.put(classes), keep, iou_threshold=0.3, num_classes=3))
    np.testing.assert_array_equal(gpu.get(keep), reference_nms(boxes, classes, iou_threshold=0.3))


def test_masks(gpu: FakeGpu) -> None:
    rng = np.random.default_rng(9)
    masks = rng.uniform(0, 1, (3, 14, 14)).astype(np.float32)
    boxes = np.array([[0, 0, 40, 30], [-8, 5, 20, 60], [90, 90, 95, 99]], np.float32)
    out = gpu.empty((3, 33, 47), "uint8")
    gpu.run(mask_paste(gpu.kernels, gpu.put(masks), gpu.put(boxes), out))
    np.testing.assert_array_equal(gpu.get(out), native.paste_masks(masks, boxes, (33, 47)))


def test_nothing_to_do_is_no_launch(gpu: FakeGpu) -> None:
    features, rois = gpu.empty((1, 8, 4, 4), "float32"), gpu.empty((1, 0, 4), "float32")
    counts, out = gpu.put(np.zeros(1, np.int32)), gpu.empty((1, 0, 8, 2, 2), "float32")
    gpu.run(roi_align(gpu.kernels, [features], rois, counts, out, spatial_scales=[0.25], output_size=(2, 2)))
    boxes, classes = gpu.empty((1, 0, 4), "float32"), gpu.empty((1, 0), "int32")
    gpu.run(nms(gpu.kernels, boxes, classes, gpu.empty((1, 0), "uint8"), iou_threshold=0.3, num_classes=3))
    masks, boxes = gpu.empty((0, 7, 7), "float32"), gpu.empty((0, 4), "float32")
    gpu.run(mask_paste(gpu.kernels, masks, boxes, gpu.empty((0, 9, 9), "uint8")))
    assert gpu.driver.launched == []


def test_what_the_kernels_do_not_take(gpu: FakeGpu) -> None:
    level, rois, counts = (
        gpu.empty(*of) for of in (((1, 8, 4, 4), "float32"), ((1, 6, 4), "float32"), ((1,), "int32"))
    )
    out = gpu.empty((1, 6, 8, 2, 2), "float32")
    align: dict[str, Any] = {"spatial_scales": [0.25], "output_size": (2, 2)}
    for arguments, options, words in (
        (([level] * 6, rois, counts, out), {"spatial_scales": [0.25] * 6}, "levels of RoIAlign: .* 1 to 5, found 6"),
        (([level], rois, counts, out), {"spatial_scales": [0.25, 0.1]}, "a spatial scale for each of 1 levels"),
        (([level], rois, counts, out), {"mode": "median"}, "mode: expected 'avg' or 'max'"),
        (([level], rois, counts, out), {"output_size": (3, 2)}, r"out: expected the shape \[1, 6, 8, 3, 2\]"),
        (([level], rois, rois, out), {}, "counts: expected int32"),
        (
            ([gpu.empty((1, 8, 4, 4), "int32")], rois, counts, out),
            {},
            "features: expected float32 or float16 or bfloat16",
        ),
        (([level, level], rois, counts, out), {"spatial_scales": [0.25, 0.0625]}, "no stride left out"),
    ):
        with pytest.raises(BackendError, match=words):
            roi_align(gpu.kernels, *arguments, **(align | options))
    logits, deltas, anchors, sizes = (
        gpu.empty(*of) for of in (((1, 9), "float32"), ((1, 9, 4), "float32"), ((9, 4), "float32"), ((1, 2), "int32"))
    )
    boxes = gpu.empty((1, 5, 4), "float32"), gpu.empty((1, 5), "float32"), counts
    limits: dict[str, Any] = {"pre_nms": 5, "post_nms": 5, "iou_threshold": 0.7}
    for levels, options, words in (
        (9, {}, "levels of proposals: .* 1 to 8, found 9"),
        (1, {"pre_nms": 4097}, "pre_nms: .* 1 to 4096, found 4097; export with another limit"),
        (1, {"post_nms": 6}, r"out rois: expected the shape \[1, 6, 4\]"),
    ):
        with pytest.raises(BackendError, match=words):
            proposals(
                gpu.kernels, [logits] * levels, [deltas] * levels, [anchors] * levels, sizes, boxes, 0,
                **(limits | options),
            )  # fmt: skip
    with pytest.raises(BackendError, match=r"candidates: .* 1 to 4096, found 5000"):
        detections(
            gpu.kernels, gpu.empty((1, 6, 4), "float32"), gpu.empty((1, 6, 16), "float32"), rois, counts, sizes, [], 0,
            score_threshold=0.1, iou_threshold=0.5, max_detections=5, candidates=5000,
        )  # fmt: skip
    with pytest.raises(BackendError, match=r"boxes of NMS: .* found 4097"):
        nms(
            gpu.kernels, gpu.empty((1, 4097, 4), "float32"), gpu.empty((1, 4097), "int32"),
            gpu.empty((1, 4097), "uint8"), iou_threshold=0.5, num_classes=2,
        )  # fmt: skip


def test_closed_kernels_are_unloaded(gpu: FakeGpu) -> None:
    gpu.kernels.function("nms", "nms")
    gpu.kernels.function("nms", "nms")
    assert gpu.driver.counts["cuModuleLoadData"] == 1
    gpu.kernels.close()
    assert gpu.driver.modules == {}
