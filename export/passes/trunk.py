"""The trunk of a dense stage: the convolutions and what stands between them, cut out of the graph around them."""

from collections.abc import Callable
from dataclasses import dataclass

import onnx_ir as ir

from .layers import LAYERS


@dataclass(frozen=True)
class Trunk:
    """A stage in three pieces, to run in turn; values keep their names.

    before: from the stage's inputs to what the trunk takes; None where it takes them as they come.
    nodes: the trunk, in order. It takes `inputs` and gives `outputs`, all float32 [N, C, H, W].
    after: from all of that to the stage's outputs; None where the trunk gives them itself.
    """

    before: ir.Model | None
    nodes: tuple[ir.Node, ...]
    inputs: tuple[ir.Value, ...]
    outputs: tuple[ir.Value, ...]
    after: ir.Model | None


def trunk_of(model: ir.Model, takes: Callable[[ir.Node], bool], reads: Callable[[ir.Node], list[ir.Value]]) -> Trunk:
    """The trunk of `model`: layers that an engine `takes`, and every node that it takes behind them.

    takes: whether the engine has an equal of the node. reads: the values that it would compute from, without constants.
    What a node that is not taken gives lies after the trunk, with all that depends on it. The trunk may be empty.
    """
    graph = model.graph
    where: dict[ir.Value | None, str] = {}
    nodes = []
    for node in graph:
        taken = takes(node)
        from_ = {where.get(v, "before") for v in (reads(node) if taken else _all_inputs(node))}
        if taken and "after" not in from_ and (node.op_type in LAYERS or "trunk" in from_):
            place = "trunk"
            nodes.append(node)
        else:
            place = "before" if from_ <= {"before"} else "after"
        where.update(dict.fromkeys(node.outputs, place))
    members = set(nodes)
    inputs = dict.fromkeys(v for node in nodes for v in reads(node) if where.get(v, "before") != "trunk")
    outputs = [
        value
        for node in nodes
        for value in node.outputs
        if value.is_graph_output()
        or any(use.node not in members or value not in reads(use.node) for use in value.uses())
    ]
    return Trunk(
        _piece(model, graph.inputs, [v for v in inputs if v not in graph.inputs]),
        tuple(nodes),
        tuple(inputs),
        tuple(outputs),
        _piece(model, [*graph.inputs, *outputs], [v for v in graph.outputs if where.get(v) != "trunk"]),
    )


def _piece(model: ir.Model, inputs: list[ir.Value], outputs: list[ir.Value]) -> ir.Model | None:
    """What computes `outputs` from those of `inputs` that it needs; None where there is nothing to compute."""
    if not outputs:
        return None
    needed = _needed({*inputs}, outputs)
    return ir.Model(
        ir.convenience.extract(model.graph, [v for v in inputs if v in needed], outputs), ir_version=model.ir_version
    )


def _needed(inputs: set[ir.Value], outputs: list[ir.Value]) -> set[ir.Value]:
    found: set[ir.Value] = set()
    left = list(outputs)
    while left:
        value = left.pop()
        if value in found:
            continue
        found.add(value)
        producer = value.producer()
        if value not in inputs and producer is not None:
            left += _all_inputs(producer)
    return found


def _all_inputs(node: ir.Node) -> list[ir.Value]:
    return [value for value in node.inputs if value is not None]
