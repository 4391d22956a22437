"""Q/DQ nodes around layers: which values and weights are quantised, in the dialect that a backend compiles to integers.

A layer computes in 8 bits where the engine finds its input and its weights behind `DequantizeLinear`; what else has to
stand there differs between engines:

| dialect | activations | weights, per output channel | bias | outputs of layers | who reads a dequantised value |
|---|---|---|---|---|---|
| `symmetric` | int8, zero point 0 | int8 | fp32 | as they are | quantised layers |
| `u8s8` | uint8 with a zero point | int8 of 7 bits | int32 | quantised, behind their Relu or Clip | everybody |
| `fp8` | E4M3 | E4M3, one scale | fp32 | as they are | quantised layers |

TensorRT refuses zero points and int32 biases. ONNX Runtime fuses a layer into an integer one only if its output is
quantised too, and a sum (a residual, a top-down path) only if all of its inputs are. On a CPU without VNNI it adds two
products of 8 bits in 16 and saturates: 2 · 255 · 127 does not fit, 2 · 255 · 63 does.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir

from ..errors import ExportError

_ACTIVATIONS = frozenset({"Relu", "Clip"})
_MOVING = frozenset({"MaxPool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze"})  # values stay what they are
FP8 = np.dtype(ml_dtypes.float8_e4m3fn)
FP8_LARGEST = 448.0


@dataclass(frozen=True)
class Range:
    """What a value spans on the calibration images; 0 lies inside."""

    low: float
    high: float

    @property
    def largest(self) -> float:
        return max(-self.low, self.high)


@dataclass(frozen=True)
class Dialect:
    """See the table above. `whole`: outputs of layers are quantised and everybody reads what is dequantised.

    largest_weight: the code of a channel's largest weight.
    """

    name: str
    activation: np.dtype
    weight: np.dtype
    largest_weight: float
    per_channel: bool
    whole: bool
    integer_bias: bool


def quantizable(graph: ir.Graph) -> list[ir.Node]:
    """The layers that can be quantised: `Conv` and plain `Gemm` with constant weights, in their order."""
    return [node for node in graph if _is_quantizable(node)]


def _is_quantizable(node: ir.Node) -> bool:
    if node.domain != "" or node.op_type not in ("Conv", "Gemm"):
        return False
    value, weight = node.inputs[0], node.inputs[1]
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if value is None or value.is_initializer() or not _is_constant(weight) or not (bias is None or _is_constant(bias)):
        return False
    if node.op_type == "Conv":
        return True
    factors = (node.attributes.get_float("alpha", 1.0), node.attributes.get_float("beta", 1.0))
    bias_is_plain = bias is None or (bias.shape is not None and len(bias.shape) == 1)
    return factors == (1.0, 1.0) and node.attributes.get_int("transA", 0) == 0 and bias_is_plain


def _is_constant(value: ir.Value | None) -> bool:
    return (
        value is not None
        and value.is_initializer()
        and value.const_value is not None
        and value.dtype == ir.DataType.FLOAT
    )


def quantized_values(graph: ir.Graph, layers: Collection[ir.Node], dialect: Dialect) -> dict[ir.Value, ir.Value]:
    """Each value that gets Q/DQ nodes in front of its readers → the value whose range it takes (usually itself)."""
    inputs = [value for layer in layers if (value := layer.inputs[0]) is not None]
    if not dialect.whole:
        return {value: value for value in inputs}
    wanted = dict.fromkeys([*inputs, *(_behind(layer.outputs[0]) for layer in layers)])
    nodes = list(graph)
    for node in reversed(nodes):  # a sum of quantised values whose result is quantised: all of it in integers
        if node.op_type != "Add" or node.domain != "" or _behind(node.outputs[0]) not in wanted:
            continue
        parts = [value for value in node.inputs if value is not None]
        if all(part in wanted or _moved_from(part) in wanted for part in parts):
            wanted |= dict.fromkeys(parts)
    sources: dict[ir.Value, ir.Value] = {}
    for value in (v for node in nodes for v in node.outputs):
        if value in wanted:
            origin = _moved_from(value)
            sources[value] = value if origin is None else sources.get(origin, value)
    return {value: sources.get(value, value) for value in wanted}


def _behind(value: ir.Value) -> ir.Value:
    """The value behind the activations that alone read it: what the engine writes when it has fused them."""
    while not value.is_graph_output():
        uses = list(value.uses())
        if len(uses) != 1 or uses[0].node.op_type not in _ACTIVATIONS or uses[0].node.domain != "":
            break
        value = uses[0].node.outputs[0]
    return value


def _moved_from(value: ir.Value) -> ir.Value | None:
    """What a node that only moves values made `value` from."""
    node = value.producer()
    if node is None or node.domain != "" or value is not node.outputs[0]:
        return None
    nearest = node.op_type == "Resize" and node.attributes.get_string("mode", "nearest") == "nearest"
    return node.inputs[0] if node.op_type in _MOVING or nearest else None


def insert_qdq(
    model: ir.Model, ranges: Mapping[str, Range], dialect: Dialect, keep: Collection[str] = ()
) -> tuple[ir.Model, tuple[str, ...]]:
    """A copy of `model` with Q/DQ nodes, and the names of the layers that are quantised.

    ranges: by name of the value. keep: names of layers that stay as they are. Values at the borders keep their names.
    Raises ExportError for a value without a range: the model was calibrated in another shape.
    """
    quantized = model.clone()
    graph = quantized.graph
    layers = [node for node in quantizable(graph) if node.name not in keep]
    values = quantized_values(graph, layers, dialect)
    for source in values.values():
        if source.name not in ranges:
            raise ExportError(f"{source.name} has no range: calibrate the model that is exported")
    scales = {v: _activation_scale(ranges[str(source.name)], dialect) for v, source in values.items()}
    members = set(layers)
    for layer in layers:
        value = layer.inputs[0]
        assert value is not None
        _quantize_weights(graph, layer, scales[value][0], dialect)
    for value, (scale, zero) in scales.items():
        readers = [use for use in value.uses() if dialect.whole or use.node in members]
        _quantize_value(graph, value, readers, scale, zero, dialect)
    for name in [name for name, value in graph.initializers.items() if not value.uses()]:
        del graph.initializers[name]
    graph.sort()
    return quantized, tuple(str(layer.name) for layer in layers)


def _activation_scale(found: Range, dialect: Dialect) -> tuple[float, int]:
    """Scale and zero point; a value that is always 0 gets scale 1."""
    if dialect.activation == np.uint8:
        scale = float(np.float32((found.high - found.low) / 255)) or 1.0
        return scale, int(np.clip(round(-found.low / scale), 0, 255))
    return float(np.float32(found.largest / (FP8_LARGEST if dialect.activation == FP8 else 127))) or 1.0, 0


def _quantize_value(
    graph: ir.Graph, value: ir.Value, readers: list[Any], scale: float, zero: int, dialect: Dialect
) -> None:
    """Value → Q → DQ → readers. Where everybody reads the new value it has the old one's name: borders keep theirs."""
    name = str(value.name)
    scale_value = _initializer(graph, f"{name}.scale", np.float32(scale))
    zero_value = _initializer(graph, f"{name}.zero_point", np.array(zero).astype(dialect.activation))
    q = ir.node("QuantizeLinear", [value, scale_value, zero_value], name=f"quantize_{name}")
    dq = ir.node("DequantizeLinear", [q.outputs[0], scale_value, zero_value], name=f"dequantize_{name}")
    made = dq.outputs[0]
    q.outputs[0].name = f"{name}.quantized"
    q.outputs[0].type, q.outputs[0].shape = ir.TensorType(ir.DataType.from_numpy(dialect.activation)), value.shape
    made.type, made.shape = ir.TensorType(ir.DataType.FLOAT), value.shape
    producer = value.producer()
    if dialect.whole and producer is not None:
        value.name, made.name = f"{name}.exact", name
    else:
        made.name = f"{name}.dequantized"
    for use in readers:
        use.node.replace_input_with(use.idx, made)
    if dialect.whole:
        for i, output in enumerate(graph.outputs):
            if output is value:
                graph.outputs[i] = made
    if producer is not None:
        graph.insert_after(producer, [q, dq])
    else:
        graph.insert_before(graph[0], [q, dq])


def _quantize_weights(graph: ir.Graph, layer: ir.Node, input_scale: float, dialect: Dialect) -> None:
    """Weights → int8 or fp8 behind DQ; the bias → int32 in steps of input scale × weight scale, where wanted."""
    weight = layer.inputs[1]
    assert weight is not None and weight.const_value is not None  # noqa: PT018
    array = weight.const_value.numpy()
    axis = 1 if layer.op_type == "Gemm" and layer.attributes.get_int("transB", 0) == 0 else 0
    bias = layer.inputs[2] if len(layer.inputs) > 2 else None
    scale = weight_scale(array, axis, dialect)
    integer_bias = None
    if dialect.integer_bias and bias is not None and bias.const_value is not None:
        exact = bias.const_value.numpy().astype(np.float64)
        scale = np.maximum(scale, (np.abs(exact) / (2**30 * input_scale)).astype(np.float32))
        integer_bias = np.rint(exact / (scale.astype(np.float64) * input_scale)).astype(np.int32)
    shape = [-1 if i == axis else 1 for i in range(array.ndim)]
    steps = array / (scale.reshape(shape) if dialect.per_channel else scale)
    codes = steps.astype(FP8) if dialect.weight == FP8 else np.rint(steps).astype(np.int8)
    name = f"{weight.name}.{layer.name}"  # two layers may share weights, and read other inputs
    _dequantized(graph, layer, 1, name, codes, scale, axis if dialect.per_channel else None)
    if integer_bias is not None:
        combined = (scale * np.float32(input_scale)).astype(np.float32)
        _dequantized(graph, layer, 2, f"{name}.bias", integer_bias, combined, 0)


def weight_scale(array: np.ndarray, axis: int, dialect: Dialect) -> np.ndarray:
    """[channels], or a scalar for one scale; 1 where all weights are 0."""
    others = tuple(i for i in range(array.ndim) if i != axis) if dialect.per_channel else None
    largest = np.abs(array).max(axis=others)
    scale = (largest / dialect.largest_weight).astype(np.float32)
    return np.where(scale > 0, scale, np.float32(1))


def _dequantized(
    graph: ir.Graph, layer: ir.Node, index: int, name: str, codes: np.ndarray, scale: np.ndarray, axis: int | None
) -> None:
    """Input `index` of the layer becomes a dequantised constant."""
    inputs = [
        _initializer(graph, f"{name}.codes", codes),
        _initializer(graph, f"{name}.scale", scale),
        _initializer(graph, f"{name}.zero_point", np.zeros(scale.shape, codes.dtype)),
    ]
    dq = ir.node("DequantizeLinear", inputs, {} if axis is None else {"axis": axis}, name=f"dequantize_{name}")
    output = dq.outputs[0]
    output.name, output.type = f"{name}.dequantized", ir.TensorType(ir.DataType.FLOAT)
    output.shape = ir.Shape(codes.shape)
    graph.insert_before(layer, dq)
    layer.replace_input_with(index, output)


def _initializer(graph: ir.Graph, name: str, array: np.ndarray | np.generic) -> ir.Value:
    tensor = ir.tensor(np.asarray(array), name=name)
    value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=tensor.shape, const_value=tensor)
    graph.register_initializer(value)
    return value
