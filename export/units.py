"""The pieces of an artefact, each to be run alone on given values: what `verify` compares stage by stage."""

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import onnx_ir as ir

from regionrt.runtime.backends.staged import StagedRunner
from regionrt.runtime.bundle import Artifact, Manifest
from regionrt.runtime.loading import runner_for

from .passes.split import Unit as Piece
from .passes.split import split

Values = Mapping[str, np.ndarray]


class Unit(Protocol):
    """One piece between two of our ops, or one of them (`op`)."""

    name: str
    op: str | None

    def run(self, values: Values) -> dict[str, np.ndarray]:
        """Outputs by stage name; `values` holds eager's, by stage name too."""
        ...


def units_of(manifest: Manifest, artifact: Artifact) -> Sequence[Unit]:
    """The pieces of an artefact in the order in which they run."""
    if artifact.form == "staged":
        runner = runner_for(manifest, artifact)
        assert isinstance(runner, StagedRunner)
        return [_Step(runner, number) for number in range(len(runner.steps))]
    model = ir.external_data.load_to_model(ir.load(manifest.path(artifact.files[0])))
    return [_Graph(piece) for piece in split(model)]


class _Graph:
    """A piece of a cut graph in ONNX Runtime."""

    def __init__(self, piece: Piece):
        import onnxruntime

        self.name, self.op = piece.name, piece.op
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        # Each session has threads of its own: left spinning, they would take the cores from PyTorch and each other.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        _give_logits(piece.model.graph)
        data = ir.to_proto(piece.model).SerializeToString()
        self.session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        self.inputs = {value.name: ir.DataType(value.dtype).numpy() for value in piece.model.graph.inputs}

    def run(self, values: Values) -> dict[str, np.ndarray]:
        feeds = {name: values[stage_name(name)].astype(dtype, copy=False) for name, dtype in self.inputs.items()}
        outputs = [output.name for output in self.session.get_outputs()]
        return {stage_name(n): v for n, v in zip(outputs, self.session.run(outputs, feeds), strict=True)}


def _give_logits(graph: ir.Graph) -> None:
    """Let a piece that decides on labels also give the logits that it does so by."""
    for node in graph:
        for value in node.outputs:
            if value.name is not None and stage_name(value.name) == "logits" and not value.is_graph_output():
                graph.outputs.append(value)


class _Step:
    """A step of the staged form."""

    def __init__(self, runner: StagedRunner, number: int):
        self.runner, self.number = runner, number
        step = runner.steps[number]
        self.name, self.op = step["name"], step.get("op")

    def run(self, values: Values) -> dict[str, np.ndarray]:
        return self.runner.alone(self.number, values)


def stage_name(value: str) -> str:
    """The stage name of a value in a graph of any precision: passes mark what they convert with `.fp16` or `.fp32`."""
    return value.removesuffix(".fp32").removesuffix(".fp16")
