"""Cutting a graph at our ops: the pieces, one after another, are the whole."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from tiny_detectors import photos

from regionrt.export.passes.fp16 import fp16
from regionrt.export.passes.int8 import U8S8, int8
from regionrt.export.passes.lower import lower
from regionrt.export.passes.qdq import Range
from regionrt.export.passes.split import Unit, split
from regionrt.plugins.ops import DOMAIN


def session(model: ir.Model) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    data = ir.to_proto(model).SerializeToString()
    return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def run_one_after_another(units: list[Unit], feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    known = dict(feeds)
    for unit in units:
        values = session(unit.model).run(list(unit.outputs), {name: known[name] for name in unit.inputs})
        assert not set(unit.outputs) & set(known)
        known |= dict(zip(unit.outputs, values, strict=True))
    return known


def feeds_of(exported) -> dict[str, np.ndarray]:
    images, sizes, _ = exported.canvas.place([photo for _, photo in photos([(64, 96), (60, 40)], seed=3)])
    return {"images": images, "image_sizes": sizes}


def equals_the_whole(model, units, feeds):
    found = run_one_after_another(units, feeds)
    whole = session(model)
    names = [output.name for output in whole.get_outputs()]
    for name, value in zip(names, whole.run(names, feeds), strict=True):
        # each session fuses nodes its own way, which rounds differently
        np.testing.assert_allclose(found[name], value, atol=1e-6 * max(1, np.abs(value).max()), rtol=0)


@pytest.mark.parametrize("form", ["native", "portable"])
def test_units_of_a_lowered_model_compute_the_whole(exported, form):
    model = lower(exported.abstract, form)
    equals_the_whole(model, split(model), feeds_of(exported))


def test_units_of_the_abstract_model_compute_the_whole(exported):
    """As the staged form will have it: each piece is cut first and lowered then, or run by other means."""
    units = split(exported.abstract)
    lowered = [Unit(u.name, u.op, lower(u.model, "native"), u.inputs, u.outputs) for u in units]
    equals_the_whole(lower(exported.abstract, "native"), lowered, feeds_of(exported))


def test_units_of_a_half_precision_model_compute_the_whole(dynamic):
    model = lower(fp16(dynamic.abstract), "native")
    found = run_one_after_another(split(model), feeds_of(dynamic))
    whole = session(model)
    names = [output.name for output in whole.get_outputs()]
    expected = dict(zip(names, whole.run(names, feeds_of(dynamic)), strict=True))
    np.testing.assert_array_equal(found["num_detections"], expected["num_detections"])
    np.testing.assert_allclose(found["scores"], expected["scores"], atol=5e-3)  # 11 bits, rounded at other places


def test_every_node_is_in_one_unit(exported):
    units = split(exported.abstract)
    nodes = [node.name for unit in units for node in unit.model.graph]
    assert Counter(nodes) == Counter(node.name for node in exported.abstract.graph)
    for unit in units:
        ours = [node for node in unit.model.graph if node.domain == DOMAIN]
        assert len(ours) == (unit.op is not None)
        if unit.op is not None:
            assert [node.op_type for node in unit.model.graph] == [unit.op]


def test_names_order_and_borders(fixed, dynamic):
    units = split(fixed.abstract)
    assert [unit.name for unit in units] == [
        "dense_0", "RegionProposals_0", "RegionRoiAlign_0", "dense_1", "RegionDetections_0",
    ]  # fmt: skip
    by_name = {unit.name: unit for unit in units}
    assert by_name["dense_0"].inputs == ("images", "image_sizes")
    assert set(by_name["dense_0"].outputs) == {"features.0", "objectness.0", "rpn_deltas.0"}
    assert by_name["dense_1"].inputs == ("roi_features",)
    assert set(by_name["dense_1"].outputs) == {"class_logits", "box_deltas"}
    assert [unit.name for unit in split(dynamic.abstract)] == [
        "dense_0", "RegionProposals_0", "RegionRoiAlign_0", "dense_1", "RegionDetections_0", "RegionRoiAlign_1",
        "dense_2",
    ]  # fmt: skip


def test_units_keep_names_types_and_their_functions_only(exported):
    model = lower(exported.abstract, "portable")
    units = split(model)
    for unit in units:
        assert tuple(v.name for v in unit.model.graph.inputs) == unit.inputs
        assert tuple(v.name for v in unit.model.graph.outputs) == unit.outputs
        assert all(v.dtype is not None for v in (*unit.model.graph.inputs, *unit.model.graph.outputs))
        assert len(unit.model.functions) == (unit.op is not None)


def test_the_model_is_left_as_it_was(exported):
    model = lower(exported.abstract, "native")
    before = ir.to_proto(model).SerializeToString()
    split(model)
    assert ir.to_proto(model).SerializeToString() == before


def test_a_model_without_our_ops_is_one_dense_unit():
    x = ir.val("x", dtype=ir.DataType.FLOAT, shape=["N", 3])
    node = ir.node("Relu", [x])
    node.outputs[0].name = "y"
    node.outputs[0].type, node.outputs[0].shape = x.type, x.shape
    graph = ir.Graph([x], node.outputs, nodes=[node], opset_imports={"": 20}, name="g")
    (unit,) = split(ir.Model(graph, ir_version=10))
    assert (unit.name, unit.op, unit.inputs, unit.outputs) == ("dense_0", None, ("x",), ("y",))


def test_weights_that_are_dequantised_stay_with_the_layers_that_read_them(fixed):
    values = {str(v.name) for node in fixed.abstract.graph for v in (*node.inputs, *node.outputs) if v is not None}
    model, layers = int8(fixed.abstract, dict.fromkeys(values, Range(-1.0, 1.0)), U8S8, ())
    assert len(layers) > 3
    handed_on = {name for unit in split(lower(model, "native")) for name in unit.inputs}
    assert not {name for name in handed_on if name.endswith(".dequantized")}
