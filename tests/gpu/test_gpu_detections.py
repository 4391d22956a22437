"""Detections on a GPU are the reference's, bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from values import TOLERANCES, boxes_in, typed, widened

from regionrt.plugins.detections.reference import detections as reference
from regionrt.runtime.gpu.detections import detections, detections_workspace

TYPES = ("int32", "float32", "float32", "int32", "int32", "int32")


def run_and_compare(gpu, rows, classes, dtype="float32", images=2, spread=2.0, **options: Any) -> None:
    rng = np.random.default_rng(rows + classes)
    options = {
        "score_threshold": 0.05,
        "iou_threshold": 0.5,
        "max_detections": 100,
        "candidates": 3840,
        "min_size": 1e-2,
        "box_weights": (10.0, 10.0, 5.0, 5.0),
        "class_agnostic": False,
    } | options
    if not gpu.large:
        rows, classes = min(rows, 40), min(classes, 9)
        options |= {"candidates": min(options["candidates"], 200), "max_detections": min(options["max_detections"], 30)}
    logits = typed(rng.normal(0, spread, (images, rows, classes + 1)), dtype)
    deltas = typed(rng.normal(0, 1, (images, rows, 4 if options["class_agnostic"] else 4 * (classes + 1))), dtype)
    rois = boxes_in(rng, (images, rows), 640)
    counts = rng.integers(rows // 2, rows + 1, images).astype(np.int32)
    counts[-1] = 0 if images > 2 else counts[-1]
    for image, count in enumerate(counts):
        rois[image, count:] = np.nan
    sizes = rng.integers(300, 640, (images, 2)).astype(np.int32)
    expected = reference(widened(logits), widened(deltas), rois, counts, sizes, **options)
    most = options["max_detections"]
    shapes = ((images,), (images, most, 4), *[(images, most)] * 3, (images,))
    out = [gpu.empty(shape, kind) for shape, kind in zip(shapes, TYPES, strict=True)]
    room = gpu.empty((detections_workspace(images, rows, classes, options["candidates"]),), "uint8")
    inputs = [gpu.put(logits, dtype), gpu.put(deltas, dtype), *map(gpu.put, (rois, counts, sizes))]
    gpu.run(detections(gpu.kernels, *inputs, out, room.address, **options))
    for name, array, wanted in zip(expected._fields, out, expected, strict=True):
        np.testing.assert_array_equal(gpu.get(array), wanted, err_msg=name)


@pytest.mark.parametrize("dtype", list(TOLERANCES))
@pytest.mark.parametrize("classes", [1, 20, 90])
def test_the_reference(gpu, classes, dtype):
    run_and_compare(gpu, 1000 if classes < 90 else 300, classes, dtype)


@pytest.mark.parametrize(
    "options",
    [
        {"max_detections": 1},
        {"max_detections": 400},
        {"candidates": 37},
        {"candidates": 4096, "score_threshold": 0.0},
        {"score_threshold": 0.99},
        {"iou_threshold": 0.0},
        {"min_size": 60.0},
        {"class_agnostic": True},
        {"spread": 0.0, "score_threshold": 0.01},  # all scores equal
        {"images": 3},
        {"box_weights": (1.0, 2.0, 3.0, 4.0)},
    ],
)
def test_options(gpu, options):
    run_and_compare(gpu, 300, 20, **options)
