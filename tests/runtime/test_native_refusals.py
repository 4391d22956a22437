"""Bad input of native ops: the same refusal from the compiled library and from NumPy."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from native_calls import (
    VARIANTS,
    align,
    crop,
    crowd,
    detect,
    heads,
    maps,
    max_pool,
    merge,
    pool,
    propose,
    pyramid,
    rois,
    rpn,
)

from regionrt.runtime import native

BAD = {
    "a map of float64 to pool": (lambda: pool(maps()[0].astype(np.float64)), "float32, or bf16"),
    "a map that is too long": (
        lambda: native.roi_pool(
            np.zeros((1, 1, 4097, 1), np.float32), rois(1)[0], rois(1)[1], spatial_scale=1.0, output_size=(1, 1)
        ),
        "at most 4096 cells",
    ),
    "nine levels": (lambda: pyramid(bins=[1] * 9), "bins: expected 1 to 8 levels"),
    "no levels": (lambda: pyramid(bins=[]), "bins: expected 1 to 8 levels"),
    "a level of no bins": (lambda: pyramid(bins=[3, 0]), "bins: expected a whole number ≥ 1"),
    "images of uint8": (lambda: crop(np.zeros((2, 9, 9, 3), np.uint8)), "float32, or bf16"),
    "nothing but context": (lambda: crop(context=10), "context: expected less than half"),
    "a negative context": (lambda: crop(context=-1), "context: expected a whole number ≥ 0"),
    "a scale of 0": (lambda: pool(spatial_scale=0.0), "spatial_scale: expected a number > 0"),
    "no bins to pool": (lambda: pool(output_size=(3, 0)), "output_size"),
    "a map of float64": (lambda: align([m.astype(np.float64) for m in maps()]), "float32, or bf16"),
    "maps of two types": (lambda: align([maps()[0], maps(ml_dtypes.bfloat16)[1]]), r"features\[1\]: expected float32"),
    "channels first": (lambda: align([m.transpose(0, 3, 1, 2) for m in maps()]), r"features\[1\]: expected the shape"),
    "an unknown mode": (lambda: align(mode="median"), "'avg' or 'max'"),
    "no bins": (lambda: align(output_size=(0, 7)), "output_size"),
    "a stride left out": (lambda: align(spatial_scales=[1 / 4, 1 / 16]), "no stride left out"),
    "too few scales": (lambda: align(spatial_scales=[1 / 4]), "a spatial scale for each level"),
    "no threads": (lambda: align(threads=0), "threads"),
    "an out of another shape": (lambda: align(out=np.empty((2, 23, 37, 5, 3), np.float32)), "out: expected"),
    "an out in Fortran's order": (lambda: align(out=np.empty((5, 3, 37, 23, 2), np.float32).T), "C order"),
    "more RoIs than rows": (
        lambda: native.roi_align(
            maps(), rois()[0], np.array([24, 1], np.int32), spatial_scales=[1 / 4, 1 / 8], output_size=(7, 7)
        ),
        "counts: expected 0 to 23",
    ),
    "negative counts": (
        lambda: native.detections(
            *heads()[:3], np.array([-1, 1], np.int32), heads()[4],
            score_threshold=0.1, iou_threshold=0.5, max_detections=5, candidates=5,
        ),
        "counts: expected 0 to 150",
    ),
    "int64 classes": (lambda: native.nms(crowd()[0], crowd()[1].astype(np.int64), iou_threshold=0.5), "expected int32"),
    "an IoU of 2": (lambda: native.nms(*crowd(), iou_threshold=2.0), "iou_threshold: expected 0 to 1"),
    "an IoU of NaN": (lambda: native.nms(*crowd(), iou_threshold=float("nan")), "iou_threshold: expected 0 to 1"),
    "a list": (lambda: native.nms([[1, 2, 3, 4]], crowd()[1], iou_threshold=0.5), "expected a NumPy array, got list"),
    "no proposals wanted": (lambda: propose(post_nms=0), "post_nms: expected a whole number ≥ 1"),
    "weights of zero": (lambda: propose(box_weights=(1, 1, 0, 1)), "box_weights"),
    "levels that do not match": (
        lambda: native.proposals(
            rpn()[0], rpn()[1][:2], rpn()[2], np.ones((2, 2), np.int32), pre_nms=5, post_nms=5, iou_threshold=0.5
        ),
        "as many levels",
    ),
    "edges of another class count": (lambda: merge(class_agnostic=False), "box_edges: expected the shape"),
    "merging beyond all": (lambda: merge(merge_threshold=2.5), "merge_threshold: expected 0 to 2"),
    "no boxes to merge": (lambda: merge(candidates=0), "candidates: expected a whole number ≥ 1"),
    "deltas of another class count": (lambda: detect(class_agnostic=True), "box_deltas: expected the shape"),
    "windows that overlap": (
        lambda: native.max_pool(np.zeros((1, 1, 8, 8), np.float32), kernel=3, stride=2),
        "stride: expected at least the kernel, 3",
    ),
    "a map without a window": (
        lambda: native.max_pool(np.zeros((1, 1, 1, 8), np.float32), kernel=2, stride=2),
        "x: expected a map of at least 2 cells each way, got 1 × 8",
    ),
    "a size of more windows": (
        lambda: native.max_unpool(*max_pool(), kernel=2, stride=2, size=(75, 140)),
        "size: expected 133 to 135 cells for 67 windows, got 140",
    ),
    "places of another shape": (
        lambda: native.max_unpool(max_pool()[0], max_pool()[1][:1], kernel=2, stride=2, size=(75, 133)),
        "argmax: expected the shape",
    ),
    "a threshold of −1": (lambda: detect(score_threshold=-1.0), "score_threshold"),
}  # fmt: skip


@pytest.mark.parametrize("variant", dict.fromkeys((VARIANTS[0], "numpy")))
@pytest.mark.parametrize(("call", "message"), BAD.values(), ids=BAD.keys())
def test_what_is_refused(call, message, variant):
    with native.using(variant), pytest.raises(ValueError, match=message):
        call()
