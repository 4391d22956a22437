"""The CUDA kernels of proposals, detections and mask pasting, run on the CPU, against their references."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels import bits, launch, thread_order  # noqa: F401 (a fixture)

from regionrt.plugins.detections.reference import detections
from regionrt.plugins.proposals.reference import proposals
from regionrt.runtime.gpu.detections import DetectionsCall
from regionrt.runtime.gpu.proposals import ProposalsCall
from regionrt.runtime.masks import full_mask, paste_crop

LEVELS = 8
POINTER, INT, FLOAT = ctypes.c_void_p, ctypes.c_int32, ctypes.c_float


def rubbish(shape: Any, dtype: Any = np.float32) -> np.ndarray:
    """Memory as a GPU hands it out: NaN, or numbers that are nobody's."""
    return np.full(shape, np.nan if dtype == np.float32 else -123456789, dtype)


def address(array: np.ndarray) -> int:
    return array.ctypes.data


def run_proposals(
    logits, deltas, anchors, sizes, *, pre_nms, post_nms, iou_threshold, score_threshold, min_size, box_weights
):
    images, levels = len(sizes), len(logits)
    words = -(-pre_nms // 32)
    work = (
        rubbish((images, levels, 16, 2048), np.int32),
        rubbish((images, levels), np.int32),
        rubbish((images, sum(len(a) for a in anchors)), np.int64),
        rubbish((images, levels, pre_nms, 4)),
        rubbish((images, levels, pre_nms)),
        rubbish((images, levels, words), np.int32),
        rubbish((images, levels, words, pre_nms), np.int32),
        rubbish((images, levels), np.int32),
    )
    out = rubbish((images, post_nms, 4)), rubbish((images, post_nms)), rubbish(images, np.int32)
    pointers = [(POINTER * LEVELS)(*map(address, arrays)) for arrays in (logits, deltas, anchors)]
    counts = (INT * LEVELS)(*(a.shape[0] for a in anchors))
    call = ProposalsCall(
        *pointers,
        *map(address, (sizes, *work, *out)),
        counts,
        iou_threshold,
        score_threshold,
        min_size,
        (FLOAT * 4)(*box_weights),
        levels,
        pre_nms,
        post_nms,
    )
    launch("proposals", "proposals_histogram_f32", (16, levels, images), 64, [call])
    launch("proposals", "proposals_candidates_f32", (16, levels, images), 64, [call])
    launch("proposals", "proposals_decoded_f32", (levels, images), 128, [call])
    launch("proposals", "proposals_overlaps", (words * -(-pre_nms // 256), levels, images), 256, [call])
    launch("proposals", "proposals_suppressed", (levels, images), 128, [call])
    launch("proposals", "proposals_merged", (1, images), 128, [call])
    return out


def check_proposals(seed: int, sides: list[int], images: int = 2, tied: bool = False, **options: Any) -> None:
    rng = np.random.default_rng(seed)
    options = {
        "pre_nms": 40,
        "post_nms": 30,
        "iou_threshold": 0.6,
        "score_threshold": 0.0,
        "min_size": 1e-3,
        "box_weights": (1.0, 1.0, 1.0, 1.0),
    } | options
    logits = [rng.normal(0, 3, (images, a)).astype(np.float32) for a in sides]
    if tied:
        logits = [np.round(values) for values in logits]
    deltas = [rng.normal(0, 0.5, (images, a, 4)).astype(np.float32) for a in sides]
    anchors = []
    for count in sides:
        center, half = rng.uniform(-20, 150, (count, 2)), rng.uniform(1, 40, (count, 2))
        anchors.append(np.concatenate([center - half, center + half], 1).astype(np.float32))
    sizes = rng.integers(30, 140, (images, 2)).astype(np.int32)
    expected = proposals(logits, deltas, anchors, sizes, **options)
    found = run_proposals(logits, deltas, anchors, sizes, **options)
    for name, value, reference in zip(("rois", "scores", "counts"), found, expected, strict=True):
        np.testing.assert_array_equal(value, reference, err_msg=name)


@pytest.mark.usefixtures("thread_order")
@pytest.mark.parametrize("sides", [[1], [31, 64], [300, 90, 20], [700], [5, 4, 3, 2, 1], [3] * 8])
def test_proposals(sides: list[int]) -> None:
    check_proposals(1, sides)


@pytest.mark.parametrize(
    "options",
    [
        {"post_nms": 1},
        {"pre_nms": 1},
        {"pre_nms": 500, "post_nms": 500},
        {"iou_threshold": 0.0},
        {"iou_threshold": 1.0},
        {"score_threshold": 0.9},
        {"score_threshold": 1.1},
        {"min_size": 30.0},
        {"box_weights": (10.0, 10.0, 5.0, 5.0)},
    ],
)
@pytest.mark.parametrize("tied", [False, True])
def test_options_of_proposals(options: dict[str, Any], tied: bool) -> None:
    check_proposals(2, [260, 75], tied=tied, **options)


def test_more_equal_scores_than_can_be_sorted_at_once() -> None:
    """All scores lie in one bin of the histogram and are equal: the first of them, in order, are the best."""
    rng = np.random.default_rng(5)
    center, half = rng.uniform(0, 100, (5000, 2)), rng.uniform(1, 10, (5000, 2))
    anchors = [np.concatenate([center - half, center + half], 1).astype(np.float32)]
    logits = [np.where(rng.uniform(size=(1, 5000)) < 0.01, 1.5, 1.25).astype(np.float32)]
    deltas, sizes = [np.zeros((1, 5000, 4), np.float32)], np.array([[100, 100]], np.int32)
    options = {"pre_nms": 300, "post_nms": 300, "iou_threshold": 0.5, "score_threshold": 0.0, "min_size": 1e-3}
    options |= {"box_weights": (1, 1, 1, 1)}
    expected = proposals(logits, deltas, anchors, sizes, **options)
    for value, reference in zip(run_proposals(logits, deltas, anchors, sizes, **options), expected, strict=True):
        np.testing.assert_array_equal(value, reference)


def test_nan_logits_come_last() -> None:
    logits = [np.array([[np.nan, 1, np.nan, 3, -np.inf, np.inf]], np.float32)]
    anchors = [np.array([[10 * i, 5, 10 * i + 9, 20] for i in range(6)], np.float32)]
    deltas, sizes = [np.zeros((1, 6, 4), np.float32)], np.array([[100, 100]], np.int32)
    options = {"pre_nms": 5, "post_nms": 6, "iou_threshold": 0.5, "score_threshold": 0.0, "min_size": 1e-3}
    options |= {"box_weights": (1, 1, 1, 1)}
    expected = proposals(logits, deltas, anchors, sizes, **options)
    for value, reference in zip(run_proposals(logits, deltas, anchors, sizes, **options), expected, strict=True):
        np.testing.assert_array_equal(value, reference)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    sides=st.lists(st.integers(1, 120), min_size=1, max_size=4),
    pre_nms=st.integers(1, 150),
    post_nms=st.integers(1, 150),
    iou_threshold=st.floats(0, 1, width=32),
    score_threshold=st.sampled_from([0.0, 0.5]),
    tied=st.booleans(),
)
def test_any_proposals(seed, sides, tied, **options) -> None:
    check_proposals(seed, sides, 1, tied, **options)


def check_detections(
    seed: int, images: int = 2, rows: int = 40, classes: int = 5, spread: float = 2, **options: Any
) -> None:
    rng = np.random.default_rng(seed)
    options = {
        "score_threshold": 0.05,
        "iou_threshold": 0.5,
        "max_detections": 20,
        "candidates": 300,
        "min_size": 1e-2,
        "box_weights": (10.0, 10.0, 5.0, 5.0),
        "class_agnostic": False,
    } | options
    logits = rng.normal(0, spread, (images, rows, classes + 1)).astype(np.float32)
    groups = 1 if options["class_agnostic"] else classes + 1
    deltas = rng.normal(0, 1, (images, rows, 4 * groups)).astype(np.float32)
    corners = rng.uniform(-10, 120, (images, rows, 2))
    rois = np.concatenate([corners, corners + rng.uniform(0, 50, (images, rows, 2))], -1).astype(np.float32)
    counts = rng.integers(0, rows + 1, images).astype(np.int32)
    counts[0] = rows
    for n in range(images):
        logits[n, counts[n] :] = deltas[n, counts[n] :] = rois[n, counts[n] :] = np.nan
    sizes = rng.integers(60, 140, (images, 2)).astype(np.int32)
    expected = detections(logits, deltas, rois, counts, sizes, **options)

    most, cap = options["max_detections"], options["candidates"]
    words = -(-cap // 32)
    work = (
        rubbish((images, rows, classes), np.int64),
        rubbish((images, rows), np.int32),
        rubbish((images, cap), np.int64),
        rubbish(images, np.int32),
        rubbish((images, cap, 4)),
        rubbish((images, cap), np.int32),
        rubbish((images, words), np.int32),
        rubbish((images, words, cap), np.int32),
    )
    number, overflow = rubbish(images, np.int32), rubbish(images, np.int32)
    boxes, scores = rubbish((images, most, 4)), rubbish((images, most))
    labels, index = rubbish((images, most), np.int32), rubbish((images, most), np.int32)
    out = (number, boxes, scores, labels, index, overflow)
    call = DetectionsCall(
        *map(address, (logits, deltas, rois, counts, sizes, *work, *out)),
        options["score_threshold"],
        options["iou_threshold"],
        options["min_size"],
        (FLOAT * 4)(*options["box_weights"]),
        rows,
        classes,
        cap,
        most,
        options["class_agnostic"],
    )
    launch("detections", "detections_softmax_f32", (-(-rows // 4), images), 128, [call])
    launch("detections", "detections_sorted_f32", (1, images), 128, [call])
    launch("detections", "detections_overlaps", (words * -(-cap // 256), images), 256, [call])
    launch("detections", "detections_selected", (1, images), 128, [call])
    for name, value, reference in zip(expected._fields, out, expected, strict=True):
        np.testing.assert_array_equal(value, reference, err_msg=name)


@pytest.mark.usefixtures("thread_order")
@pytest.mark.parametrize(("rows", "classes"), [(1, 1), (40, 5), (33, 33), (7, 90), (130, 2)])
def test_detections(rows: int, classes: int) -> None:
    check_detections(1, rows=rows, classes=classes)


@pytest.mark.parametrize(
    "options",
    [
        {"max_detections": 1},
        {"max_detections": 400},
        {"candidates": 7},
        {"score_threshold": 0.0, "candidates": 150},
        {"score_threshold": 0.99},
        {"iou_threshold": 0.0},
        {"min_size": 25.0},
        {"class_agnostic": True},
        {"box_weights": (1.0, 2.0, 3.0, 4.0)},
        {"spread": 0.0, "score_threshold": 0.01, "candidates": 50},
        {"images": 1, "rows": 300, "classes": 10, "score_threshold": 0.01, "candidates": 2500},
        {
            "images": 1,
            "rows": 500,
            "classes": 10,
            "score_threshold": 0.0,
            "candidates": 400,
        },  # more than are sorted at once
    ],
)
def test_options_of_detections(options: dict[str, Any]) -> None:
    check_detections(4, **options)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    rows=st.integers(1, 60),
    classes=st.integers(1, 12),
    score_threshold=st.sampled_from([0.0, 0.05, 0.3]),
    max_detections=st.integers(1, 50),
    candidates=st.integers(1, 400),
    class_agnostic=st.booleans(),
)
def test_any_detections(seed, rows, classes, **options) -> None:
    check_detections(seed, 1, rows, classes, **options)


@pytest.mark.usefixtures("thread_order")
@pytest.mark.parametrize("side", [1, 14, 28])
@pytest.mark.parametrize("size", [(1, 1), (37, 53), (64, 20)])
def test_masks_are_pasted(side: int, size: tuple[int, int]) -> None:
    rng = np.random.default_rng(side)
    height, width = size
    corners = rng.uniform(-15, 60, (12, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(0, 70, (12, 2))], -1).astype(np.float32)
    boxes[:2] = [[0, 0, width, height], [500, 500, 510, 520]]
    masks = rng.uniform(0, 1, (12, side, side)).astype(np.float32)
    out = np.full((12, height, width), 0xCB, np.uint8)
    launch("mask_paste", "mask_paste", (2, 12), 256, [masks, boxes, side, height, width, bits(0.5), out])
    for index in range(12):
        expected = full_mask(paste_crop(masks[index], boxes[index], size), size)
        np.testing.assert_array_equal(out[index], expected)
