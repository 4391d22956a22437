"""A dense stage for ncnn: its trunk as ncnn's layers, its weights as places in the bundle's file of weights.

ncnn computes 3×3 convolutions by Winograd's minimal filtering (Lavin and Gray, 1509.09308) in fp32, on any CPU. The
text of the layers and the order of the weights are those of ncnn's .param and .bin files.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from .passes.layers import LAYERS
from .passes.ncnn_layers import MULTIPLY, Weight, layer_of, own_activation, reads
from .passes.stack import Stack, stack_of
from .passes.trunk import Trunk, trunk_of

_MAGIC = "7767517"
LARGE_PX = 64
"""A map of that side keeps a CPU's threads busy alone; of smaller ones, ncnn takes many as one tall map."""
LEAST_SHARE = 0.5
"""Of a stage's layers: with fewer in the trunk the stage stays with the other engines."""


@dataclass(frozen=True)
class NcnnStage:
    """`trunk`, and its nodes as lines of a .param file. blobs: names of what goes in and out there, by the value's.

    stack: how the maps of a batch become one, None where they come one by one. gaps: blobs that take which rows are a
    map's, 1, and which lie between two, 0, by how many times as large as its inputs the maps there are.
    """

    trunk: Trunk
    layers: tuple[str, ...]
    blobs: Mapping[str, str]
    weights: tuple[Weight, ...]
    stack: Stack | None = None
    gaps: Mapping[int, str] = field(default_factory=dict)

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
            "stack": self._stack_json(),
            "layers": list(self.layers),
            "weights": {"file": weights, "pieces": [_piece(weight) for weight in self.weights]},
        }

    def _stack_json(self) -> dict[str, Any] | None:
        if self.stack is None:
            return None
        gaps = {blob: times for times, blob in self.gaps.items()}
        return {"height": self.stack.height, "gap": self.stack.gap, "gaps": gaps}


def pieces_of(cuts: Mapping[str, NcnnStage]) -> dict[str, ir.Model]:
    """The ONNX models around the trunks of `cuts`, by file. cuts: by the ONNX file of the stage."""
    return {file: model for stage, cut in cuts.items() for file, model in cut.pieces(stage).items()}


def write_cuts(folder: Path, cuts: Mapping[str, NcnnStage], weights: str) -> None:
    """Write what the runtime opens of each of `cuts`, after the models and `weights` have been written."""
    for stage, cut in cuts.items():
        (folder / cut.files(stage)[0]).write_text(json.dumps(cut.to_json(stage, weights)) + "\n", encoding="utf-8")


def ncnn_stage(model: ir.Model, *, rows: bool = False) -> NcnnStage | None:
    """`model`, a dense stage in fp32, for ncnn; None where ncnn has no equal of most of its layers.

    rows: the maps are those of RoIs, of which there are many. Unless they are large they are stacked; None where they
    cannot be, or no convolution would gain by it.
    """
    trunk = trunk_of(model, lambda node: node.domain == "" and layer_of(node) is not None, reads)
    layers = sum(node.op_type in LAYERS for node in model.graph)
    inside = sum(node.op_type in LAYERS for node in trunk.nodes)
    if not inside or inside < LEAST_SHARE * layers:
        return None
    if not rows or _on_large(trunk):
        return _written(trunk)
    stack = stack_of(trunk, reads)
    return _written(trunk, stack) if stack is not None and stack.gap else None


def _on_large(trunk: Trunk) -> bool:
    """Whether the maps are large, each for itself."""
    sides = [side for value in trunk.inputs for side in (value.shape or ())[2:]]
    return all(isinstance(side, int) and side >= LARGE_PX for side in sides)


def _written(trunk: Trunk, stack: Stack | None = None) -> NcnnStage:
    """The trunk in ncnn's text. A blob is read once there: what several layers read is split first."""
    lines: list[tuple[str, list[str], list[str], Mapping[int, Any]]] = []
    weights: list[Weight] = []
    names: dict[ir.Value, str] = {}
    queues: dict[ir.Value, list[str]] = {}
    readers: dict[ir.Value, int] = dict.fromkeys(trunk.outputs, 1)
    fused = _fused(trunk)
    skipped = {activation for activation, _ in fused.values()}
    for node in trunk.nodes:
        for value in reads(node) if node not in skipped else ():
            readers[value] = readers.get(value, 0) + 1

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
    clears = stack.clears if stack is not None else {}
    gaps = {times: f"gaps{times}" for times in sorted(set(clears.values()))}
    for times, blob in gaps.items():
        copies = [f"{blob}_{i}" for i, found in enumerate(clears.values()) if found == times]
        lines += [("Input", [], [blob], {}), ("Split", [blob], copies, {})]
    cleared = {node: f"gaps{times}_{i}" for i, (node, times) in enumerate(clears.items())}
    for node in trunk.nodes:
        if node in skipped:
            continue
        found = layer_of(node)
        assert found is not None  # it is in the trunk
        taken = [queues[value].pop(0) for value in reads(node)]
        if node in cleared:
            both, taken = [*taken, cleared[node]], [f"{taken[0]}_cleared"]
            lines.append(("BinaryOp", both, taken, {0: MULTIPLY}))
        activation, parameters = fused.get(node, (node, {}))
        output = activation.outputs[0]
        lines.append((found.type, taken, [give(output)], {**found.parameters, **parameters}))
        weights += found.weights
        split(output)
    blobs = {str(v.name): names[v] for v in trunk.inputs} | {str(v.name): queues[v].pop(0) for v in trunk.outputs}
    count = sum(len(outputs) for _, _, outputs, _ in lines)
    text = (_MAGIC, f"{len(lines)} {count}", *(_line(i, *line) for i, line in enumerate(lines)))
    return NcnnStage(trunk, text, blobs, tuple(weights), stack, gaps)


def _fused(trunk: Trunk) -> dict[ir.Node, tuple[ir.Node, dict[int, Any]]]:
    """Layers, with the activation that alone reads each and the parameters by which the layer computes it itself."""
    found: dict[ir.Node, tuple[ir.Node, dict[int, Any]]] = {}
    members = set(trunk.nodes)
    for node in trunk.nodes:
        uses = [use.node for use in node.outputs[0].uses()]
        if node.op_type not in LAYERS or len(uses) != 1 or uses[0] not in members or node.outputs[0] in trunk.outputs:
            continue
        (reader,) = uses
        parameters = own_activation(reader)
        if parameters is not None:
            found[node] = reader, parameters
    return found


def _line(number: int, layer: str, inputs: Sequence[str], outputs: Sequence[str], parameters: Mapping[int, Any]) -> str:
    """A layer in ncnn's text; parameters whose number is below −23300 are lists."""
    texts = [
        f"{key}={len(value)},{','.join(map(str, value))}" if isinstance(value, list) else f"{key}={value}"
        for key, value in parameters.items()
    ]
    return " ".join([layer, f"n{number}", str(len(inputs)), str(len(outputs)), *inputs, *outputs, *texts])


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
