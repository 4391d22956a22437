"""The photo's transposition stays where it is, in ONNX Runtime's own graph too, and nothing else changes."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.helper as oh
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from torch import nn

from regionrt.export.passes.hold_layout import hold_layout
from regionrt.export.passes.int8 import U8S8, int8
from regionrt.export.passes.qdq import Range
from regionrt.train.models.region import normalise

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (2, 16, 24, 3), np.uint8)
SIZES = np.array([[16, 24], [10, 20]], np.int32)


class Photo(nn.Module):
    """A photo's normalisation, and two convolutions that are worth quantising."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 32, 3, 1, 1), nn.Conv2d(32, 32, 3, 1, 1)

    def forward(self, images: torch.Tensor, image_sizes: torch.Tensor) -> torch.Tensor:
        return self.b(self.a(normalise(images, image_sizes, MEAN, STD, channels_first=True)).relu())


def in_int8() -> ir.Model:
    torch.manual_seed(0)
    given = (torch.from_numpy(IMAGES), torch.from_numpy(SIZES))
    any_batch = ({0: torch.export.Dim("batch")},) * 2
    model = torch.onnx.export(
        Photo().eval(), given, dynamo=True, opset_version=20, verbose=False, dynamic_shapes=any_batch
    ).model
    ranges = {v.name: Range(0 if n.op_type == "Relu" else -6, 6) for n in model.graph for v in n.outputs}
    return int8(model, ranges, U8S8)[0]


def without_hold(model: ir.Model) -> ir.Model:
    bare = model.clone()
    for node in [node for node in bare.graph if node.op_type == "Reshape" and str(node.name).startswith("hold_")]:
        ir.convenience.replace_all_uses_with(node.outputs[0], node.inputs[0])
        bare.graph.remove(node, safe=True)
    return bare


def compiled(model: ir.Model, folder) -> tuple[np.ndarray, onnx.GraphProto]:
    """The output, and the graph that ONNX Runtime makes of it."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(folder / "compiled.onnx")
    content = ir.to_proto(model).SerializeToString()
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"images": IMAGES, "image_sizes": SIZES})
    return found, onnx.load(options.optimized_model_filepath).graph


def before_the_division(graph: onnx.GraphProto) -> str:
    """The operator that makes what the normalisation divides first."""
    division = next(node for node in graph.node if node.op_type == "Div")
    return next(node.op_type for node in graph.node if division.input[0] in node.output)


def test_onnx_runtime_normalises_channels_first(tmp_path):
    model = in_int8()
    found, graph = compiled(model, tmp_path)
    assert "QLinearConv" in {node.op_type for node in graph.node}
    assert before_the_division(graph) == "Reshape"
    other, moved = compiled(without_hold(model), tmp_path)
    np.testing.assert_array_equal(found, other)
    assert before_the_division(moved) == "Cast", "ONNX Runtime leaves the transposition by itself: the pass can go"


def graph_of(*nodes: onnx.NodeProto, shape=("N", "H", "W", 3)) -> ir.Model:
    made = oh.make_graph(
        list(nodes),
        "g",
        [oh.make_tensor_value_info("images", onnx.TensorProto.UINT8, shape)],
        [oh.make_tensor_value_info("out", onnx.TensorProto.FLOAT, None)],
    )
    model = oh.make_model(made, opset_imports=[oh.make_opsetid("", 20)], ir_version=10)
    return ir.from_proto(onnx.shape_inference.infer_shapes(model))


CAST = oh.make_node("Cast", ["images"], ["cast"], to=onnx.TensorProto.FLOAT)
LAY = oh.make_node("Transpose", ["cast"], ["laid"], perm=[0, 3, 1, 2])
NORMALISE = oh.make_node("Sqrt", ["laid"], ["out"])
LAY_AFTER = oh.make_node("Transpose", ["laid"], ["out"], perm=[0, 3, 1, 2])


@pytest.mark.parametrize("size", [(1, 4, 5, 3), (3, 2, 7, 3)])
def test_sizes_that_are_open_stay_open(size):
    model = graph_of(CAST, LAY, NORMALISE)
    hold_layout(model)
    assert [node.op_type for node in model.graph] == ["Cast", "Transpose", "Reshape", "Sqrt"]
    assert model.graph[2].outputs[0].name == "laid", "the value keeps its name"
    images = RNG.integers(0, 256, size, np.uint8)
    content = ir.to_proto(model).SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"images": images})
    np.testing.assert_array_equal(found, np.sqrt(images.astype(np.float32)).transpose(0, 3, 1, 2))


@pytest.mark.parametrize(
    "nodes",
    [
        (CAST, oh.make_node("Transpose", ["cast"], ["laid"], perm=[0, 2, 3, 1]), NORMALISE),
        (CAST, oh.make_node("Sqrt", ["cast"], ["laid"]), LAY_AFTER),
        (CAST, oh.make_node("Transpose", ["cast"], ["out"], perm=[0, 3, 1, 2])),
    ],
    ids=["another order", "not a photo", "an output"],
)  # fmt: skip
def test_other_transpositions_are_left_alone(nodes):
    model = graph_of(*nodes)
    hold_layout(model)
    assert [node.op_type for node in model.graph] == [node.op_type for node in nodes]
