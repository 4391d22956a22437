"""A dense stage for ncnn: its trunk as ncnn's layers, its weights as places in the bundle's file of weights.

ncnn computes 3×3 convolutions by Winograd's minimal filtering (Lavin and Gray, 1509.09308) in fp32, on any CPU. The
text of the layers and the order of the weights are those of ncnn's .param and .bin files.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from .passes.layers import LAYERS
from .passes.trunk import Trunk, trunk_of

_MAGIC = "7767517"
_ADD, _MUL = 0, 2  # BinaryOp's operations
_RELU, _CLIP = 1, 3  # what a convolution does with its results itself
LARGE_PX = 64
LEAST_SHARE = 0.5
"""Of a stage's layers: with fewer in the trunk the stage stays with the other engines."""


@dataclass(frozen=True)
class Weight:
    """A tensor as ncnn reads it: `value` with its axes in this order; tagged: its type stands before it."""

    value: ir.Value
    axes: tuple[int, ...] | None = None
    tagged: bool = False


@dataclass(frozen=True)
class NcnnStage:
    """`trunk`, and its nodes as lines of a .param file. blobs: names of what goes in and out there, by the value's."""

    trunk: Trunk
    layers: tuple[str, ...]
    blobs: Mapping[str, str]
    weights: tuple[Weight, ...]

    def on_large(self) -> bool:
        """Whether one map alone keeps a CPU's threads busy."""
        sides = [side for value in self.trunk.inputs for side in (value.shape or ())[2:]]
        return all(isinstance(side, int) and side >= LARGE_PX for side in sides)

    def files(self, stage: str) -> tuple[str, ...]:
        """What the stage whose ONNX file is `stage` consists of here; the first one names the others."""
        return (_named(stage, "ncnn.json"), *self.pieces(stage))

    def pieces(self, stage: str) -> dict[str, ir.Model]:
        """Before and after the trunk, by file."""
        of = {"before": self.trunk.before, "after": self.trunk.after}
        return {_named(stage, f"ncnn.{place}.onnx"): model for place, model in of.items() if model is not None}

    def to_json(self, stage: str, weights: str) -> dict[str, Any]:
        """What the runtime reads. For tensors that `write_models` has put into the file `weights`."""
        around = {
            file: {"file": file, "inputs": _names(model.graph.inputs), "outputs": _names(model.graph.outputs)}
            for file, model in self.pieces(stage).items()
        }
        return {
            "before": around.get(_named(stage, "ncnn.before.onnx")),
            "after": around.get(_named(stage, "ncnn.after.onnx")),
            "inputs": {name: self.blobs[name] for name in _names(self.trunk.inputs)},
            "outputs": {name: self.blobs[name] for name in _names(self.trunk.outputs)},
            "layers": list(self.layers),
            "weights": {"file": weights, "pieces": [_piece(weight) for weight in self.weights]},
        }


def pieces_of(cuts: Mapping[str, NcnnStage]) -> dict[str, ir.Model]:
    """The ONNX models around the trunks of `cuts`, by file. cuts: by the ONNX file of the stage."""
    return {file: model for stage, cut in cuts.items() for file, model in cut.pieces(stage).items()}


def write_cuts(folder: Path, cuts: Mapping[str, NcnnStage], weights: str) -> None:
    """Write what the runtime opens of each of `cuts`, after the models and `weights` have been written."""
    for stage, cut in cuts.items():
        (folder / cut.files(stage)[0]).write_text(json.dumps(cut.to_json(stage, weights)) + "\n", encoding="utf-8")


def ncnn_stage(model: ir.Model) -> NcnnStage | None:
    """`model`, a dense stage in fp32, for ncnn; None where ncnn has no equal of most of its layers."""
    trunk = trunk_of(model, lambda node: node.domain == "" and _lines_of(node) is not None, _read)
    layers = sum(node.op_type in LAYERS for node in model.graph)
    inside = sum(node.op_type in LAYERS for node in trunk.nodes)
    if not inside or inside < LEAST_SHARE * layers:
        return None
    return _written(trunk)


@dataclass(frozen=True)
class _Lines:
    """One node in ncnn: name of the layer, its parameters by number, its weights. then: more layers behind it."""

    layer: str
    parameters: Mapping[int, Any]
    weights: tuple[Weight, ...] = ()


def _lines_of(node: ir.Node) -> _Lines | None:
    """The node as a layer of ncnn, None where there is no equal one."""
    make = _LAYERS.get(node.op_type)
    return None if make is None or not _four_sided(node) else make(node)


def _four_sided(node: ir.Node) -> bool:
    """A batch of maps in, one out: of other shapes ncnn and ONNX count the sides differently."""
    values = [*_read(node), node.outputs[0]]
    return all(v.shape is not None and len(v.shape) == 4 and v.dtype == ir.DataType.FLOAT for v in values)


def _read(node: ir.Node) -> list[ir.Value]:
    """What ncnn's layer would compute from: sizes and weights are parameters there."""
    first = node.inputs[:1] if node.op_type not in ("Add", "Mul", "Concat") else node.inputs
    return [value for value in first if value is not None]


def _convolution(node: ir.Node) -> _Lines | None:
    weight, bias = node.inputs[1], node.inputs[2] if len(node.inputs) > 2 else None
    transposed = node.op_type == "ConvTranspose"
    if weight is None or not _is_constant(weight) or (bias is not None and not _is_constant(bias)):
        return None
    group = node.attributes.get_int("group", 1)
    sides = tuple(int(side) for side in weight.shape or ())  # type: ignore[arg-type]
    outputs = sides[1] * group if transposed else sides[0]
    inputs = sides[0] if transposed else sides[1] * group
    if len(sides) != 4 or (group > 1 and not group == inputs == outputs) or not _explicit(node):
        return None
    parameters = {0: outputs, **_window(node, sides[2:]), 5: int(bias is not None), 6: int(np.prod(sides))}
    name = "Deconvolution" if transposed else "Convolution"
    if transposed:
        below, right = node.attributes.get_ints("output_padding", [0, 0])
        parameters |= {18: right, 19: below}
        if "output_shape" in node.attributes:
            return None
    if group > 1:
        name, parameters = f"{name}DepthWise", parameters | {7: group}
    axes = (1, 0, 2, 3) if transposed and group == 1 else None
    weights = (Weight(weight, axes, tagged=True), *((Weight(bias),) if bias is not None else ()))
    return _Lines(name, parameters, weights)


def _max_pool(node: ir.Node) -> _Lines | None:
    pads = node.attributes.get_ints("pads", [0] * 4)
    whole = node.attributes.get_int("ceil_mode", 0)
    dilated = set(node.attributes.get_ints("dilations", [1, 1])) != {1}
    if len(node.outputs) > 1 or dilated or not _explicit(node) or (whole and any(pads)):
        return None
    window = _window(node, node.attributes.get_ints("kernel_shape", []))
    top, left, bottom, right = pads
    numbers = {1: window[1], 11: window[11], 2: window[3], 12: window[13], 3: left, 14: right, 13: top, 15: bottom}
    return _Lines("Pooling", {0: 0, **numbers, 5: 0 if whole else 1})


def _mean(node: ir.Node) -> _Lines | None:
    """Over the whole map, which stays four-sided."""
    axes = node.inputs[1] if len(node.inputs) > 1 else None
    if node.op_type == "ReduceMean":
        known = axes is not None and _is_constant(axes) and sorted(axes.const_value.numpy() % 4) == [2, 3]  # type: ignore[union-attr]
        if not known or not node.attributes.get_int("keepdims", 1):
            return None
    return _Lines("Reduction", {0: 3, 1: 0, -23303: [1, 2], 4: 1, 5: 1})


def _sum_or_product(node: ir.Node) -> _Lines | None:
    shapes = [list(value.shape or ()) for value in _read(node)]
    if len(shapes) != 2 or any(value.is_initializer() for value in _read(node)):
        return None
    alike = [(a[:2] == b[:2] and a[2:] in (b[2:], [1, 1])) for a, b in (shapes, shapes[::-1])]
    if not any(alike):  # equal maps, or one number for each channel of a map
        return None
    return _Lines("BinaryOp", {0: _ADD if node.op_type == "Add" else _MUL})


def _concat(node: ir.Node) -> _Lines | None:
    return _Lines("Concat", {0: 0}) if node.attributes.get_int("axis", 0) % 4 == 1 else None


def _nearest(node: ir.Node) -> _Lines | None:
    """What a pyramid adds the coarser level by: to a size known at export, or to a multiple of whatever size it is."""
    words = {"mode": "nearest", "nearest_mode": "round_prefer_floor", "coordinate_transformation_mode": "half_pixel"}
    found = {name: node.attributes.get_string(name, usual) for name, usual in words.items()}
    wanted = {"mode": "nearest", "nearest_mode": "floor", "coordinate_transformation_mode": "asymmetric"}
    given, made = (list(value.shape or ())[2:] for value in (node.inputs[0], node.outputs[0]))  # type: ignore[union-attr]
    if found != wanted:
        return None
    if all(isinstance(side, int) for side in (*given, *made)):
        alike = all(_steps_alike(before, after) for before, after in zip(given, made, strict=True))
        return _Lines("Interp", {0: 1, 3: made[0], 4: made[1]}) if alike else None
    factors = [_factor(str(before), str(after)) for before, after in zip(given, made, strict=True)]
    return None if None in factors else _Lines("Interp", {0: 1, 1: f"{factors[0]}.0", 2: f"{factors[1]}.0"})


def _steps_alike(before: int, after: int) -> bool:
    """Whether ncnn, which multiplies by the step in float32, takes the pixels that ONNX means."""
    places = np.arange(after, dtype=np.float32)
    step = np.float32(before) / np.float32(after)
    return bool((np.minimum((places * step).astype(int), before - 1) == np.arange(after) * before // after).all())


def _factor(before: str, after: str) -> int | None:
    """How often a side goes into another one, of sides like `height` and `2*height`; None where that is not certain."""
    parts = [re.fullmatch(r"(?:(\d+)\*)?([^\W\d]\w*)", side) for side in (before, after)]
    if parts[0] is None or parts[1] is None or parts[0][2] != parts[1][2]:
        return None
    small, large = (int(part[1] or 1) for part in parts if part is not None)
    return large // small if large % small == 0 else None


def _clip(node: ir.Node) -> _Lines | None:
    bounds = [None if v is None or not _is_constant(v) else float(v.const_value.numpy()) for v in node.inputs[1:3]]  # type: ignore[union-attr]
    if len(bounds) != 2 or None in bounds:
        return None
    return _Lines("Clip", dict(enumerate(bounds)))


def _plain(name: str, *parameters: tuple[str, float]) -> Callable[[ir.Node], _Lines]:
    """A layer without weights; parameters: ONNX's names of them and what they usually are, in ncnn's order."""
    return lambda node: _Lines(
        name, {i: node.attributes.get_float(key, usual) for i, (key, usual) in enumerate(parameters)}
    )


_LAYERS: dict[str, Callable[[ir.Node], _Lines | None]] = {
    "Conv": _convolution,
    "ConvTranspose": _convolution,
    "MaxPool": _max_pool,
    "ReduceMean": _mean,
    "GlobalAveragePool": _mean,
    "Add": _sum_or_product,
    "Mul": _sum_or_product,
    "Concat": _concat,
    "Resize": _nearest,
    "Clip": _clip,
    "Relu": _plain("ReLU"),
    "Sigmoid": _plain("Sigmoid"),
    "HardSigmoid": _plain("HardSigmoid", ("alpha", 0.2), ("beta", 0.5)),
    "HardSwish": lambda node: _Lines("HardSwish", {0: 1 / 6, 1: 0.5}),
}


def _written(trunk: Trunk) -> NcnnStage:
    """The trunk in ncnn's text. A blob is read once there: what several layers read is split first."""
    lines: list[tuple[str, list[str], list[str], Mapping[int, Any]]] = []
    weights: list[Weight] = []
    names: dict[ir.Value, str] = {}
    queues: dict[ir.Value, list[str]] = {}
    readers: dict[ir.Value, int] = dict.fromkeys(trunk.outputs, 0)
    fused = _fused(trunk)
    skipped = {activation for activation, _ in fused.values()}
    for node in trunk.nodes:
        for value in _read(node) if node not in skipped else ():
            readers[value] = readers.get(value, 0) + 1
    for value in trunk.outputs:
        readers[value] += 1

    def give(value: ir.Value) -> str:
        """The blob that `value` is written to; copies of it for each reader."""
        blob = names[value] = f"b{len(names)}"
        count = readers.get(value, 0)
        queues[value] = [blob] if count <= 1 else [f"{blob}_{i}" for i in range(count)]
        return blob

    def split(value: ir.Value) -> None:
        if len(queues[value]) > 1:
            lines.append(("Split", [names[value]], [*queues[value]], {}))

    for value in trunk.inputs:
        lines.append(("Input", [], [give(value)], {}))
        split(value)
    for node in trunk.nodes:
        if node in skipped:
            continue
        found = _lines_of(node)
        assert found is not None  # it is in the trunk
        taken = [queues[value].pop(0) for value in _read(node)]
        activation, parameters = fused.get(node, (node, {}))
        output = activation.outputs[0]
        lines.append((found.layer, taken, [give(output)], {**found.parameters, **parameters}))
        weights += found.weights
        split(output)
    blobs = {str(v.name): names[v] for v in trunk.inputs} | {str(v.name): queues[v].pop(0) for v in trunk.outputs}
    count = sum(len(outputs) for _, _, outputs, _ in lines)
    text = (_MAGIC, f"{len(lines)} {count}", *(_line(i, *line) for i, line in enumerate(lines)))
    return NcnnStage(trunk, text, blobs, tuple(weights))


def _fused(trunk: Trunk) -> dict[ir.Node, tuple[ir.Node, dict[int, Any]]]:
    """Layers, with the activation that alone reads each and the parameters by which the layer computes it itself."""
    found: dict[ir.Node, tuple[ir.Node, dict[int, Any]]] = {}
    members = set(trunk.nodes)
    for node in trunk.nodes:
        uses = [use.node for use in node.outputs[0].uses()]
        if node.op_type not in LAYERS or len(uses) != 1 or uses[0] not in members or node.outputs[0] in trunk.outputs:
            continue
        (reader,) = uses
        lines = _lines_of(reader)
        if reader.op_type == "Relu":
            found[node] = reader, {9: _RELU}
        elif reader.op_type == "Clip" and lines is not None:
            found[node] = reader, {9: _CLIP, -23310: [*lines.parameters.values()]}
    return found


def _line(number: int, layer: str, inputs: Sequence[str], outputs: Sequence[str], parameters: Mapping[int, Any]) -> str:
    """A layer in ncnn's text; parameters whose number is below −23300 are lists."""
    texts = [
        f"{key}={len(value)},{','.join(map(str, value))}" if isinstance(value, list) else f"{key}={value}"
        for key, value in parameters.items()
    ]
    return " ".join([layer, f"n{number}", str(len(inputs)), str(len(outputs)), *inputs, *outputs, *texts])


def _window(node: ir.Node, kernel: Sequence[int]) -> dict[int, int]:
    """Kernel, dilation, stride and padding of a layer that slides over a map."""
    height, width = kernel
    strides = node.attributes.get_ints("strides", [1, 1])
    dilations = node.attributes.get_ints("dilations", [1, 1])
    top, left, bottom, right = node.attributes.get_ints("pads", [0] * 4)
    return {
        1: width, 11: height, 2: dilations[1], 12: dilations[0], 3: strides[1], 13: strides[0],
        4: left, 15: right, 14: top, 16: bottom,
    }  # fmt: skip


def _explicit(node: ir.Node) -> bool:
    return node.attributes.get_string("auto_pad", "NOTSET") == "NOTSET"


def _is_constant(value: ir.Value) -> bool:
    return value.is_initializer() and value.const_value is not None


def _names(values: Iterable[ir.Value]) -> list[str]:
    return [str(value.name) for value in values]


def _named(stage: str, ending: str) -> str:
    return f"{Path(stage).stem}.{ending}"


def _piece(weight: Weight) -> dict[str, Any]:
    """Where a weight lies, in bytes from the file's start; small ones are numbers."""
    tensor = weight.value.const_value
    assert tensor is not None
    place: dict[str, Any] = {"shape": [int(side) for side in tensor.shape]}  # type: ignore[arg-type]
    if isinstance(tensor, ir.ExternalTensor):
        place["offset"] = int(tensor.offset or 0)
    else:
        place["values"] = tensor.numpy().astype(np.float32).ravel().tolist()
    if weight.axes is not None:
        place["axes"] = list(weight.axes)
    return place | ({"tagged": True} if weight.tagged else {})
