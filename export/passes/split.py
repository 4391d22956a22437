"""Cut a graph at our ops: dense stages and the single ops between them, in the order in which they run."""

from collections import defaultdict
from dataclasses import dataclass
from itertools import pairwise

import onnx_ir as ir

from regionrt.plugins.ops import DOMAIN

from .layers import LAYERS
from .lower import base_op


@dataclass(frozen=True)
class Unit:
    """One piece of a cut graph, as a model that runs alone. `op` is None for a dense stage."""

    name: str
    op: str | None
    model: ir.Model
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def split(model: ir.Model) -> list[Unit]:
    """The units of an abstract or a lowered `model`; feeding each with the others' outputs computes the whole.

    A value's depth is the number of our ops on the longest way to it from the inputs; the nodes of one depth make one
    dense stage. Works for any model: nothing here knows which net it is. Values keep their names.
    """
    graph = model.graph
    depth: dict[ir.Value, int] = defaultdict(int)
    stages: dict[int, list[ir.Node]] = defaultdict(list)
    ops: dict[int, list[ir.Node]] = defaultdict(list)
    for node in graph:
        before = max((depth[value] for value in _read(node)), default=0)
        ours = node.domain == DOMAIN
        (ops if ours else stages)[before].append(node)
        for value in node.outputs:
            depth[value] = before + ours
    _to_readers(stages, {*graph.inputs, *(value for nodes in ops.values() for n in nodes for value in _read(n))})
    _sink_glue(stages)
    units: list[Unit] = []
    counts: dict[str, int] = defaultdict(int)
    for level in sorted({*stages, *ops}):
        if level in stages:
            units.append(_unit(model, f"dense_{counts['dense']}", None, stages[level]))
            counts["dense"] += 1
        for node in ops.get(level, []):
            op = base_op(node)
            units.append(_unit(model, f"{op}_{counts[op]}", op, [node]))
            counts[op] += 1
    return units


def _to_readers(stages: dict[int, list[ir.Node]], borders: set[ir.Value]) -> None:
    """Move nodes from the first stage to the first one that reads them, if no layer is needed to compute them from what
    is there anyway.

    That is initialisers (weights that are dequantised) and `borders`, the inputs of the graph and of our ops. In the
    first stage they would be handed from there to where they belong.
    """
    anywhere: set[ir.Value] = set(borders)
    for node in stages.get(0, []):
        known = all(value.is_initializer() or value in anywhere for value in _read(node))
        if known and node.op_type not in LAYERS:
            anywhere.update(value for value in node.outputs if not value.is_graph_output())
    level_of = {node: level for level, nodes in stages.items() for node in nodes}
    first: list[ir.Node] = []
    for node in reversed(stages.pop(0, [])):
        readers = [level_of.get(use.node, 0) for value in node.outputs for use in value.uses()]
        level = min(readers, default=0) if all(value in anywhere for value in node.outputs) else 0
        level_of[node] = level
        (stages[level] if level else first).insert(0, node)
    if first:
        stages[0] = first


def _sink_glue(stages: dict[int, list[ir.Node]]) -> None:
    """Move a stage without layers (index arithmetic, say) into the next one if nothing else reads it."""
    levels = sorted(stages)
    for level, following in pairwise(levels):
        nodes = stages[level]
        members = {*nodes, *stages[following]}
        uses = [use.node for node in nodes for value in node.outputs for use in value.uses()]
        outputs = any(value.is_graph_output() for node in nodes for value in node.outputs)
        if not outputs and all(n in members for n in uses) and not any(n.op_type in LAYERS for n in nodes):
            stages[following] = stages.pop(level) + stages[following]


def _read(node: ir.Node) -> list[ir.Value]:
    """What a node reads, inner graphs included."""
    outer = [value for value in node.inputs if value is not None]
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            inner = {*attribute.value.inputs, *(v for n in attribute.value for v in n.outputs)}
            outer += [value for n in attribute.value.all_nodes() for value in _read(n) if value not in inner]
    return outer


def _unit(model: ir.Model, name: str, op: str | None, nodes: list[ir.Node]) -> Unit:
    graph = model.graph
    made = {value for node in nodes for value in node.outputs}
    inputs = [
        value
        for value in dict.fromkeys(v for node in nodes for v in _read(node))
        if value not in made and not value.is_initializer()
    ]
    members = set(nodes)
    outputs = [
        value
        for node in nodes
        for value in node.outputs
        if value.is_graph_output() or any(use.node not in members for use in value.uses())
    ]
    if op is not None:
        outputs = list(nodes[0].outputs)
    piece = ir.Model(ir.convenience.extract(graph, inputs, outputs), ir_version=model.ir_version)
    piece.graph.name = name
    piece.functions.update({key: f.clone() for key, f in model.functions.items() if _calls(nodes, key)})
    return Unit(name, op, piece, tuple(v.name for v in inputs), tuple(v.name for v in outputs))


def _calls(nodes: list[ir.Node], function: tuple[str, str, str]) -> bool:
    return any(node.op_identifier() == function for node in nodes)
