"""Dense stages cut for ncnn: the same numbers as ONNX Runtime's, whatever part of a graph ncnn has an equal of."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from ncnn_stages import both, conv, model_of, tensor, written
from onnx import helper, numpy_helper

import regionrt.runtime as rt
from regionrt.export.ncnn import ncnn_stage
from regionrt.runtime import preflight
from regionrt.runtime.backends import ncnn as ncnn_backend
from regionrt.runtime.backends.ncnn import NcnnStages
from regionrt.runtime.build import BuildOptions, _sources
from regionrt.runtime.bundle import Manifest

pytest.importorskip("ncnn")
WEIGHTS = {
    "square": ((8, 6, 3, 3), {"pads": [1, 1, 1, 1]}),
    "uneven sides": ((8, 6, 3, 5), {"pads": [0, 1, 2, 3], "strides": [2, 1]}),
    "dilated": ((8, 6, 3, 3), {"dilations": [2, 3]}),
    "one pixel": ((16, 6, 1, 1), {}),
    "depthwise": ((6, 1, 5, 5), {"group": 6, "pads": [2, 2, 2, 2], "strides": [2, 2]}),
}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", WEIGHTS)
def test_convolutions(kind, bias, tmp_path):
    shape, attributes = WEIGHTS[kind]
    constants = [tensor("w", *shape), *([tensor("b", shape[0])] if bias else [])]
    _, _, layers = both(model_of([conv("x", "y", "w", "b" if bias else None, **attributes)], constants), tmp_path)
    assert layers["ConvolutionDepthWise" if kind == "depthwise" else "Convolution"] == 1


@pytest.mark.parametrize(
    ("shape", "attributes"),
    [
        ((6, 8, 2, 2), {"strides": [2, 2]}),
        ((6, 8, 4, 3), {"strides": [2, 1], "pads": [1, 0, 2, 1], "output_padding": [1, 0]}),
        ((6, 1, 3, 3), {"group": 6, "strides": [2, 2]}),
    ],
)
def test_transposed_convolutions(shape, attributes, tmp_path):
    outputs = shape[1] * attributes.get("group", 1)
    node = helper.make_node("ConvTranspose", ["x", "w", "b"], ["y"], **attributes)
    _, _, layers = both(model_of([node], [tensor("w", *shape), tensor("b", outputs)]), tmp_path)
    assert layers["Deconvolution"] + layers["DeconvolutionDepthWise"] == 1


@pytest.mark.parametrize("op", ["Relu", "Sigmoid", "HardSigmoid", "HardSwish"])
def test_activations(op, tmp_path):
    nodes = [conv("x", "c", "w"), helper.make_node(op, ["c"], ["y"])]
    _, _, layers = both(model_of(nodes, [tensor("w", 8, 6, 3, 3)]), tmp_path)
    assert sum(layers.values()) == (2 if op == "Relu" else 3)  # ReLU is the convolution's own, behind the input


def test_a_clip_is_the_convolutions_own(tmp_path):
    bounds = [numpy_helper.from_array(np.float32(value), name) for name, value in (("low", -0.25), ("high", 0.5))]
    nodes = [conv("x", "c", "w"), helper.make_node("Clip", ["c", "low", "high"], ["y"])]
    found, _, layers = both(model_of(nodes, [tensor("w", 8, 6, 3, 3), *bounds]), tmp_path)
    assert (found["y"].min(), found["y"].max(), sum(layers.values())) == (-0.25, 0.5, 2)


@pytest.mark.parametrize(
    "attributes",
    [
        {"kernel_shape": [2, 2], "strides": [2, 2]},
        {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1},
        {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]},
        {"kernel_shape": [1, 1], "strides": [2, 2]},
    ],
)
def test_max_pools(attributes, tmp_path):
    nodes = [conv("x", "c", "w", pads=[1, 1, 1, 1]), helper.make_node("MaxPool", ["c"], ["y"], **attributes)]
    _, _, layers = both(model_of(nodes, [tensor("w", 8, 6, 3, 3)]), tmp_path)
    assert layers["Pooling"] == 1


def test_a_squeeze_and_excitation_block(tmp_path):
    """One number for each channel, which a map is multiplied by, in either order."""
    axes = numpy_helper.from_array(np.array([2, 3]), "axes")
    nodes = [
        conv("x", "c", "w"),
        helper.make_node("ReduceMean", ["c", "axes"], ["mean"], keepdims=1),
        conv("mean", "few", "few_w", "few_b"),
        helper.make_node("Relu", ["few"], ["relu"]),
        conv("relu", "many", "many_w"),
        helper.make_node("HardSigmoid", ["many"], ["share"], alpha=0.25, beta=0.5),
        helper.make_node("Mul", ["share", "c"], ["scaled"]),
        helper.make_node("GlobalAveragePool", ["scaled"], ["again"]),
        helper.make_node("Mul", ["scaled", "again"], ["y"]),
    ]
    constants = [tensor("w", 8, 6, 3, 3), axes, tensor("few_w", 4, 8, 1, 1), tensor("few_b", 4)]
    _, _, layers = both(model_of(nodes, [*constants, tensor("many_w", 8, 4, 1, 1)]), tmp_path)
    assert (layers["Reduction"], layers["BinaryOp"], layers["Convolution"]) == (2, 2, 3)


def pyramid(sizes: list[int], mode: str = "nearest") -> ir.Model:
    """A coarse level made larger and added to the finer one, which the outside reads as well."""
    nodes = [
        conv("x", "fine", "w", pads=[1, 1, 1, 1]),
        conv("fine", "coarse", "v", pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node(
            "Resize", ["coarse", "", "", "sizes"], ["large"], mode=mode, nearest_mode="floor",
            coordinate_transformation_mode="asymmetric",
        ),
        helper.make_node("Concat", ["large", "large"], ["twice"], axis=1),
        conv("twice", "y", "u"),
    ]  # fmt: skip
    constants = [tensor("w", 8, 6, 3, 3), tensor("v", 8, 8, 3, 3), tensor("u", 4, 16, 1, 1)]
    shape = numpy_helper.from_array(np.array([2, 8, *sizes]), "sizes")
    return model_of(nodes, [*constants, shape], ("y", "fine"), (2, 6, 20, 28))


@pytest.mark.parametrize(("sizes", "alike"), [([20, 28], True), ([19, 27], True), ([30, 42], True), ([20, 46], False)])
def test_a_pyramid(sizes, alike, tmp_path):
    """46 of 14 columns: by steps of float32 one is the wrong one. Then ONNX Runtime goes on from there."""
    _, _, layers = both(pyramid(sizes), tmp_path)
    assert layers["Interp"] == alike
    assert layers["Convolution"] == (3 if alike else 2)


def test_what_ncnn_has_no_equal_of_stays_outside(tmp_path):
    """Before, after, and beside the trunk."""
    nodes = [
        helper.make_node("Exp", ["x"], ["e"]),
        conv("e", "c", "w"),
        helper.make_node("Relu", ["c"], ["r"]),
        conv("r", "d", "v", group=2),
        helper.make_node("Transpose", ["r"], ["y"], perm=[0, 2, 3, 1]),
        helper.make_node("ReduceMax", ["e"], ["z"]),
    ]
    model = model_of(nodes, [tensor("w", 8, 6, 3, 3), tensor("v", 4, 4, 3, 3)], ("y", "d", "r", "z"))
    _, _, layers = both(model, tmp_path)
    assert layers == {"Input": 1, "Convolution": 1}


@pytest.mark.parametrize(
    "nodes",
    [
        [helper.make_node("Relu", ["x"], ["y"])],
        [conv("x", "c", "w"), conv("c", "d", "v", group=2), conv("d", "y", "v", group=2)],
    ],
)
def test_a_stage_with_few_layers_for_it_is_not_cut(nodes):
    constants = [tensor("w", 8, 6, 3, 3), tensor("v", 8, 4, 3, 3)]
    assert ncnn_stage(model_of(nodes, constants)) is None


def test_an_activation_that_is_not_the_only_reader_stays_a_layer(tmp_path):
    nodes = [conv("x", "c", "w"), helper.make_node("Relu", ["c"], ["r"]), helper.make_node("Add", ["r", "c"], ["y"])]
    _, _, layers = both(model_of(nodes, [tensor("w", 8, 6, 3, 3)]), tmp_path)
    assert (layers["ReLU"], layers["Split"], layers["BinaryOp"]) == (1, 1, 1)


@pytest.fixture
def path(tmp_path) -> Path:
    """A stage of one layer, with weights in the file and a bias in the description."""
    return written(model_of([conv("x", "y", "w", "b")], [tensor("w", 48, 6, 3, 3), tensor("b", 48)]), tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d.pop("layers"), "expected a stage for ncnn"),
        (lambda d: d.update(before={"file": "../other.onnx"}), "beside it, found '../other.onnx'"),
        (lambda d: d["weights"].update(file="/etc/passwd"), "beside it, found '/etc/passwd'"),
        (lambda d: d["layers"].append("MemoryData m 0 1 z 0=9"), "found MemoryData"),
        (lambda d: d["weights"]["pieces"][0].update(offset=10**9), "weights: cannot reshape"),
        (lambda d: d["weights"]["pieces"].pop(), "refuses it"),
        (lambda d: d["weights"]["pieces"].append({"shape": [1], "values": [0.0]}), "refuses it"),
        (lambda d: d["layers"].__setitem__(0, "1"), "refuses it"),
    ],
)
def test_a_description_that_no_export_writes(path, change, words):
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    with pytest.raises((rt.BundleError, rt.BackendError), match=re.escape(words)):
        NcnnStages(1).open(path, {"outputs": ["y"]})


def test_engines_are_built_from_whole_stages(fixed):
    """Also where this artefact was the fastest and stands first, and its first stage is a whole one."""
    manifest = Manifest.read(fixed.bundle)
    (cut,) = [a for a in manifest.artifacts if a.backend == "ncnn"]
    first = replace(cut, files=("staged-dense_1.onnx", *cut.files), stages=cut.stages[::-1])
    manifest = replace(manifest, artifacts=(first, *manifest.artifacts))
    (source,) = _sources(manifest, "tensorrt-rtx", BuildOptions(ops="staged"))
    assert source.backend != "ncnn"


def test_without_the_library_the_others_run(fixed, monkeypatch):
    def missing():
        raise rt.BackendError("ncnn cannot be imported: pip install 'regionrt[ncnn]'")

    monkeypatch.setattr(ncnn_backend, "_library", missing)
    with pytest.raises(rt.BackendError, match="pip install"):
        rt.load(fixed.bundle, backend="ncnn")
    for library in ("ncnn", "onnxruntime"):
        monkeypatch.setattr(preflight, "find_spec", lambda name, library=library: None if name == library else name)
        manifest = Manifest.read(fixed.bundle)
        (artifact,) = [a for a in manifest.artifacts if a.backend == "ncnn"]
        assert f"the library {library} is not installed" in str(manifest.preflight(artifact))
