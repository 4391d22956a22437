"""fp16: dense layers in half precision; box arithmetic, softmax and everything before the first layer stay fp32."""

from collections.abc import Collection

import numpy as np
import onnx_ir as ir

from regionrt.plugins.ops import DOMAIN, POOLINGS

from ..errors import ExportError
from .layers import LAYERS

# What may stand between layers in half precision. All else (Softmax, Sigmoid, our ops,
# normalisation of the image) keeps fp32: there is little to gain and box coordinates need more than 11 bits.
BETWEEN = {
    "Add", "AveragePool", "BatchNormalization", "Clip", "Concat", "Flatten", "GatherElements", "GlobalAveragePool",
    "HardSigmoid", "HardSwish", "LeakyRelu", "MaxPool", "Mul", "ReduceMean", "Relu", "Reshape", "Resize", "Squeeze",
    "Transpose", "Unsqueeze",
}  # fmt: skip
_HALF, _FLOAT = ir.DataType.FLOAT16, ir.DataType.FLOAT
_SHAPE_INPUTS = {"Reshape": {1}, "Resize": {1, 2, 3}, "Squeeze": {1}, "Unsqueeze": {1}, "ReduceMean": {1}}
_LARGEST = float(np.finfo(np.float16).max)


def fp16(model: ir.Model, keep: Collection[str] = ()) -> ir.Model:
    """A copy of the abstract `model` with its layers in fp16 and Casts at the borders.

    keep: names of nodes that stay in fp32.

    Requires typed values; graph inputs and outputs keep their types. A node is halved if it is a layer, or if it may
    stand between layers and reads a halved value. Ops that pool regions read the halved features as they are (RoIs stay
    fp32). Raises ExportError when a weight does not fit into fp16, naming it.
    """
    half = model.clone()
    graph = half.graph
    halved: set[ir.Value] = set()
    casts: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}
    for node in list(graph):
        reads_half = any(value in halved for value in node.inputs)
        halves = node.op_type in LAYERS or (node.op_type in BETWEEN and reads_half)
        if node.domain == "" and halves and node.name not in keep:
            shapes = _SHAPE_INPUTS.get(node.op_type, set())
            for i, value in enumerate(node.inputs):
                if value is not None and i not in shapes and value.dtype == _FLOAT and value not in halved:
                    node.replace_input_with(i, _as(graph, node, value, _HALF, casts))
            for value in node.outputs:
                if value.dtype == _FLOAT:  # not the indices of a MaxPool
                    value.type = ir.TensorType(_HALF)  # a new type: clones share the old one
                    halved.add(value)
        elif node.domain == DOMAIN and node.op_type in POOLINGS and reads_half:
            for i, value in enumerate(node.inputs[:-2]):  # the levels; after them come rois and counts
                if value is not None and value not in halved:
                    node.replace_input_with(i, _as(graph, node, value, _HALF, casts))
            node.outputs[0].type = ir.TensorType(_HALF)
            halved.add(node.outputs[0])
        elif node.domain == DOMAIN and node.op_type in ("RegionMaxPool", "RegionMaxUnpool") and reads_half:
            for i, value in enumerate(node.inputs):
                if value is not None and value.dtype == _FLOAT and value not in halved:  # not the places
                    node.replace_input_with(i, _as(graph, node, value, _HALF, casts))
            node.outputs[0].type = ir.TensorType(_HALF)
            halved.add(node.outputs[0])
        elif reads_half:
            for i, value in enumerate(node.inputs):
                if value in halved:
                    node.replace_input_with(i, _as(graph, node, value, _FLOAT, casts))
    _restore_outputs(graph, halved, casts)
    graph.sort()
    return half


def _as(graph: ir.Graph, before: ir.Node, value: ir.Value, dtype: ir.DataType, casts: dict) -> ir.Value:
    """`value` in `dtype`: a converted initializer, or a Cast in front of the first node that needs it."""
    if (value, dtype) in casts:
        return casts[value, dtype]
    suffix = "fp16" if dtype == _HALF else "fp32"
    if value.is_initializer() and value.const_value is not None:
        weights = value.const_value.numpy()
        largest = float(np.abs(weights).max()) if weights.size else 0.0
        if dtype == _HALF and not largest <= _LARGEST:
            raise ExportError(
                f"weight {value.name} reaches {largest:.3g}, fp16 ends at {_LARGEST:.0f}: export with --precision fp32"
            )
        converted = ir.Value(
            name=f"{value.name}.{suffix}",
            type=ir.TensorType(dtype),
            shape=value.shape,
            const_value=ir.tensor(weights.astype(dtype.numpy()), name=f"{value.name}.{suffix}"),
        )
        graph.register_initializer(converted)
        casts[value, dtype] = converted
        return converted
    cast = ir.node("Cast", [value], {"to": int(dtype)}, name=f"cast_{value.name}_{suffix}")
    output = cast.outputs[0]
    output.name, output.type, output.shape = f"{value.name}.{suffix}", ir.TensorType(dtype), value.shape
    graph.insert_before(before, cast)
    casts[value, dtype] = output
    return output


def _restore_outputs(graph: ir.Graph, halved: set[ir.Value], casts: dict) -> None:
    """Graph outputs keep name and type."""
    for i, value in enumerate(graph.outputs):
        if value in halved:
            name = value.name
            value.name = f"{name}.fp16"
            cast = ir.node("Cast", [value], {"to": int(_FLOAT)}, name=f"cast_{name}")
            output = cast.outputs[0]
            output.name, output.type, output.shape = name, ir.TensorType(_FLOAT), value.shape
            graph.append(cast)
            graph.outputs[i] = output
    for name in [n for n, v in graph.initializers.items() if not v.uses()]:
        del graph.initializers[name]
