"""What engines of stages take from the kernels before them, whatever op pools."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnx.parser
import pytest

from regionrt.runtime.build import DEFAULT_OPTIONS, _job
from regionrt.runtime.build_parts import MadePart, parts_of
from regionrt.runtime.build_process import run_build
from regionrt.runtime.build_settings import pyramid_channels_first
from regionrt.runtime.bundle import Artifact
from regionrt.runtime.errors import BackendError

BINS = (3, 2, 1)
ROWS = {  # shapes of a row as the ONNX file has it, and as the kernels write it
    "RegionRoiAlign": ([1, 8, 3, 2], [3, 2, 8]),
    "RegionRoiPool": ([1, 8, 3, 2], [3, 2, 8]),
    "RegionWarp": ([1, 3, 9, 7], [9, 7, 3]),
    "RegionPyramidPool": ([1, 8 * 14], [14, 8]),
}


def staged(op: str, maps_last: bool = True, rows_last: bool = False) -> Artifact:
    first, last = ROWS[op]
    attributes = {"bins": list(BINS)} if op == "RegionPyramidPool" else {}
    stages = [
        {"name": "dense_0", "file": "a.onnx", "inputs": ["images", "image_sizes"], "outputs": ["maps", "scores"],
         "slots": None, "shapes": {}, "channels_last": ["maps"] if maps_last else []},
        {"name": "dense_1", "file": "b.onnx", "inputs": ["pooled", "scored"], "outputs": ["logits"], "slots": 5,
         "shapes": {"pooled": [None, *(last if rows_last else first)], "scored": [None, 1, 4]},
         "channels_last": ["pooled"] if rows_last else []},
    ]  # fmt: skip
    ops = [
        {"op": "RegionProposals", "inputs": ["scores", "image_sizes"], "outputs": ["rois", "scored", "counts"],
         "attributes": {}},
        {"op": op, "inputs": ["maps", "rois", "counts"], "outputs": ["pooled"], "attributes": attributes},
    ]  # fmt: skip
    sizes = {"images": [2, 64, 96, 3], "image_sizes": [2, 2]}
    profile = {name: {"min": shape, "opt": shape, "max": shape} for name, shape in sizes.items()}
    return Artifact(
        "tensorrt-rtx", "staged", "fp32", ("a.onnx", "b.onnx"), profiles=(profile,), stages=tuple(stages),
        ops_between=tuple(ops),
    )  # fmt: skip


@pytest.mark.parametrize("op", ROWS)
def test_rows_are_taken_as_the_ops_kernel_gives_them(op: str) -> None:
    _, part = parts_of(staged(op))
    _, last = ROWS[op]
    assert part.channels_last == {"pooled": BINS if op == "RegionPyramidPool" else ()}
    assert part.profiles[0]["pooled"]["max"] == [2 * 5, *last]
    assert part.profiles[0]["scored"]["max"] == [2 * 5, 1, 4]
    entry = MadePart(part, "an.engine", {}).entry()
    assert entry["shapes"]["pooled"] == [None, *last]
    assert entry["channels_last"] == ["pooled"]


@pytest.mark.parametrize(("maps_last", "rows_last"), [(False, False), (True, True)])
def test_rows_that_lie_in_their_maps_order_are_left_alone(maps_last: bool, rows_last: bool) -> None:
    _, part = parts_of(staged("RegionRoiPool", maps_last, rows_last))
    first, last = ROWS["RegionRoiPool"]
    assert part.channels_last == {}
    assert part.profiles[0]["pooled"]["max"] == [2 * 5, *(last if rows_last else first)]


def test_the_order_of_a_pyramid() -> None:
    rng = np.random.default_rng(0)
    levels = [rng.random((8, side, side)) for side in BINS]  # [C, b, b]
    first = np.concatenate([level.ravel() for level in levels])
    last = np.concatenate([level.reshape(8, -1).T for level in levels])  # [Σb², C]
    order = pyramid_channels_first(BINS, 8)
    assert order.dtype == np.int32
    np.testing.assert_array_equal(last.ravel()[order], first)


@pytest.mark.parametrize("op", ["RegionPyramidPool", "RegionRoiPool"])
def test_an_engine_takes_them_so(op: str, tmp_path: Path) -> None:
    """The real builder: a profile of other shapes than the network's would be refused."""
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed: pip install 'regionrt[rtx]'")
    shape = ["rows", *map(str, ROWS[op][0])]
    values = int(np.prod(ROWS[op][0]))
    text = f"""
<ir_version: 9, opset_import: ["" : 18]>
head (float[{",".join(shape)}] pooled, float[rows,1,4] scored) => (float[rows,7] logits)
<int64[2] flat = {{-1, {values}}}, int64[2] four = {{-1, 4}}>
{{
  x = Reshape (pooled, flat)
  y = MatMul (x, weights)
  z = Reshape (scored, four)
  s = ReduceSum <keepdims = 1> (z, axis)
  logits = Add (y, s)
}}"""
    text = text.replace("four = {-1, 4}>", f"four = {{-1, 4}}, int64[1] axis = {{1}}, float[{values},7] weights>")
    model = onnx.parser.parse_model(text)
    weights = onnx.numpy_helper.from_array(np.ones((values, 7), np.float32), "weights")
    kept = [each for each in model.graph.initializer if each.name != "weights"]
    del model.graph.initializer[:]
    model.graph.initializer.extend([*kept, weights])
    onnx.save(model, tmp_path / "b.onnx")
    artifact = staged(op)
    _, part = parts_of(artifact)
    files = SimpleNamespace(path=lambda name: tmp_path / name)
    job = _job(files, artifact, part, "tensorrt-rtx", DEFAULT_OPTIONS, tmp_path / "engine")  # type: ignore[arg-type]
    facts = run_build(job, 120)
    assert facts["engine_bytes"] == (tmp_path / "engine").stat().st_size > 0
    with pytest.raises(BackendError, match=r"profile|shape"):
        run_build(job | {"channels_last": {}}, 120)
