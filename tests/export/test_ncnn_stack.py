"""Maps of RoIs stacked for ncnn: each comes out as if it were alone, whatever stands between two convolutions."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from ncnn_stages import RNG, both, conv, model_of, stage_json, tensor, written
from onnx import helper

import regionrt.runtime as rt
from regionrt.export.ncnn import ncnn_stage
from regionrt.runtime.backends.ncnn import NcnnStages
from regionrt.runtime.backends.onnxruntime import OnnxRuntimeStages
from regionrt.runtime.bundle import Manifest

pytest.importorskip("ncnn")
SIDES = (None, 6, 7, 9)
PADDED = {"pads": [1, 1, 1, 1]}
WEIGHTS = [tensor("w", 6, 6, 3, 3), tensor("b", 6), tensor("up", 6, 6, 2, 2), tensor("one", 6, 6, 1, 1)]


def node(op: str, inputs: list[str], output: str, **attributes):
    return helper.make_node(op, inputs, [output], **attributes)


def same(x: str, y: str):
    return conv(x, y, "w", "b", **PADDED)


def doubled(x: str, y: str, weight: str = "up", **attributes):
    return node("ConvTranspose", [x, weight], y, strides=[2, 2], **attributes)


STACKED = {
    "a mask head": (
        [same("x", "c"), node("Relu", ["c"], "r"), same("r", "d"), doubled("d", "u"), conv("u", "y", "one")],
        {"height": 7, "gap": 1, "gaps": {"gaps1": 1}},
    ),
    "one layer": ([same("x", "y")], {"height": 7, "gap": 1, "gaps": {}}),
    "on larger maps": (
        [doubled("x", "u"), same("u", "c"), same("c", "y")],
        {"height": 7, "gap": 1, "gaps": {"gaps2": 2}},
    ),
    "on both": (
        [same("x", "c"), same("c", "d"), doubled("d", "u"), same("u", "y")],
        {"height": 7, "gap": 1, "gaps": {"gaps1": 1, "gaps2": 2}},
    ),
    "a wide window": (
        [conv("x", "c", "five", "b", pads=[2] * 4), conv("c", "y", "w", dilations=[3, 3], pads=[3] * 4)],
        {"height": 7, "gap": 3, "gaps": {"gaps1": 1}},
    ),
    "each channel for itself": (
        [conv("x", "c", "each", "b", group=6, **PADDED), conv("c", "y", "each", "b", group=6, **PADDED)],
        {"height": 7, "gap": 1, "gaps": {"gaps1": 1}},
    ),
    "a shortcut": (
        [same("x", "c"), node("Add", ["c", "x"], "s"), node("Relu", ["s"], "r"), same("r", "y")],
        {"height": 7, "gap": 1, "gaps": {"gaps1": 1}},
    ),
    "side by side": (
        [
            same("x", "c"),
            conv("x", "d", "one"),
            node("Concat", ["c", "d"], "cd", axis=1),
            conv("cd", "y", "two", **PADDED),
        ],
        {"height": 7, "gap": 1, "gaps": {"gaps1": 1}},
    ),
    "an activation that makes something of zero": (
        [same("x", "c"), node("Sigmoid", ["c"], "s"), same("s", "y")],
        {"height": 7, "gap": 1, "gaps": {"gaps1": 1}},
    ),
}  # fmt: skip


@pytest.mark.parametrize("number", [1, 2, 5])
@pytest.mark.parametrize("kind", STACKED)
def test_each_map_is_alone(kind, number, tmp_path):
    nodes, stack = STACKED[kind]
    weights = [*WEIGHTS, tensor("five", 6, 6, 5, 5), tensor("each", 6, 1, 3, 3), tensor("two", 6, 12, 3, 3)]
    both(model_of(nodes, weights, sides=SIDES), tmp_path, (number, *SIDES[1:]), rows=True, atol=1e-4)
    (path,) = tmp_path.glob("*.json")
    assert json.loads(path.read_text())["stack"] == stack


@pytest.mark.parametrize("channels", [6, 16, 64])
def test_a_map_of_large_numbers_leaves_its_neighbours_as_they_are(channels, tmp_path):
    """Up to the rounding of Winograd's tiles, which reach over a gap; ncnn has them from 16 channels on."""
    weights = [tensor("w", channels, channels, 3, 3), tensor("b", channels)]
    nodes = [same("x", "c"), node("Relu", ["c"], "r"), same("r", "d"), same("d", "y")]
    model = model_of(nodes, weights, sides=(None, channels, 7, 9))
    session = NcnnStages(1).open(written(model, tmp_path, rows=True), stage_json(model)).session()
    maps = RNG.standard_normal((3, channels, 7, 9)).astype(np.float32)
    alone = session.run({"x": maps[1:2]})["y"]
    maps[0], maps[2] = 1e3 * maps[0], -1e3 * maps[2]
    found = session.run({"x": maps})["y"]
    np.testing.assert_allclose(found[1:2], alone, atol=1e-6 * np.abs(found).max(), rtol=0)


@pytest.mark.parametrize("number", [1, 5])
def test_a_head_of_many_channels(number, tmp_path):
    """As wide as Winograd wants them, with the gaps cleared in packed layout."""
    weights = [tensor("w", 64, 64, 3, 3), tensor("b", 64), tensor("up", 64, 64, 2, 2), tensor("one", 7, 64, 1, 1)]
    nodes, _ = STACKED["a mask head"]
    model = model_of(nodes, weights, sides=(None, 64, 14, 14))
    found, wanted, _ = both(model, tmp_path, (number, 64, 14, 14), rows=True, atol=1.0)
    largest = np.abs(wanted["y"]).max()
    np.testing.assert_allclose(found["y"], wanted["y"], atol=1e-5 * largest, rtol=0)


def test_outputs_of_both_sizes_and_what_is_around_the_trunk(tmp_path):
    """Channels last in, one of two outputs on the larger maps, and any number of maps one after the other."""
    nodes = [
        node("Transpose", ["x"], "t", perm=[0, 3, 1, 2]), same("t", "c"), same("c", "small"), doubled("small", "u"),
        node("ReduceMax", ["u"], "large"),
    ]  # fmt: skip
    model = model_of(nodes, WEIGHTS, outputs=("small", "u", "large"), sides=(None, 7, 9, 6))
    path = written(model, tmp_path, rows=True)
    opened = NcnnStages(2).open(path, stage_json(model)).session()
    whole = OnnxRuntimeStages(1).open(tmp_path / "staged-dense_0.onnx", stage_json(model)).session()
    for number in (4, 1, 9, 4):
        maps = RNG.standard_normal((number, 7, 9, 6)).astype(np.float32)
        wanted = whole.run({"x": maps})
        for name, found in opened.run({"x": maps}).items():
            np.testing.assert_allclose(found, wanted[name], atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize(
    "nodes",
    [
        pytest.param([conv("x", "y", "w", strides=[2, 2], **PADDED)], id="fewer rows"),
        pytest.param([conv("x", "y", "w")], id="no padding"),
        pytest.param([conv("x", "y", "w", pads=[2, 1, 0, 1])], id="more padding above"),
        pytest.param([same("x", "c"), doubled("c", "y", "wide")], id="blocks that overlap"),
        pytest.param([same("x", "c"), doubled("c", "y", output_padding=[1, 1])], id="rows that are added"),
        pytest.param([same("x", "c"), node("MaxPool", ["c"], "y", kernel_shape=[3, 3])], id="a pooling"),
        pytest.param(
            [same("x", "c"), node("GlobalAveragePool", ["c"], "m"), node("Mul", ["c", "m"], "y")], id="a mean of a map"
        ),
        pytest.param([conv("x", "c", "one"), node("Relu", ["c"], "y")], id="nothing that reads a neighbour"),
        pytest.param([node("Concat", ["x", "x"], "z", axis=2), same("z", "c"), same("x", "y")], id="maps of two sizes"),
    ],
)
def test_what_cannot_be_stacked_is_not_cut(nodes):
    assert ncnn_stage(model_of(nodes, [*WEIGHTS, tensor("wide", 6, 6, 3, 3)], sides=SIDES), rows=True) is None


def test_large_crops_come_one_by_one():
    cut = ncnn_stage(model_of([same("x", "y")], WEIGHTS, sides=(None, 6, 64, 64)), rows=True)
    assert cut is not None
    assert cut.stack is None


@pytest.mark.parametrize(
    "change",
    [{"gap": 0}, {"height": 10**9}, {"gaps": {"gaps1": -1}}, {"gap": "many"}, {"gaps": None}],
    ids=lambda change: str(change),
)
def test_a_stack_that_no_export_writes(change, tmp_path):
    path = written(model_of([same("x", "y")], WEIGHTS, sides=SIDES), tmp_path, rows=True)
    data = json.loads(path.read_text())
    data["stack"] |= change
    path.write_text(json.dumps(data))
    with pytest.raises(rt.BundleError, match="expected a stage for ncnn"):
        NcnnStages(1).open(path, {"outputs": ["y"]})


def test_maps_of_another_height_are_refused(tmp_path):
    model = model_of([same("x", "y")], WEIGHTS, sides=SIDES)
    session = NcnnStages(1).open(written(model, tmp_path, rows=True), stage_json(model)).session()
    with pytest.raises(rt.BackendError, match=re.escape("expected maps of 7 rows, found 8")):
        session.run({"x": np.zeros((1, 6, 8, 9), np.float32)})


def test_mask_heads_are_stacked(dynamic):
    """In the tiny Mask R-CNN that all tests share: what it finds with ncnn is compared where all artefacts are."""
    (artifact,) = [a for a in Manifest.read(dynamic.bundle).artifacts if a.backend == "ncnn"]
    files = [dynamic.bundle / stage["file"] for stage in artifact.stages if stage["slots"] is not None]
    stacks = [json.loads(file.read_text())["stack"] for file in files if file.suffix == ".json"]
    assert stacks == [{"height": 4, "gap": 1, "gaps": {}}]  # one convolution on the smallest of RoIs
