"""Small dense stages, cut for ncnn and compared with ONNX Runtime's."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from onnx import helper, numpy_helper

from regionrt.export.ncnn import ncnn_stage, pieces_of, write_cuts
from regionrt.export.weights import write_models
from regionrt.runtime.backends.ncnn import NcnnStages
from regionrt.runtime.backends.onnxruntime import OnnxRuntimeStages

RNG = np.random.default_rng(3)
FILE = "staged-dense_0.onnx"


def tensor(name: str, *shape: int) -> onnx.TensorProto:
    return numpy_helper.from_array(RNG.standard_normal(shape).astype(np.float32) / 4, name)


def conv(x: str, y: str, weight: str, bias: str | None = None, **attributes) -> onnx.NodeProto:
    return helper.make_node("Conv", [x, weight, *([bias] if bias else [])], [y], **attributes)


def model_of(nodes, constants, outputs=("y",), sides=(None, 6, 20, 28)) -> ir.Model:
    """A stage from x [N, 6, 20, 28] to `outputs`, with the shapes that inference finds."""
    dims = ["batch" if side is None else side for side in sides]
    graph = helper.make_graph(
        nodes,
        "dense_0",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, dims)],
        [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in outputs],
        constants,
    )
    whole = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return ir.from_proto(onnx.shape_inference.infer_shapes(whole, strict_mode=True))


def stage_json(model: ir.Model) -> dict:
    return {
        "name": "dense_0", "outputs": [value.name for value in model.graph.outputs],
        "slots": None, "inputs": ["x"], "channels_last": [],
    }  # fmt: skip


def written(model: ir.Model, folder: Path, rows: bool = False) -> Path:
    """The stage cut for ncnn in `folder`, beside the whole of it; the file to open. rows: of RoIs."""
    cut = ncnn_stage(model, rows=rows)
    assert cut is not None
    write_models(folder, {FILE: model, **pieces_of({FILE: cut})})
    write_cuts(folder, {FILE: cut}, "weights.bin")
    return folder / cut.files(FILE)[0]


def layers_in(path: Path) -> Counter:
    return Counter(line.split()[0] for line in json.loads(path.read_text())["layers"][2:])


def both(
    model: ir.Model, folder: Path, sides=(2, 6, 20, 28), *, rows: bool = False, atol: float = 2e-5
) -> tuple[dict, dict, Counter]:
    """What ONNX Runtime and ncnn find on the same maps, and the layers that ncnn had."""
    path = written(model, folder, rows)
    x = RNG.standard_normal(sides).astype(np.float32)
    found = NcnnStages(1).open(path, stage_json(model)).session().run({"x": x})
    wanted = OnnxRuntimeStages(1).open(folder / FILE, stage_json(model)).session().run({"x": x})
    for name, value in wanted.items():
        assert found[name].dtype == value.dtype
        np.testing.assert_allclose(found[name], value, atol=atol, rtol=1e-5)
    return found, wanted, layers_in(path)
