"""Scales and shifts behind convolutions, folded into them."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnx.helper as oh
import onnx_ir as ir
import onnxruntime
import pytest

from regionrt.export.passes.fold_scale import fold_scale

RNG = np.random.default_rng(0)
CHANNELS = 4


def graph(nodes, constants, outputs=("out",)) -> ir.Model:
    """A graph on `x` [N, 3, 9, 7]."""
    made = oh.make_graph(
        nodes,
        "g",
        [oh.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["N", 3, 9, 7])],
        [oh.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in outputs],
        [onnx.numpy_helper.from_array(np.asarray(value, np.float32), name) for name, value in constants.items()],
    )
    model = oh.make_model(made, opset_imports=[oh.make_opsetid("", 20)], ir_version=10)
    return ir.from_proto(onnx.shape_inference.infer_shapes(model))


def run(model: ir.Model) -> list[np.ndarray]:
    x = np.random.default_rng(1).normal(size=(2, 3, 9, 7)).astype(np.float32)
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})


def conv(output, weight="w", bias="b", source="x"):
    return oh.make_node(
        "Conv", [source, weight, *([bias] if bias else [])], [output], pads=[1, 1, 1, 1], strides=[2, 1]
    )


W, B = RNG.normal(size=(CHANNELS, 3, 3, 3)), RNG.normal(size=CHANNELS)
SCALE, SHIFT = RNG.uniform(0.5, 2, (1, CHANNELS, 1, 1)), RNG.normal(size=(CHANNELS, 1, 1))


def operators(model):
    return Counter(node.op_type for node in model.graph)


@pytest.mark.parametrize("bias", ["b", None])
@pytest.mark.parametrize("order", [("Mul", "Add"), ("Add", "Mul"), ("Mul",), ("Add",), ("Mul", "Add", "Mul", "Add")])
def test_scales_and_shifts_go_into_the_convolution(order, bias):
    nodes, value = [conv("v0", bias=bias)], "v0"
    for i, op in enumerate(order):
        constant = {"Mul": "scale", "Add": "shift"}[op]
        # the constant may stand on either side
        nodes.append(oh.make_node(op, [constant, value] if i % 2 else [value, constant], [f"v{i + 1}"]))
        value = f"v{i + 1}"
    nodes.append(oh.make_node("Relu", [value], ["out"]))
    constants = {"w": W, "scale": SCALE, "shift": SHIFT} | ({"b": B} if bias else {})
    model = graph(nodes, constants)
    before = ir.to_proto(model).SerializeToString()
    folded = fold_scale(model)
    assert operators(folded) == {"Conv": 1, "Relu": 1}
    assert set(folded.graph.initializers) == {"w", bias or "w.bias"}
    np.testing.assert_allclose(run(folded)[0], run(model)[0], atol=1e-5, rtol=0)  # fp32: two products instead of one
    assert ir.to_proto(model).SerializeToString() == before


@pytest.mark.parametrize("shape", [(), (1,), (1, 1, 1, 1)])
def test_one_number_for_all_channels(shape):
    model = graph([conv("v"), oh.make_node("Mul", ["v", "scale"], ["y"]), oh.make_node("Relu", ["y"], ["out"])],
                  {"w": W, "b": B, "scale": np.full(shape, 1.7)})  # fmt: skip
    folded = fold_scale(model)
    assert operators(folded) == {"Conv": 1, "Relu": 1}
    np.testing.assert_allclose(run(folded)[0], run(model)[0], atol=1e-5, rtol=0)


KEPT = {
    "along the width": {"scale": RNG.normal(size=7)},
    "for each position": {"scale": RNG.normal(size=(1, CHANNELS, 5, 7))},
    "along the height": {"scale": RNG.normal(size=(5, 1))},
    "makes images of one": {"scale": RNG.normal(size=(2, 1, 1, 1))},
}


@pytest.mark.parametrize("constants", KEPT.values(), ids=KEPT.keys())
def test_what_is_not_per_channel_stays(constants):
    model = graph([conv("v"), oh.make_node("Mul", ["v", "scale"], ["y"]), oh.make_node("Relu", ["y"], ["out"])],
                  {"w": W, "b": B} | constants)  # fmt: skip
    folded = fold_scale(model)
    assert operators(folded) == {"Conv": 1, "Mul": 1, "Relu": 1}
    np.testing.assert_array_equal(run(folded)[0], run(model)[0])


def test_a_batch_axis_of_the_constant_is_no_channel_axis():
    """[C, 1, 1, 1] has as many numbers as channels, but one for each image."""
    model = graph([conv("v"), oh.make_node("Mul", ["v", "scale"], ["y"]), oh.make_node("Relu", ["y"], ["out"])],
                  {"w": W, "b": B, "scale": RNG.normal(size=(CHANNELS, 1, 1, 1))})  # fmt: skip
    assert operators(fold_scale(model)) == {"Conv": 1, "Mul": 1, "Relu": 1}


def test_a_value_that_others_read_stays():
    nodes = [conv("v"), oh.make_node("Mul", ["v", "scale"], ["y"]), oh.make_node("Add", ["v", "y"], ["out"])]
    model = graph(nodes, {"w": W, "b": B, "scale": SCALE})
    folded = fold_scale(model)
    assert operators(folded) == {"Conv": 1, "Mul": 1, "Add": 1}
    np.testing.assert_array_equal(run(folded)[0], run(model)[0])


@pytest.mark.parametrize("outputs", [("v", "out"), ("y", "out")])
def test_outputs_of_the_graph_stay(outputs):
    nodes = [conv("v"), oh.make_node("Mul", ["v", "scale"], ["y"]), oh.make_node("Relu", ["y"], ["out"])]
    model = graph(nodes, {"w": W, "b": B, "scale": SCALE}, outputs)
    folded = fold_scale(model)
    assert operators(folded)["Mul"] == 1
    for one, other in zip(run(folded), run(model), strict=True):
        np.testing.assert_array_equal(one, other)


def test_weights_that_two_convolutions_share():
    """A head that is applied to two maps, of which one is scaled: the other keeps the weights."""
    nodes = [
        conv("v"),
        oh.make_node("Mul", ["v", "scale"], ["y"]),
        conv("other"),
        oh.make_node("Add", ["y", "other"], ["out"]),
    ]
    model = graph(nodes, {"w": W, "b": B, "scale": SCALE})
    folded = fold_scale(model)
    assert operators(folded) == {"Conv": 2, "Add": 1}
    np.testing.assert_allclose(run(folded)[0], run(model)[0], atol=1e-5, rtol=0)
