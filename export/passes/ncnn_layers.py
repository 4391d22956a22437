"""Nodes of ONNX as layers of ncnn: their parameters by its numbers, their weights in its order."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

ADD, MULTIPLY = 0, 2  # BinaryOp's operations
_RELU, _CLIP = 1, 3  # what a convolution does with its results itself


@dataclass(frozen=True)
class Weight:
    """A tensor as ncnn reads it: `value` with its axes in this order; tagged: its type stands before it."""

    value: ir.Value
    axes: tuple[int, ...] | None = None
    tagged: bool = False


@dataclass(frozen=True)
class Layer:
    """One of ncnn's: its type, parameters by number (below −23300: lists), and weights."""

    type: str
    parameters: Mapping[int, Any]
    weights: tuple[Weight, ...] = ()


def layer_of(node: ir.Node) -> Layer | None:
    """The node as a layer of ncnn, None where there is no equal one."""
    make = _LAYERS.get(node.op_type)
    return None if make is None or not _four_sided(node) else make(node)


def _four_sided(node: ir.Node) -> bool:
    """A batch of maps in, one out: of other shapes ncnn and ONNX count the sides differently."""
    values = [*reads(node), node.outputs[0]]
    return all(v.shape is not None and len(v.shape) == 4 and v.dtype == ir.DataType.FLOAT for v in values)


def reads(node: ir.Node) -> list[ir.Value]:
    """What ncnn's layer would compute from: sizes and weights are parameters there."""
    first = node.inputs[:1] if node.op_type not in ("Add", "Mul", "Concat") else node.inputs
    return [value for value in first if value is not None]


def _convolution(node: ir.Node) -> Layer | None:
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
    return Layer(name, parameters, weights)


def _max_pool(node: ir.Node) -> Layer | None:
    pads = node.attributes.get_ints("pads", [0] * 4)
    whole = node.attributes.get_int("ceil_mode", 0)
    dilated = set(node.attributes.get_ints("dilations", [1, 1])) != {1}
    if len(node.outputs) > 1 or dilated or not _explicit(node) or (whole and any(pads)):
        return None
    window = _window(node, node.attributes.get_ints("kernel_shape", []))
    top, left, bottom, right = pads
    numbers = {1: window[1], 11: window[11], 2: window[3], 12: window[13], 3: left, 14: right, 13: top, 15: bottom}
    return Layer("Pooling", {0: 0, **numbers, 5: 0 if whole else 1})


def _mean(node: ir.Node) -> Layer | None:
    """Over the whole map, which stays four-sided."""
    axes = node.inputs[1] if len(node.inputs) > 1 else None
    if node.op_type == "ReduceMean":
        known = axes is not None and _is_constant(axes) and sorted(axes.const_value.numpy() % 4) == [2, 3]  # type: ignore[union-attr]
        if not known or not node.attributes.get_int("keepdims", 1):
            return None
    return Layer("Reduction", {0: 3, 1: 0, -23303: [1, 2], 4: 1, 5: 1})


def _sum_or_product(node: ir.Node) -> Layer | None:
    shapes = [list(value.shape or ()) for value in reads(node)]
    if len(shapes) != 2 or any(value.is_initializer() for value in reads(node)):
        return None
    alike = [(a[:2] == b[:2] and a[2:] in (b[2:], [1, 1])) for a, b in (shapes, shapes[::-1])]
    if not any(alike):  # equal maps, or one number for each channel of a map
        return None
    return Layer("BinaryOp", {0: ADD if node.op_type == "Add" else MULTIPLY})


def _concat(node: ir.Node) -> Layer | None:
    return Layer("Concat", {0: 0}) if node.attributes.get_int("axis", 0) % 4 == 1 else None


def _nearest(node: ir.Node) -> Layer | None:
    """What a pyramid adds the coarser level by: to a size known at export, or to a multiple of whatever size it is."""
    words = {"mode": "nearest", "nearest_mode": "round_prefer_floor", "coordinate_transformation_mode": "half_pixel"}
    found = {name: node.attributes.get_string(name, usual) for name, usual in words.items()}
    wanted = {"mode": "nearest", "nearest_mode": "floor", "coordinate_transformation_mode": "asymmetric"}
    given, made = (list(value.shape or ())[2:] for value in (node.inputs[0], node.outputs[0]))  # type: ignore[union-attr]
    if found != wanted:
        return None
    if all(isinstance(side, int) for side in (*given, *made)):
        alike = all(_steps_alike(before, after) for before, after in zip(given, made, strict=True))
        return Layer("Interp", {0: 1, 3: made[0], 4: made[1]}) if alike else None
    factors = [_factor(str(before), str(after)) for before, after in zip(given, made, strict=True)]
    return None if None in factors else Layer("Interp", {0: 1, 1: f"{factors[0]}.0", 2: f"{factors[1]}.0"})


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


def _clip(node: ir.Node) -> Layer | None:
    bounds = [None if v is None or not _is_constant(v) else float(v.const_value.numpy()) for v in node.inputs[1:3]]  # type: ignore[union-attr]
    if len(bounds) != 2 or None in bounds:
        return None
    return Layer("Clip", dict(enumerate(bounds)))


def _plain(name: str, *parameters: tuple[str, float]) -> Callable[[ir.Node], Layer]:
    """A layer without weights; parameters: ONNX's names of them and what they usually are, in ncnn's order."""
    return lambda node: Layer(
        name, {i: node.attributes.get_float(key, usual) for i, (key, usual) in enumerate(parameters)}
    )


_LAYERS: dict[str, Callable[[ir.Node], Layer | None]] = {
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
    "HardSwish": lambda node: Layer("HardSwish", {0: 1 / 6, 1: 0.5}),
}


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


def own_activation(node: ir.Node) -> dict[int, Any] | None:
    """The parameters by which a convolution computes the activation `node` itself; None for those that it cannot."""
    layer = layer_of(node)
    if layer is None or node.op_type not in ("Relu", "Clip"):
        return None
    return {9: _RELU} if node.op_type == "Relu" else {9: _CLIP, -23310: [*layer.parameters.values()]}
