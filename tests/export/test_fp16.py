"""The fp16 pass: what becomes half, what stays, and what it refuses."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.helper as oh
import onnx_ir as ir
import onnxruntime
import pytest
from tiny_detectors import photos

from regionrt.export import ExportError
from regionrt.export.passes.fp16 import fp16
from regionrt.export.passes.layers import LAYERS
from regionrt.export.passes.lower import lower
from regionrt.plugins.ops import DOMAIN

HALF, FLOAT = ir.DataType.FLOAT16, ir.DataType.FLOAT


def run(model: ir.Model, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    data = ir.to_proto(model).SerializeToString()
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


def test_layers_are_half_and_boxes_are_not(exported):
    half = fp16(exported.abstract)
    layers = [node for node in half.graph if node.op_type in LAYERS and node.domain == ""]
    assert len(layers) == sum(n.op_type in LAYERS and n.domain == "" for n in exported.abstract.graph) > 9
    for node in layers:
        assert {v.dtype for v in node.inputs if v is not None} == {HALF}
        assert all(v.const_value.dtype == HALF for v in node.inputs if v is not None and v.is_initializer())
    for node in (n for n in half.graph if n.domain == DOMAIN):
        floats = [v.dtype for v in node.inputs if v.dtype != ir.DataType.INT32]
        if node.op_type == "RegionRoiAlign":
            *features, rois = floats
            assert set(features) == {HALF}
            assert rois == FLOAT
        else:
            assert set(floats) == {FLOAT}


def test_normalisation_and_sigmoid_stay_single(dynamic):
    half = fp16(dynamic.abstract)
    first = next(i for i, node in enumerate(half.graph) if node.op_type == "Conv")
    before = [v for node in list(half.graph)[:first] if node.op_type != "Cast" for v in node.outputs]
    assert HALF not in {v.dtype for v in before}
    (sigmoid,) = [node for node in half.graph if node.op_type == "Sigmoid"]
    assert sigmoid.inputs[0].dtype == sigmoid.outputs[0].dtype == FLOAT
    assert half.graph.outputs[-1].dtype == FLOAT


def test_every_value_has_the_type_that_it_says(exported):
    """onnx's own inference, from the graph alone, against what the pass wrote down."""
    proto = ir.to_proto(lower(fp16(exported.abstract), "native"))
    written = {v.name: v.type.tensor_type.elem_type for v in proto.graph.value_info}
    del proto.graph.value_info[:]
    inferred = onnx.shape_inference.infer_shapes(proto, check_type=True)
    found = {v.name: v.type.tensor_type.elem_type for v in inferred.graph.value_info}
    common = set(written) & set(found)
    assert len(common) > 10
    assert {n: written[n] for n in common} == {n: found[n] for n in common}


def test_inputs_and_outputs_stay(exported):
    half = fp16(exported.abstract)
    for ours, theirs in (
        (half.graph.inputs, exported.abstract.graph.inputs),
        (half.graph.outputs, exported.abstract.graph.outputs),
    ):
        assert [(v.name, v.dtype, v.shape) for v in ours] == [(v.name, v.dtype, v.shape) for v in theirs]


def test_the_model_is_left_as_it_was(exported):
    before = ir.to_proto(exported.abstract).SerializeToString()
    types = [v.dtype for node in exported.abstract.graph for v in node.outputs]
    fp16(exported.abstract)
    assert ir.to_proto(exported.abstract).SerializeToString() == before
    assert [v.dtype for node in exported.abstract.graph for v in node.outputs] == types


@pytest.mark.parametrize("form", ["native", "portable"])
def test_it_still_finds_what_single_precision_finds(exported, form):
    images, sizes, _ = exported.canvas.place([photo for _, photo in photos([(64, 96), (60, 40)])])
    feeds = {"images": images, "image_sizes": sizes}
    single, half = (run(lower(m, form), feeds) for m in (exported.abstract, fp16(exported.abstract)))
    for n in range(2):
        # 11 bits through a few layers: the three best of scores far apart keep their places, within a few per cent
        best = slice(0, 3)
        np.testing.assert_allclose(half["boxes"][n, best], single["boxes"][n, best], atol=1.0)
        np.testing.assert_allclose(half["scores"][n, best], single["scores"][n, best], atol=0.02)


def test_weights_take_half_the_room(fixed):
    def size(model):
        return sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.dtype in (HALF, FLOAT))

    anchors = fixed.abstract.graph.initializers["anchors.0"].const_value.nbytes  # they are boxes
    assert size(fp16(fixed.abstract)) - anchors == pytest.approx((size(fixed.abstract) - anchors) / 2, rel=0.01)


@pytest.mark.parametrize(("value", "told"), [(7e4, "7e+04"), (-7e4, "7e+04"), (np.inf, "inf"), (np.nan, "nan")])
def test_weights_that_do_not_fit_are_named(fixed, value, told):
    model = fixed.abstract.clone()
    name = "module.roi_heads.box_head.fc7.weight"
    weight = model.graph.initializers[name]
    array = weight.const_value.numpy().copy()
    array[3, 5] = value
    weight.const_value = ir.tensor(array, name=name)
    with pytest.raises(ExportError) as caught:
        fp16(model)
    assert f"weight {name} reaches {told}, fp16 ends at 65504" in str(caught.value)
    assert "--precision fp32" in str(caught.value)


def test_the_largest_half_fits(fixed):
    model = fixed.abstract.clone()
    weight = model.graph.initializers["module.roi_heads.box_head.fc7.weight"]
    array = weight.const_value.numpy().copy()
    array[3, 5] = 65504
    weight.const_value = ir.tensor(array, name=weight.name)
    assert fp16(model).graph.initializers[f"{weight.name}.fp16"].const_value.numpy()[3, 5] == 65504


def small(nodes, constants, outputs, shape=("N", 4, 6, 6)) -> ir.Model:
    """A graph on `x`."""
    made = oh.make_graph(
        nodes,
        "g",
        [oh.make_tensor_value_info("x", onnx.TensorProto.FLOAT, shape)],
        [oh.make_tensor_value_info(name, kind, None) for name, kind in outputs.items()],
        [onnx.numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    opsets = [oh.make_opsetid("", 20), oh.make_opsetid(DOMAIN, 1)]
    return ir.from_proto(onnx.shape_inference.infer_shapes(oh.make_model(made, opset_imports=opsets, ir_version=10)))


RNG = np.random.default_rng(0)
X = RNG.normal(size=(2, 4, 6, 6)).astype(np.float32)
W = (RNG.normal(size=(4, 4, 3, 3)) / 6).astype(np.float32)
CONV = oh.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1])
FLOATS = onnx.TensorProto.FLOAT


def types(model):
    return {v.name: v.dtype for node in model.graph for v in node.outputs}


def agree(model, half, limit=5e-3):
    """5e-3: a few roundings to 11 bits of values up to 2."""
    wanted, found = run(model, {"x": X}), run(half, {"x": X})
    for name, value in wanted.items():
        assert found[name].dtype == value.dtype
        np.testing.assert_allclose(found[name].astype(np.float64), value, atol=limit)


def test_a_squeeze_and_excite_block_stays_half():
    """ReduceMean (with its axes), a gate and the product: no casts in the middle of a backbone."""
    model = small(
        [
            CONV,
            oh.make_node("ReduceMean", ["c", "axes"], ["mean"], keepdims=1),
            oh.make_node("Conv", ["mean", "w1"], ["gate_in"]),
            oh.make_node("HardSigmoid", ["gate_in"], ["gate"], alpha=1 / 6, beta=0.5),
            oh.make_node("Mul", ["c", "gate"], ["out"]),
        ],
        {"w": W, "w1": W[:, :, :1, :1].copy(), "axes": np.array([2, 3])},
        {"out": FLOATS},
    )
    half = fp16(model)
    found = types(half)
    assert all(found[name] == HALF for name in ("c", "mean", "gate_in", "gate"))
    assert half.graph.initializers["axes"].dtype == ir.DataType.INT64
    assert sum(node.op_type == "Cast" for node in half.graph) == 2  # in and out
    agree(model, half)


def test_gathered_values_are_half_and_indices_stay():
    model = small(
        [CONV, oh.make_node("GatherElements", ["c", "index"], ["g"], axis=1), oh.make_node("Sigmoid", ["g"], ["out"])],
        {"w": W, "index": np.zeros((2, 1, 6, 6), np.int64)},
        {"out": FLOATS},
    )
    half = fp16(model)
    assert types(half)["g"] == HALF
    assert types(half)["out"] == FLOAT
    assert half.graph.initializers["index"].dtype == ir.DataType.INT64
    agree(model, half)


def test_indices_of_a_pooling_stay_integers():
    model = small(
        [CONV, oh.make_node("MaxPool", ["c"], ["p", "where"], kernel_shape=[2, 2], strides=[2, 2])],
        {"w": W},
        {"p": FLOATS, "where": onnx.TensorProto.INT64},
    )
    half = fp16(model)
    assert types(half)["where"] == ir.DataType.INT64
    found = run(half, {"x": X})
    assert found["where"].dtype == np.int64


def test_a_constant_that_both_kinds_of_nodes_read():
    """The single-precision reader keeps the original."""
    model = small(
        [
            CONV,
            oh.make_node("Mul", ["c", "scale"], ["m"]),
            oh.make_node("Mul", ["x", "scale"], ["other"]),
            oh.make_node("Add", ["m", "other"], ["out"]),
        ],
        {"w": W, "scale": np.array([[[[1.001]]]], np.float32)},
        {"out": FLOATS, "other": FLOATS},
    )
    half = fp16(model)
    assert half.graph.initializers["scale"].dtype == FLOAT
    assert half.graph.initializers["scale.fp16"].dtype == HALF
    np.testing.assert_array_equal(run(half, {"x": X})["other"], X * np.float32(1.001))
    agree(model, half)


def test_a_half_value_that_is_an_output_too():
    model = small(
        [CONV, oh.make_node("Relu", ["c"], ["r"]), oh.make_node("Exp", ["r"], ["e"])],
        {"w": W},
        {"c": FLOATS, "e": FLOATS},
    )
    half = fp16(model)
    assert [(v.name, v.dtype) for v in half.graph.outputs] == [("c", FLOAT), ("e", FLOAT)]
    agree(model, half, 2e-2)  # exp of up to 2


def test_levels_of_both_kinds_are_pooled_in_half():
    """A level that ends in a node that stays single is cast: the forms take levels of one type."""
    boxes = np.array([[[0, 0, 20, 20], [0, 0, 60, 60]]], np.float32)
    model = small(
        [
            CONV,
            oh.make_node("Sigmoid", ["c"], ["s"]),
            oh.make_node("MaxPool", ["c"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
            oh.make_node(
                "RegionRoiAlign", ["s", "p", "rois", "counts"], ["out"], domain=DOMAIN,
                spatial_scales=[1 / 8, 1 / 16], output_height=2, output_width=2, sampling_ratio=2, aligned=0,
                mode="avg", canonical_scale=32.0, canonical_level=4,
            ),
        ],
        {"w": W, "rois": boxes, "counts": np.array([2], np.int32)},
        {"out": FLOATS},
        (1, 4, 6, 6),
    )  # fmt: skip
    (align,) = [node for node in model.graph if node.domain == DOMAIN]
    align.outputs[0].type = ir.TensorType(FLOAT)
    half = fp16(model)
    (align,) = [node for node in half.graph if node.domain == DOMAIN]
    assert [v.dtype for v in align.inputs] == [HALF, HALF, FLOAT, ir.DataType.INT32]
    for form in ("native", "portable"):
        wanted, found = (run(lower(m, form), {"x": X[:1]})["out"] for m in (model, half))
        np.testing.assert_allclose(found, wanted, atol=5e-3)
