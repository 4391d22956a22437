"""The staged form: dense stages that an engine runs, and our ops between them, which the runtime computes natively."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from regionrt.plugins.ops import POOLINGS

from ..errors import ExportError
from .split import Unit, split

_TO_LAST, _TO_FIRST = [0, 2, 3, 1], [0, 3, 1, 2]


@dataclass(frozen=True)
class Stage:
    """One dense stage.

    slots: None, or: its inputs and outputs are rows of RoIs of all images, [R, …], those that are real, packed without
    gaps; so many of each image at most.
    channels_last: names of its inputs and outputs that are [·, H, W, C].
    quantized: names of its layers that are in 8 bits.
    """

    name: str
    model: ir.Model
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    slots: int | None
    channels_last: tuple[str, ...]
    quantized: tuple[str, ...] = ()

    def _borders(self) -> list[ir.Value]:
        return [*self.model.graph.inputs, *self.model.graph.outputs]

    def to_json(self, file: str) -> dict[str, Any]:
        """As the manifest has it; a side that may vary is null in `shapes`."""
        return {
            "name": self.name,
            "file": file,
            "inputs": list(self.inputs),
            "outputs": list(self.outputs),
            "shapes": {v.name: [d if isinstance(d, int) else None for d in v.shape or ()] for v in self._borders()},
            "slots": self.slots,
            "channels_last": list(self.channels_last),
            **({"quantized": list(self.quantized)} if self.quantized else {}),
        }


@dataclass(frozen=True)
class OpBetween:
    """One of our ops between dense stages; `constants` are those of its inputs that never change (anchors)."""

    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any]
    constants: dict[str, np.ndarray] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {
            "op": self.op,
            "inputs": list(self.inputs),
            "outputs": list(self.outputs),
            "attributes": self.attributes,
        }


def stages(model: ir.Model, *, permute_weights: bool = False) -> tuple[list[Stage], list[OpBetween]]:
    """The dense stages and the ops of an abstract `model`, each in the order in which they run.

    permute_weights: also let fully connected layers take RoI features channels last, with their weights in that order.
    That spares transposing each RoI, and costs room in a bundle whose other forms need the weights as they were.

    Feature maps that RoIs are pooled from, and RoI features that a convolution reads, are handed over channels last:
    that is how matrix units want them, and a RoI's samples then lie side by side. Raises ExportError for a graph whose
    stages do not treat each RoI on its own.
    """
    units = split(model)
    pooled = {name for unit in units if unit.op in POOLINGS for name in unit.inputs[:-2]}
    by_row = _values_by_row(units)
    dense = [_stage(unit, pooled, by_row, permute_weights) for unit in units if unit.op is None]
    return dense, [_op(unit) for unit in units if unit.op is not None]


def whole_stage(model: ir.Model) -> Stage:
    """All of a lowered `model` as one dense stage, its functions inlined: engines do not know functions.

    For nets in which our ops need no RoIs: unpooling between stages would only carry feature maps out and in.
    """
    whole = model.clone()
    InlinePass()(whole)
    inputs, outputs = (tuple(v.name for v in values) for values in (whole.graph.inputs, whole.graph.outputs))
    return Stage("dense_0", whole, inputs, outputs, None, ())


def _values_by_row(units: Iterable[Unit]) -> set[str]:
    """Names of values [N, slots, …] whose rows belong to RoIs or detections."""
    found: set[str] = set()
    for unit in units:
        if unit.op in POOLINGS or (unit.op is None and any(name in found for name in unit.inputs)):
            found.update(unit.outputs)
    return found


def _stage(unit: Unit, pooled: set[str], by_row: set[str], permute_weights: bool) -> Stage:
    graph = unit.model.graph
    rows = any(name in by_row for name in unit.inputs)
    slots = _one_row_per_image(unit) if rows else None
    last = [value.name for value in graph.outputs if value.name in pooled]
    for name in last:
        _output_channels_last(graph, name)
    if rows:
        last += [
            value.name
            for value in list(graph.inputs)
            if _input_channels_last(graph, value) or (permute_weights and _weights_channels_last(graph, value))
        ]
    for name in [name for name, value in graph.initializers.items() if not value.uses()]:
        del graph.initializers[name]
    return Stage(unit.name, unit.model, unit.inputs, unit.outputs, slots, tuple(last))


def _one_row_per_image(unit: Unit) -> int:
    """Let the stage take rows [R, 1, …] where it took [N, slots, …], a batch of R images with one slot each; the slots.

    The slots stand as a constant where rows are told apart by images again; there they become 1.
    """
    graph = unit.model.graph
    slots = {value.shape[1] for value in graph.inputs if value.shape is not None and len(value.shape) > 1}
    if len(slots) != 1 or not all(isinstance(count, int) for count in slots):
        raise ExportError(
            f"{unit.name}: expected inputs that all are [images, slots, …] with the same number of slots, found "
            f"{', '.join(f'{v.name} {list(v.shape or [])}' for v in graph.inputs)}: export without the staged form"
        )
    (count,) = slots
    batch = graph.inputs[0].shape[0]  # type: ignore[index]
    for node in list(graph):
        target = node.outputs[0].shape
        if node.op_type != "Reshape" or target is None or len(target) < 2 or target[0] != batch or target[1] != count:
            continue
        shape = node.inputs[1]
        wanted = None if shape is None or shape.const_value is None else shape.const_value.numpy().copy()
        if wanted is None or wanted[0] != -1 or wanted[1] != count:
            raise ExportError(f"{unit.name}: the shape of {node.outputs[0].name} is not known at export")
        wanted[1] = 1
        name = f"{shape.name}.rows"
        if name not in graph.initializers:
            graph.register_initializer(ir.Value(name=name, const_value=ir.tensor(wanted, name=name)))
        node.replace_input_with(1, graph.initializers[name])
    for value in (*graph.inputs, *(output for node in graph for output in node.outputs)):
        if value.shape is not None and value.shape[0] == batch:
            dims = [1 if i == 1 and d == count else d for i, d in enumerate(value.shape)]
            value.shape = ir.Shape(["rows", *dims[1:]])
        elif value.shape is not None and not isinstance(value.shape[0], int):
            value.shape = ir.Shape(["rows", *list(value.shape)[1:]])
    return int(count)


def _output_channels_last(graph: ir.Graph, name: str) -> None:
    (index,) = (i for i, value in enumerate(graph.outputs) if value.name == name)
    value = graph.outputs[index]
    value.name = f"{name}.channels_first"
    node = ir.node("Transpose", [value], {"perm": _TO_LAST}, name=f"transpose_{name}")
    output = node.outputs[0]
    output.name, output.type = name, value.type
    output.shape = ir.Shape([value.shape[i] for i in _TO_LAST]) if value.shape is not None else None
    graph.append(node)
    graph.outputs[index] = output


def _input_channels_last(graph: ir.Graph, value: ir.Value) -> bool:
    """Take [R, 1, C, h, w] as [R, h, w, C] if all that is done with it is to feed its rows to convolutions."""
    uses = [use.node for use in value.uses()]
    if len(uses) != 1 or uses[0].op_type != "Reshape" or value.shape is None or len(value.shape) != 5:
        return False
    rows = uses[0].outputs[0]
    if rows.shape is None or len(rows.shape) != 4 or any(use.node.op_type != "Conv" for use in rows.uses()):
        return False
    name, (batch, _, channels, height, width) = value.name, value.shape
    taken = ir.Value(name=name, type=value.type, shape=ir.Shape([batch, height, width, channels]))
    node = ir.node("Transpose", [taken], {"perm": _TO_FIRST}, name=f"transpose_{name}")
    first = node.outputs[0]
    first.name, first.type, first.shape = rows.name, rows.type, rows.shape
    graph.insert_before(uses[0], node)
    for use in list(rows.uses()):
        use.node.replace_input_with(use.idx, first)
    graph.remove(uses[0], safe=True)
    graph.inputs[list(graph.inputs).index(value)] = taken
    return True


def _weights_channels_last(graph: ir.Graph, value: ir.Value) -> bool:
    """Take [R, 1, C, h, w] as [R, h, w, C] if all that is done with it is to feed its flat rows to Gemm layers."""
    uses = [use.node for use in value.uses()]
    if len(uses) != 1 or uses[0].op_type != "Reshape" or value.shape is None or len(value.shape) != 5:
        return False
    flat = uses[0].outputs[0]
    readers = list(flat.uses())
    batch, _, channels, height, width = value.shape
    if flat.shape is None or len(flat.shape) != 2 or flat.shape[1] != channels * height * width:  # type: ignore[operator]
        return False
    weights = {use.node.inputs[1] for use in readers if _is_plain_gemm(use.node, use.idx)}
    if len(weights) != len(readers) or any(w is None or w.const_value is None for w in weights):
        return False
    for use in readers:
        weight = use.node.inputs[1]
        assert weight is not None
        name = f"{weight.name}.channels_last"
        if name not in graph.initializers:
            whole = weight.const_value.numpy()  # type: ignore[union-attr]
            moved = np.ascontiguousarray(whole.reshape(-1, channels, height * width).transpose(0, 2, 1))
            tensor = ir.tensor(moved.reshape(whole.shape), name=name)
            graph.register_initializer(ir.Value(name=name, type=weight.type, shape=weight.shape, const_value=tensor))
        use.node.replace_input_with(1, graph.initializers[name])
    taken = ir.Value(name=value.name, type=value.type, shape=ir.Shape([batch, height, width, channels]))
    uses[0].replace_input_with(0, taken)
    graph.inputs[list(graph.inputs).index(value)] = taken
    return True


def _is_plain_gemm(node: ir.Node, index: int) -> bool:
    """x · Wᵀ + b with W [outputs, inputs], as torch writes its fully connected layers."""
    transposed = {name: node.attributes.get_int(name, 0) for name in ("transA", "transB")}
    return node.op_type == "Gemm" and index == 0 and transposed == {"transA": 0, "transB": 1}


def _op(unit: Unit) -> OpBetween:
    (node,) = unit.model.graph
    constants = {
        value.name: value.const_value.numpy()
        for value in node.inputs
        if value is not None and value.is_initializer() and value.const_value is not None
    }
    attributes = {name: _plain(attribute.value) for name, attribute in node.attributes.items()}
    inputs = tuple(value.name for value in node.inputs if value is not None)
    return OpBetween(node.op_type, inputs, tuple(v.name for v in node.outputs), attributes, constants)


def _plain(value: Any) -> Any:
    """As JSON has it."""
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value.item() if hasattr(value, "item") else value
