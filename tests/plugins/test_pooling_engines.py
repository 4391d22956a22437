"""Ops that pool regions become TensorRT for RTX engines in their portable form: maps of known and of dynamic sizes."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from one_op import PORTABLE, abstract
from rtx import build

from regionrt.export.passes.lower import lower
from regionrt.plugins.ops import OPS

CASES = {
    "RegionRoiPool": (8, {"spatial_scale": 1 / 16, "output_height": 7, "output_width": 7}),
    "RegionWarp": (3, {"output_height": 57, "output_width": 57, "context": 4}),
    "RegionPyramidPool": (8, {"spatial_scale": 1 / 16, "bins": [6, 3, 2, 1]}),
}


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("op", CASES)
def test_it_builds(op, dynamic, dtype, tmp_path):
    channels, attributes = CASES[op]
    first = OPS[op].schema.inputs[0].name
    height, width = ("h", "w") if dynamic else (18, 31)
    declared = [
        (first, np.dtype(dtype), ("N", channels, height, width)),
        ("rois", np.dtype(np.float32), ("N", 100, 4)),
        ("counts", np.dtype(np.int32), ("N",)),
    ]
    model = ir.to_proto(lower(abstract(op, declared, attributes), PORTABLE[0]))
    sides = [[10, 10], [38, 63], [60, 90]] if dynamic else [[18, 31]] * 3
    profiles = {
        first: [[n, channels, *side] for n, side in zip((1, 1, 4), sides, strict=True)],
        "rois": [[n, 100, 4] for n in (1, 1, 4)],
        "counts": [[n] for n in (1, 1, 4)],
    }
    assert build(model, tmp_path, profiles) > 1000
