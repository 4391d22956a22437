"""Proposals on a GPU are the reference's, bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from values import TOLERANCES, typed, widened

from regionrt.plugins.proposals.reference import proposals as reference
from regionrt.runtime.gpu.proposals import proposals, proposals_workspace


def run_and_compare(gpu, anchor_counts, dtype="float32", images=2, tied=False, nan=False, **options: Any) -> None:
    rng = np.random.default_rng(sum(anchor_counts))
    options = {
        "pre_nms": 1000,
        "post_nms": 1000,
        "iou_threshold": 0.7,
        "score_threshold": 0.0,
        "min_size": 1e-3,
        "box_weights": (1.0, 1.0, 1.0, 1.0),
    } | options
    if not gpu.large:
        images, anchor_counts = 1, [-(-count // 100) for count in anchor_counts[:3]]  # a fake thread is slow
        options |= {"pre_nms": min(options["pre_nms"], 60), "post_nms": min(options["post_nms"], 50)}
    logits = [rng.normal(0, 3, (images, a)) for a in anchor_counts]
    logits = [typed(np.round(values) if tied else values, dtype) for values in logits]
    if nan:
        logits[0][:, ::3] = np.nan
    deltas = [typed(rng.normal(0, 0.5, (images, a, 4)), dtype) for a in anchor_counts]
    anchors = []
    for count in anchor_counts:
        center, half = rng.uniform(-20, 820, (count, 2)), rng.uniform(4, 150, (count, 2))
        anchors.append(np.concatenate([center - half, center + half], 1).astype(np.float32))
    sizes = rng.integers(300, 800, (images, 2)).astype(np.int32)
    expected = reference(*([widened(v) for v in of] for of in (logits, deltas)), anchors, sizes, **options)
    rows = options["post_nms"]
    out = gpu.empty((images, rows, 4), "float32"), gpu.empty((images, rows), "float32"), gpu.empty((images,), "int32")
    room = gpu.empty((proposals_workspace(images, anchor_counts, options["pre_nms"]),), "uint8")
    placed = [[gpu.put(values, dtype) for values in of] for of in (logits, deltas)]
    anchors_there = [gpu.put(level) for level in anchors]
    gpu.run(proposals(gpu.kernels, *placed, anchors_there, gpu.put(sizes), out, room.address, **options))
    for name, array, wanted in zip(("rois", "scores", "counts"), out, expected, strict=True):
        np.testing.assert_array_equal(gpu.get(array), wanted, err_msg=name)


@pytest.mark.parametrize(("dtype", "tied"), [("float32", True), *((dtype, False) for dtype in TOLERANCES)])
def test_five_levels_of_a_pyramid(gpu, dtype, tied):
    """A fifth of the anchors of 800 × 1088 px: the reference is slow."""
    run_and_compare(gpu, [32640, 8160, 2040, 525, 135], dtype, tied=tied)


@pytest.mark.parametrize(
    "options",
    [
        {"post_nms": 1},
        {"pre_nms": 1},
        {"pre_nms": 2000, "post_nms": 300},
        {"iou_threshold": 0.0},
        {"iou_threshold": 1.0},
        {"score_threshold": 0.9},
        {"score_threshold": 1.1},
        {"min_size": 60.0},
        {"box_weights": (10.0, 10.0, 5.0, 5.0)},
        {"nan": True},
    ],
)
def test_options(gpu, options):
    run_and_compare(gpu, [6000, 900], **options)


@pytest.mark.parametrize("anchor_counts", [[1], [31, 64], [3] * 8])
def test_few_anchors(gpu, anchor_counts):
    run_and_compare(gpu, anchor_counts, images=3, pre_nms=40, post_nms=30)
