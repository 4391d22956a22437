"""Small maps of a batch, one above the other as one tall map with rows of zeros between them.

An engine that takes maps one by one, and is fast on large ones only (ncnn), then sees one large map. The rows between
are a convolution's padding; what layers write there is multiplied by zero before the next convolution reads it. That
keeps finite maps apart up to rounding: Winograd's tiles reach over a gap, and what one holds in them is rounded by its
largest value, a neighbour's too (1e-7 of it, or so).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from .trunk import Trunk


@dataclass
class Stack:
    """How the maps of a trunk's inputs are laid out.

    height: rows of a map. gap: rows of zeros below each. clears: layers before which the rows between the maps are to
    be cleared, and how many times as large as the trunk's inputs the maps are there.
    """

    height: int
    gap: int = 0
    clears: dict[ir.Node, int] = field(default_factory=dict)


def stack_of(trunk: Trunk, reads: Callable[[ir.Node], list[ir.Value]]) -> Stack | None:
    """A stack for `trunk`; None where a layer mixes rows of different maps, or would see where a map ends."""
    height = _height(trunk.inputs)
    if height is None:
        return None
    stack = Stack(height)
    scales = dict.fromkeys(trunk.inputs, 1)
    for node in trunk.nodes:
        given = {scales[value] for value in reads(node)}
        factor = _factor(node) if len(given) == 1 else None
        if factor is None:
            return None
        (scale,) = given
        scales[node.outputs[0]] = scale * factor
        padding = _window(node).pads[0] if node.op_type == "Conv" else 0
        stack.gap = max(stack.gap, math.ceil(padding / scale))
        if padding and node.inputs[0] not in trunk.inputs:  # those are stacked with zeros between
            stack.clears[node] = scale
    return stack


def _height(values: Sequence[ir.Value]) -> int | None:
    """Of maps that are all alike."""
    sides = {(value.shape[0], *value.shape[2:]) if value.shape is not None else () for value in values}
    height = next(iter(sides))[1] if len(sides) == 1 and all(sides) else None
    return height if isinstance(height, int) else None


def _factor(node: ir.Node) -> int | None:
    """How many times as large as its input a layer's map is; None where the maps of a stack would not stay apart."""
    if node.op_type == "Conv":
        return 1 if _keeps_size(_window(node)) else None
    if node.op_type == "ConvTranspose":
        return _block(node, _window(node))
    if node.op_type in ("Add", "Mul"):  # pixel by pixel: one number for a whole map would be one for all of them
        return 1 if len({tuple(value.shape or ())[2:] for value in node.inputs if value is not None}) == 1 else None
    return 1 if node.op_type in _BY_PIXEL else None


_BY_PIXEL = frozenset({"Concat", "Relu", "HardSwish", "Clip", "Sigmoid", "HardSigmoid"})


@dataclass(frozen=True)
class _Window:
    """What slides over a map; pads: above, left, below, right."""

    kernel: list[int]
    strides: list[int]
    dilations: list[int]
    pads: list[int]


def _window(node: ir.Node) -> _Window:
    weight = node.inputs[1]
    assert weight is not None
    assert weight.shape is not None
    kernel = [int(side) for side in weight.shape[2:]]  # type: ignore[arg-type]
    usual = {"strides": [1, 1], "dilations": [1, 1], "pads": [0] * 4}
    return _Window(kernel, *(list(node.attributes.get_ints(name, value)) for name, value in usual.items()))


def _keeps_size(window: _Window) -> bool:
    """By as much padding on one side as on the other: the gap has to have the rows of it."""
    reach = [dilation * (side - 1) for dilation, side in zip(window.dilations, window.kernel, strict=True)]
    even = window.pads[:2] == window.pads[2:]
    return set(window.strides) == {1} and even and [2 * pad for pad in window.pads[:2]] == reach


def _block(node: ir.Node, window: _Window) -> int | None:
    """The side of the block that a pixel becomes, where no two blocks overlap."""
    more = [*window.pads, *node.attributes.get_ints("output_padding", [0, 0])]
    alike = len({*window.kernel, *window.strides}) == 1 and set(window.dilations) == {1}
    return window.strides[0] if alike and not any(more) else None
