"""Tiny ONNX nets and the bundles around them that the tests of `regionrt.runtime.build` build engines from."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from regionrt.runtime.bundle import sha256_of
from regionrt.runtime.image import Canvas

SIZE = 32
CHANNELS = 16
OPSETS = [helper.make_opsetid("", 20), helper.make_opsetid("regionrt", 1)]


def convolutions(precision: str = "fp32") -> onnx.ModelProto:
    """images uint8 [N, 32, 32, 3], image_sizes int32 [N, 2] -> scores float32 [N, 8]: three convolutions and a Gemm."""
    rng = np.random.default_rng(0)
    dtype, onnx_type = {"fp32": (np.float32, TensorProto.FLOAT), "fp16": (np.float16, TensorProto.FLOAT16)}[precision]

    def weights(name: str, *shape: int) -> onnx.TensorProto:
        return numpy_helper.from_array((rng.standard_normal(shape) * 0.1).astype(dtype), name)

    nodes = [
        helper.make_node("Cast", ["images"], ["nhwc"], to=onnx_type),
        helper.make_node("Transpose", ["nhwc"], ["x"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["x", "w0"], ["c0"], name="stem", pads=[1] * 4),
        helper.make_node("Relu", ["c0"], ["r0"]),
        helper.make_node("Conv", ["r0", "w1"], ["c1"], name="body", pads=[1] * 4),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("ConvTranspose", ["r1", "w2"], ["c2"], name="up", strides=[2, 2]),
        helper.make_node("GlobalAveragePool", ["c2"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Gemm", ["flat", "w3"], ["logits"]),
        helper.make_node("Cast", ["logits"], ["logits32"], to=TensorProto.FLOAT),
        helper.make_node("Cast", ["image_sizes"], ["sizes"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMax", ["sizes", "axis"], ["largest"]),
        helper.make_node("Div", ["logits32", "largest"], ["scores"]),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [
            helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", SIZE, SIZE, 3]),
            helper.make_tensor_value_info("image_sizes", TensorProto.INT32, ["N", 2]),
        ],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["N", 8])],
        [
            weights("w0", CHANNELS, 3, 3, 3),
            weights("w1", CHANNELS, CHANNELS, 3, 3),
            weights("w2", CHANNELS, CHANNELS, 2, 2),
            weights("w3", CHANNELS, 8),
            numpy_helper.from_array(np.array([1], np.int64), "axis"),
        ],
    )
    return _model(graph)


def fixed_point_in_functions() -> onnx.ModelProto:
    """`convolutions` and then a model-local function that calls another one inside a `Loop`.

    The loop's body uses a value of the function around it, as fixed-point NMS does with its overlap matrix.
    """
    model = convolutions()
    step = helper.make_function(
        "regionrt",
        "Step",
        ["keep", "overlaps"],
        ["next"],
        [
            helper.make_node("Constant", [], ["axis"], value_ints=[2]),
            helper.make_node("Constant", [], ["one"], value_float=1.0),
            helper.make_node("Unsqueeze", ["keep", "axis_1"], ["row"]),
            helper.make_node("Constant", [], ["axis_1"], value_ints=[1]),
            helper.make_node("Mul", ["overlaps", "row"], ["suppressing"]),
            helper.make_node("ReduceMax", ["suppressing", "axis"], ["worst"], keepdims=0),
            helper.make_node("Sub", ["one", "worst"], ["next"]),
        ],
        OPSETS,
    )
    step.node.sort(key=lambda node: node.op_type != "Constant")
    body = helper.make_graph(
        [
            helper.make_node("Step", ["keep", "overlaps"], ["next"], domain="regionrt"),
            helper.make_node("Sub", ["next", "keep"], ["change"]),
            helper.make_node("Abs", ["change"], ["distance"]),
            helper.make_node("ReduceMax", ["distance"], ["furthest"], keepdims=0),
            helper.make_node("Greater", ["furthest", "tolerance"], ["again"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("round", TensorProto.INT64, []),
            helper.make_tensor_value_info("was", TensorProto.BOOL, []),
            helper.make_tensor_value_info("keep", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("again", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, None),
        ],
    )
    fixed_point = helper.make_function(
        "regionrt",
        "FixedPoint",
        ["start"],
        ["end"],
        [
            helper.make_node("Constant", [], ["tolerance"], value_float=0.5),
            helper.make_node("Constant", [], ["rounds"], value_int=8),
            helper.make_node("Constant", [], ["yes"], value=numpy_helper.from_array(np.array(True))),
            helper.make_node("Constant", [], ["column_axis"], value_ints=[2]),
            helper.make_node("Constant", [], ["row_axis"], value_ints=[1]),
            helper.make_node("Unsqueeze", ["start", "column_axis"], ["column"]),
            helper.make_node("Unsqueeze", ["start", "row_axis"], ["row"]),
            helper.make_node("Greater", ["column", "row"], ["above"]),
            helper.make_node("Cast", ["above"], ["overlaps"], to=TensorProto.FLOAT),
            helper.make_node("Loop", ["rounds", "yes", "start"], ["end"], body=body),
        ],
        OPSETS,
    )
    model.functions.extend([step, fixed_point])
    model.graph.node.append(helper.make_node("FixedPoint", ["scores"], ["kept"], name="nms", domain="regionrt"))
    model.graph.output.append(helper.make_tensor_value_info("kept", TensorProto.FLOAT, ["N", 8]))
    onnx.checker.check_model(model)
    return model


def non_max_suppression() -> onnx.ModelProto:
    """`convolutions` and a node that TensorRT for RTX parses and has no implementation for."""
    model = convolutions()
    model.graph.node.extend(
        [
            helper.make_node("Reshape", ["scores", "as_boxes"], ["boxes"]),
            helper.make_node("Reshape", ["logits32", "as_scores"], ["class_scores"]),
            helper.make_node("NonMaxSuppression", ["boxes", "class_scores", "most", "iou"], ["kept"], name="nms"),
        ]
    )
    for name, value in (
        ("as_boxes", np.array([-1, 2, 4], np.int64)),
        ("as_scores", np.array([-1, 4, 2], np.int64)),
        ("most", np.array([2], np.int64)),
        ("iou", np.array([0.5], np.float32)),
    ):
        model.graph.initializer.append(numpy_helper.from_array(value, name))
    model.graph.output.append(helper.make_tensor_value_info("kept", TensorProto.INT64, None))
    return model


def unknown_operator() -> onnx.ModelProto:
    """`convolutions` and a node of our domain that was not lowered to a function."""
    model = convolutions()
    model.graph.node.append(helper.make_node("RegionNms", ["scores"], ["kept"], name="nms", domain="regionrt"))
    model.graph.output.append(helper.make_tensor_value_info("kept", TensorProto.FLOAT, None))
    return model


def fixed_profile(batch: int = 1) -> dict[str, dict[str, list[int]]]:
    """The profile of exactly one size."""
    return profile(batch, batch, batch)


def profile(least: int, usual: int, most: int) -> dict[str, dict[str, list[int]]]:
    """A profile over batch sizes."""
    return {
        "images": {name: [n, SIZE, SIZE, 3] for name, n in (("min", least), ("opt", usual), ("max", most))},
        "image_sizes": {name: [n, 2] for name, n in (("min", least), ("opt", usual), ("max", most))},
    }


def write_bundle(
    folder: Path,
    graphs: Mapping[tuple[str, str], onnx.ModelProto],
    profiles: list[dict[str, Any]] | None = None,
) -> Path:
    """A bundle with one ONNX file per (form, precision), each with its weights in a file beside it."""
    folder.mkdir(parents=True)
    (folder / "labels.txt").write_text("__background__\nthing\n")
    artifacts = []
    for (form, precision), model in graphs.items():
        name, data = f"{form}-{precision}.onnx", f"weights-{form}-{precision}.bin"
        onnx.save(model, folder / name, save_as_external_data=True, location=data, size_threshold=64)
        artifacts.append(
            {
                "backend": "onnxruntime",
                "form": form,
                "precision": precision,
                "files": [name, data],
                "inputs": [
                    {"name": "images", "dtype": "uint8", "shape": ["N", SIZE, SIZE, 3]},
                    {"name": "image_sizes", "dtype": "int32", "shape": ["N", 2]},
                ],
                "outputs": [{"name": "scores", "dtype": "float32", "shape": ["N", 8]}],
                "profiles": [fixed_profile()] if profiles is None else profiles,
                "stages": [],
                "ops_between": [],
            }
        )
    manifest = {
        "format": "regionrt-bundle/1",
        "task": "detection",
        "model": "tiny",
        "labels_file": "labels.txt",
        "checkpoint_sha256": None,
        "created": "2026-01-01T00:00:00+00:00",
        "versions": {"regionrt": "0.1.0"},
        "canvas": Canvas(height=SIZE, width=SIZE, min_size=SIZE, max_size=SIZE).to_json(),
        "max_batch": None,
        "thresholds": {
            "score": 0.05,
            "nms": 0.5,
            "detections": 100,
            "proposals": 1000,
            "proposal_nms": 0.7,
            "candidates": 3840,
        },
        "files": {
            path.name: {"bytes": path.stat().st_size, "sha256": sha256_of(path)} for path in sorted(folder.iterdir())
        },
        "artifacts": artifacts,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=2))
    return folder


def _model(graph: onnx.GraphProto) -> onnx.ModelProto:
    model = helper.make_model(graph, opset_imports=OPSETS, ir_version=10)
    onnx.checker.check_model(model)
    return model
