"""Every op that pools regions, between dense stages: rows of all images, packed, as the stage behind it takes them."""

from __future__ import annotations

import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from regionrt.runtime.backends import staged_buckets
from regionrt.runtime.backends.staged import StagedRunner
from regionrt.runtime.bundle import Artifact, Manifest
from regionrt.runtime.errors import BackendError

ATTRIBUTES = {
    "RegionRoiAlign": {
        "spatial_scales": [0.25], "output_height": 3, "output_width": 2, "sampling_ratio": 2, "aligned": 0,
        "mode": "avg", "canonical_scale": 224.0, "canonical_level": 4,
    },
    "RegionRoiPool": {"spatial_scale": 0.25, "output_height": 3, "output_width": 2},
    "RegionPyramidPool": {"spatial_scale": 0.25, "bins": [4, 2, 1]},
    "RegionWarp": {"output_height": 9, "output_width": 7, "context": 2},
}  # fmt: skip
SHAPES = {"RegionRoiAlign": (5, 3, 2), "RegionRoiPool": (5, 3, 2), "RegionPyramidPool": (105,), "RegionWarp": (5, 9, 7)}
COUNTS = np.array([4, 0, 7], np.int32)
SLOTS = 9


def inputs() -> tuple[np.ndarray, np.ndarray]:
    """A map [3, 11, 8, 5], channels last, and RoIs of three images; those beyond the counts are NaN."""
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 40, (3, SLOTS, 2, 2)).astype(np.float32)
    rois = np.concatenate([corners.min(2), corners.max(2)], -1)
    for image, count in enumerate(COUNTS):
        rois[image, count:] = np.nan
    return rng.standard_normal((3, 11, 8, 5), np.float32), rois


class _Stage:
    """What an engine would compile: `features` gives a map and RoIs, `rows` what it is fed, as masks [R, 1, …]."""

    feature_type = np.dtype(np.float32)

    def __init__(self, name: str) -> None:
        self.name = name
        self.rows = 0

    def session(self) -> _Stage:
        return self

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        if self.name == "features":
            feature, rois = inputs()
            return {"feature": feature, "rois": rois, "counts": COUNTS, "boxes": rois}
        (pooled,) = feeds.values()
        self.rows += len(pooled)
        return {"masks": pooled.reshape(len(pooled), 1, -1)}


class _Engine:
    name, threads = "made", 1

    def open(self, path: Path, stage: Mapping[str, Any]) -> _Stage:
        return _Stage(stage["name"])


class _Files:
    def path(self, name: str) -> Path:
        return Path(name)


def runner(op: str, channels_last: bool) -> StagedRunner:
    shape = SHAPES[op]
    turned = [*shape[1:], shape[0]] if channels_last else list(shape)
    flat = int(np.prod(shape))
    dense = [
        {"name": "features", "file": "a.onnx", "inputs": ["images"], "outputs": ["feature", "rois", "counts", "boxes"],
         "shapes": {}, "slots": None, "channels_last": ["feature"]},
        {"name": "rows", "file": "b.onnx", "inputs": ["pooled"], "outputs": ["masks"], "slots": SLOTS,
         "shapes": {"pooled": [None, *([] if channels_last else [1]), *turned], "masks": [None, 1, flat]},
         "channels_last": ["pooled"] if channels_last else []},
    ]  # fmt: skip
    between = [
        {"op": op, "inputs": ["feature", "rois", "counts"], "outputs": ["pooled"], "attributes": ATTRIBUTES[op]},
    ]
    made = object.__new__(Artifact)
    for name, value in {"stages": tuple(dense), "ops_between": tuple(between), "files": ("a.onnx", "b.onnx")}.items():
        object.__setattr__(made, name, value)
    files: Any = _Files()
    manifest: Manifest = files
    return StagedRunner(manifest, made, _Engine())


def expected(op: str) -> np.ndarray:
    """[3, SLOTS, C, h, w] by the reference."""
    import importlib

    feature, rois = inputs()
    first = feature.transpose(0, 3, 1, 2)
    options = dict(ATTRIBUTES[op])
    name = {
        "RegionRoiAlign": "roi_align",
        "RegionRoiPool": "roi_pool",
        "RegionPyramidPool": "pyramid_pool",
        "RegionWarp": "warp",
    }[op]
    reference = getattr(importlib.import_module(f"regionrt.plugins.{name}.reference"), name)
    if "output_height" in options:
        options["output_size"] = options.pop("output_height"), options.pop("output_width")
    given = [first] if op == "RegionRoiAlign" else first
    return reference(given, rois, COUNTS, **options)


@pytest.mark.parametrize("op", ["RegionRoiPool", "RegionPyramidPool"])
def test_rois_with_the_same_window_share_a_row(op, monkeypatch):
    """Moved by less than a cell can tell: as many rows as there are windows, and the reference's results."""
    feature, rois = inputs()
    rois[0, 1:4] = rois[0, 0] + np.array([[0.01], [0], [-0.01]], np.float32)
    rois[2, 3:7] = rois[2, 2]
    rois[2, 6] = np.nan
    monkeypatch.setattr(sys.modules[__name__], "inputs", lambda: (feature, rois))
    monkeypatch.setattr(staged_buckets, "_SMALL", staged_buckets._Sizes(1, 256, 1))  # rows are not rounded up
    opened = runner(op, False)
    found = opened.run(np.zeros((3, 4, 4, 3), np.uint8), np.zeros((3, 2), np.int32))["masks"]
    np.testing.assert_allclose(found, expected(op).reshape(3, SLOTS, -1), atol=1e-5, rtol=0)
    assert opened._stages["rows"].rows == 1 + 4  # 4 alike; of 7 four are alike, and one of them is now NaN
    assert not found[2, 6].any()


@pytest.mark.parametrize("channels_last", [False, True], ids=["channels first", "channels last"])
@pytest.mark.parametrize("op", ATTRIBUTES)
def test_rows_of_all_images_reach_the_next_stage(op, channels_last):
    if channels_last and len(SHAPES[op]) == 1:
        pytest.skip("flat rows have no channels to turn")
    found = runner(op, channels_last).run(np.zeros((3, 4, 4, 3), np.uint8), np.zeros((3, 2), np.int32))["masks"]
    wanted = expected(op)
    if channels_last:
        wanted = wanted.transpose(0, 1, 3, 4, 2)
    np.testing.assert_allclose(found, wanted.reshape(3, SLOTS, -1), atol=1e-5, rtol=0)


def test_a_runner_that_is_closed_as_a_request_begins_answers_that_one_and_no_other():
    opened = runner("RegionPyramidPool", False)

    class ClosedBehind:
        """The lock, when another thread closes the runner as soon as it is free."""

        def __enter__(self) -> None:
            pass

        def __exit__(self, *_: object) -> None:
            opened._lock = threading.Lock()
            opened.close()

    opened._lock = ClosedBehind()
    request = np.zeros((3, 4, 4, 3), np.uint8), np.zeros((3, 2), np.int32)
    np.testing.assert_allclose(opened.run(*request)["masks"], expected("RegionPyramidPool"), atol=1e-5, rtol=0)
    with pytest.raises(BackendError, match="this predictor is closed"):
        opened.run(*request)
