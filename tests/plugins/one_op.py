"""One of our ops as a whole ONNX model: written in a form, run by a backend."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache

import numpy as np
import onnx
import onnx_ir as ir
from onnx.inliner import inline_local_functions

from regionrt.export.passes.lower import lower
from regionrt.plugins import DOMAIN, OPS, OPSET, VERSION

# (form, backend): OpenVINO takes no functions and is given the portable form inlined.
NATIVE, PORTABLE, OPENVINO = ("native", "onnxruntime"), ("portable", "onnxruntime"), ("portable", "openvino")
WAYS = (NATIVE, PORTABLE, OPENVINO)
_FLOAT, _BFLOAT16, _INT, _BOOL = ir.DataType.FLOAT, ir.DataType.BFLOAT16, ir.DataType.INT32, ir.DataType.BOOL
_OUTPUTS = {  # type (None: of the first input) and rank
    "RegionNms": ((_BOOL, 2),),
    "RegionRoiAlign": ((None, 5),),
    "RegionProposals": ((_FLOAT, 3), (_FLOAT, 2), (_INT, 1)),
    "RegionDetections": ((_INT, 1), (_FLOAT, 3), (_FLOAT, 2), (_INT, 2), (_INT, 2), (_INT, 1)),
}
Shape = tuple[int | str, ...]


def run(
    op: str,
    way: tuple[str, str],
    inputs: Mapping[str, np.ndarray],
    attributes: Mapping[str, object],
    shapes: Mapping[str, Shape] | None = None,
) -> list[np.ndarray]:
    """The outputs of `op` in one form on one backend.

    The model is built once for each set of shapes. `shapes` gives an input's shape as the model declares it, with names
    for dimensions that may vary; without it the first axis is the batch, which always may.
    """
    declared = tuple(
        (name, value.dtype, (shapes or {}).get(name, ("N", *value.shape[1:]))) for name, value in inputs.items()
    )
    frozen = tuple((k, tuple(v) if isinstance(v, list) else v) for k, v in attributes.items())
    execute = _executable(op, way, declared, frozen)
    return execute(dict(_feed(name, value) for name, value in inputs.items()))


def _feed(name: str, value: np.ndarray) -> tuple[str, np.ndarray]:
    if value.dtype.name == "bfloat16":
        return f"{name}_in", value.astype(np.float32)
    return name, np.ascontiguousarray(value)


def abstract(op: str, declared: Sequence[tuple[str, np.dtype, Shape]], attributes: Mapping[str, object]) -> ir.Model:
    """The abstract model that holds the one node."""
    values = [ir.val(name, dtype=ir.DataType.from_numpy(dtype), shape=shape) for name, dtype, shape in declared]
    node = ir.node(op, values, dict(attributes), domain=DOMAIN, num_outputs=len(_OUTPUTS[op]))
    formal = OPS[op].schema.outputs
    for output, described, (dtype, rank) in zip(node.outputs, formal, _OUTPUTS[op], strict=True):
        output.name = described.name
        output.type = ir.TensorType(dtype or values[0].dtype)
        output.shape = ir.Shape([f"{described.name}_{axis}" for axis in range(rank)])
    nodes, inputs, outputs = [node], values, list(node.outputs)
    if any(value.dtype == _BFLOAT16 for value in values):  # NumPy has no such type: in and out as float32
        inputs = [ir.val(f"{v.name}_in", dtype=_FLOAT, shape=v.shape) if v.dtype == _BFLOAT16 else v for v in values]
        nodes = [_cast(i, v) for i, v in zip(inputs, values, strict=True) if i is not v] + nodes
        outputs = [ir.val(f"{o.name}_out", dtype=_FLOAT, shape=o.shape) for o in outputs]
        nodes += [_cast(o, out) for o, out in zip(node.outputs, outputs, strict=True)]
    graph = ir.Graph(inputs, outputs, nodes=nodes, opset_imports={"": OPSET, DOMAIN: VERSION}, name=op)
    return ir.Model(graph, ir_version=10)


def _cast(source: ir.Value, target: ir.Value) -> ir.Node:
    return ir.node("Cast", [source], {"to": int(target.dtype)}, outputs=[target])


@cache
def _executable(op: str, way: tuple[str, str], declared, frozen) -> Callable[[Mapping[str, np.ndarray]], list]:
    form, backend = way
    attributes = {k: list(v) if isinstance(v, tuple) else v for k, v in frozen}
    model = ir.to_proto(lower(abstract(op, declared, attributes), form))
    onnx.checker.check_model(model)
    return {"onnxruntime": _in_onnxruntime, "openvino": _in_openvino, "onnx": _in_onnx}[backend](model)


def _in_onnxruntime(model: onnx.ModelProto):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda feeds: session.run(None, feeds)


def _in_openvino(model: onnx.ModelProto):
    import openvino

    core = openvino.Core()
    inlined = inline_local_functions(model)
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    compiled = core.compile_model(core.read_model(inlined.SerializeToString()), "CPU", settings)
    read = {name for port in compiled.inputs for name in port.names}  # an input that nothing reads is dropped

    def execute(feeds):
        return [np.array(v) for v in compiled({k: v for k, v in feeds.items() if k in read}).values()]

    return execute


def _in_onnx(model: onnx.ModelProto):
    """onnx's own evaluator, written in Python."""
    from onnx.reference import ReferenceEvaluator

    evaluator = ReferenceEvaluator(model)
    return lambda feeds: evaluator.run(None, feeds)
