"""Proof of precision where ONNX Runtime is the engine: its compiled graph holds as many integer layers as asked for."""

import tempfile
from collections import Counter
from pathlib import Path

import onnx

from regionrt.runtime.bundle import Artifact

from .errors import ExportError

INTEGER = frozenset({"QLinearConv", "QGemm", "QLinearMatMul", "ConvInteger", "MatMulInteger", "MatMulIntegerToFloat"})


def prove_integers(folder: Path, artifact: Artifact) -> int:
    """The number of integer layers in the artefact's ONNX files as ONNX Runtime compiles them.

    Raises ExportError where they are fewer than the artefact's quantised layers: the others would run in fp32.
    """
    files = [stage["file"] for stage in artifact.stages] or [artifact.files[0]]
    found = sum(sum(n for op, n in compiled_ops(folder / file).items() if op in INTEGER) for file in files)
    if found < len(artifact.quantized):
        raise ExportError(
            f"{artifact}: {len(artifact.quantized)} layers in int8 were asked for, ONNX Runtime compiles {found} to "
            "integer ones: keep the others in fp32 by name, or export with --precision fp32"
        )
    return found


def compiled_ops(file: Path) -> Counter[str]:
    """How often each operator stands in the graph that ONNX Runtime makes of a file, inner graphs left out."""
    import onnxruntime

    with tempfile.TemporaryDirectory() as scratch:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = 1
        options.optimized_model_filepath = str(Path(scratch, "compiled.onnx"))
        onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        compiled = onnx.load(options.optimized_model_filepath, load_external_data=False)
    return Counter(node.op_type for node in compiled.graph.node)
