"""Ops that pool regions, as steps between stages: from a manifest's words to the memory that is planned, and filled."""

from __future__ import annotations

import numpy as np
import pytest
from values import boxes_in, near

from regionrt.plugins.pyramid_pool.reference import pyramid_pool
from regionrt.plugins.roi_pool.reference import roi_pool
from regionrt.plugins.warp.reference import warp
from regionrt.runtime.errors import BackendError
from regionrt.runtime.gpu.arrays import GpuArray
from regionrt.runtime.gpu.steps import OPS, Layouts

STEPS = {
    "RegionRoiPool": (roi_pool, {"spatial_scale": 0.25, "output_height": 4, "output_width": 3}),
    "RegionWarp": (warp, {"output_height": 9, "output_width": 7, "context": 1}),
    "RegionPyramidPool": (pyramid_pool, {"spatial_scale": 0.25, "bins": [3, 1]}),
}


def step_of(op: str) -> dict:
    return {"op": op, "inputs": ["x", "rois", "counts"], "outputs": ["pooled"], "attributes": STEPS[op][1]}


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("op", STEPS)
def test_outputs_and_launches_fit_each_other_and_the_reference(gpu, op, channels_last):
    rng = np.random.default_rng(1)
    reference, attributes = STEPS[op]
    x = rng.standard_normal((2, 6, 15, 20)).astype(np.float32)
    rois, counts = boxes_in(rng, (2, 5), 60), np.array([5, 2], np.int32)
    options = {name: value for name, value in attributes.items() if not name.startswith("output_")}
    if "output_height" in attributes:
        options["output_size"] = (attributes["output_height"], attributes["output_width"])
    expected = reference(x, rois, counts, **options)
    placed = np.ascontiguousarray(x.transpose(0, 2, 3, 1)) if channels_last else x
    values = {"x": gpu.put(placed), "rois": gpu.put(rois), "counts": gpu.put(counts)}
    layouts, step = Layouts(frozenset({"x", "pooled"} if channels_last else ())), step_of(op)
    ((name, (shape, dtype)),) = OPS[op].outputs(step, values, layouts).items()
    assert OPS[op].workspace(step, values) == 0
    values[name] = gpu.empty(shape, dtype)
    gpu.run(OPS[op].launches(gpu.kernels, step, values, layouts, 0))
    found = gpu.get(values["pooled"])
    if channels_last and op == "RegionPyramidPool":  # [N, P, Σb², C]
        levels = np.split(found, np.cumsum([b * b for b in attributes["bins"]])[:-1], axis=2)
        found = np.concatenate([level.transpose(0, 1, 3, 2).reshape(2, 5, -1) for level in levels], 2)
    elif channels_last:
        found = found.transpose(0, 1, 4, 2, 3)
    near(found, expected, 1e-5)


@pytest.mark.parametrize("op", [*STEPS, "RegionRoiAlign"])
def test_maps_and_features_in_another_order_are_refused(op):
    values = {
        "x": GpuArray(0, (1, 4, 9, 9), "float32"),
        "rois": GpuArray(0, (1, 3, 4), "float32"),
        "counts": GpuArray(0, (1,), "int32"),
    }
    step = step_of(op) if op in STEPS else step_of("RegionRoiPool") | {"op": op}
    with pytest.raises(BackendError, match="pooled: feature maps and RoI features lie in another order of axes"):
        OPS[op].outputs(step, values, Layouts(frozenset({"x"})))
