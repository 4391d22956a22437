"""Cutting into dense stages and ops between: what the stages take and give, and the artefacts that are made of them."""

from __future__ import annotations

import json

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from tiny_detectors import DETECTIONS, PROPOSALS

from regionrt.export import ExportError
from regionrt.export.passes.split import Unit, split
from regionrt.export.passes.stages import _one_row_per_image, stages


def test_stages_of_a_pyramid_with_masks(dynamic):
    dense, between = stages(dynamic.abstract)
    assert [(stage.name, stage.slots) for stage in dense] == [
        ("dense_0", None),
        ("dense_1", PROPOSALS),
        ("dense_2", DETECTIONS),
    ]
    assert [op.op for op in between] == ["RegionProposals", "RegionRoiAlign", "RegionDetections", "RegionRoiAlign"]
    body, box, mask = dense
    assert set(body.channels_last) == {"features.0", "features.1"}
    assert box.channels_last == (), "a fully connected layer reads its RoIs channel by channel"
    assert mask.channels_last == ("mask_roi_features",)
    shapes = {stage.name: stage.to_json("f")["shapes"] for stage in dense}
    assert shapes["dense_1"] == {"roi_features": [None, 1, 8, 3, 3], "class_logits": [None, 1, 4],
                                 "box_deltas": [None, 1, 16]}  # fmt: skip
    assert shapes["dense_2"]["mask_roi_features"] == [None, 4, 4, 8]
    assert shapes["dense_2"]["masks"] == [None, 1, 8, 8]


def test_weights_may_take_their_rois_channels_last(exported):
    """The same rows, in the other order, give the same values."""
    import onnxruntime

    features = np.random.default_rng(0).normal(size=(5, 1, 8, 3, 3)).astype(np.float32)
    found = []
    for permute in (False, True):
        dense, _ = stages(exported.abstract, permute_weights=permute)
        (box,) = [stage for stage in dense if stage.name == "dense_1"]
        assert box.channels_last == (("roi_features",) if permute else ())
        session = onnxruntime.InferenceSession(ir.to_proto(box.model).SerializeToString())
        rows = np.ascontiguousarray(features[:, 0].transpose(0, 2, 3, 1)) if permute else features
        assert list(rows.shape[1:]) == box.to_json("f")["shapes"]["roi_features"][1:]
        found.append(session.run(["class_logits", "box_deltas"], {"roi_features": rows}))
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_constants_go_with_their_op(fixed):
    _, (proposals, *_) = stages(fixed.abstract)
    assert list(proposals.constants) == ["anchors.0"]
    assert proposals.constants["anchors.0"].shape == (8 * 12 * 6, 4)
    json.dumps(proposals.to_json())  # plain values


def test_every_stage_passes_onnxs_checker(exported):
    for stage in stages(exported.abstract)[0]:
        proto = ir.to_proto(stage.model)
        onnx.checker.check_model(proto, full_check=True)
        assert not proto.functions
        used = {name for node in proto.graph.node for name in node.input}
        assert {t.name for t in proto.graph.initializer} <= used, "no weights that nobody reads"


def test_the_slots_of_no_image_are_left_in_a_stage_of_rows(exported):
    for stage in stages(exported.abstract)[0]:
        if stage.slots:
            numbers = [v.const_value.numpy().ravel().tolist() for v in stage.model.graph.initializers.values()
                       if v.dtype == ir.DataType.INT64]  # fmt: skip
            assert not any(count in values for values in numbers for count in (PROPOSALS, DETECTIONS))


def test_the_model_is_left_as_it_was(exported):
    before = ir.to_proto(exported.abstract).SerializeToString()
    stages(exported.abstract)
    assert ir.to_proto(exported.abstract).SerializeToString() == before


def test_rows_that_are_mixed_are_refused():
    """A stage that sees all slots of an image at once cannot run on rows."""
    x = ir.val("x", dtype=ir.DataType.FLOAT, shape=["N", 5, 3])
    y = ir.val("y", dtype=ir.DataType.FLOAT, shape=["N", 7, 3])
    node = ir.node("Concat", [x, y], {"axis": 1})
    graph = ir.Graph([x, y], node.outputs, nodes=[node], opset_imports={"": 20}, name="g")
    unit = Unit("dense_1", None, ir.Model(graph, ir_version=10), ("x", "y"), ("z",))
    with pytest.raises(ExportError, match=r"the same number of slots, found x \[.*5, 3\], y .*without the staged form"):
        _one_row_per_image(unit)


def test_a_row_by_itself_gives_what_it_gives_among_others(dynamic):
    """What makes running on the real rows only right: no row of a stage sees another."""
    import onnxruntime

    (box,) = [stage for stage in stages(dynamic.abstract)[0] if stage.name == "dense_1"]
    (whole,) = [unit for unit in split(dynamic.abstract) if unit.name == "dense_1"]
    features = np.random.default_rng(0).normal(size=(2, PROPOSALS, 8, 3, 3)).astype(np.float32)
    runs = [onnxruntime.InferenceSession(ir.to_proto(m).SerializeToString()) for m in (box.model, whole.model)]
    few = features[0, :7].reshape(7, 1, 8, 3, 3)
    found = runs[0].run(None, {"roi_features": few})
    for rows, wanted in zip(found, runs[1].run(None, {"roi_features": features}), strict=True):
        np.testing.assert_allclose(rows[:, 0], wanted[0, :7], atol=1e-5)
