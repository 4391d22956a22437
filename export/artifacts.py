"""What the manifest says of an export's artefacts, and which files each of them consists of."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir

from regionrt.runtime.bundle import Artifact
from regionrt.runtime.image import Canvas

from .ncnn import NcnnStage, ncnn_stage
from .passes.stages import OpBetween, Stage

STAGED_BACKENDS = {
    "fp32": ("openvino", "onnxruntime", "ncnn"),
    "fp16": ("tensorrt-rtx",),
    "bf16": ("openvino",),
    "int8": ("openvino", "onnxruntime"),
}
"""What can run dense stages in a precision. bf16 is what the engine computes in: the weights in the file are fp32. A
CPU would compute fp16 in fp32, which is not what was asked: those stages are for engines, of either TensorRT. ncnn runs
what `ncnn.ncnn_stage` can cut for it."""
WEIGHTS = "weights.bin"
CONSTANTS = "staged-constants.npz"


def whole_artifact(
    file: str, model: ir.Model, precision: str, canvas: Canvas, quantized: tuple[str, ...] = ()
) -> Artifact:
    """A form that is one graph, in `file`. quantized: names of its layers that are in 8 bits."""
    form = Path(file).stem
    engines_only = form == "plugin" or (form == "portable" and quantized)  # as fp16 stages: either TensorRT builds it
    backend = "tensorrt-rtx" if engines_only else "onnxruntime"
    return Artifact(backend, form, precision, (file, WEIGHTS), **_borders(model, canvas), quantized=quantized)


def cut_for_ncnn(dense: Sequence[Stage]) -> dict[str, NcnnStage]:
    """By the stages' files: those that can be cut."""
    found = {stage_file(stage): ncnn_stage(stage.model, rows=stage.slots is not None) for stage in dense}
    return {file: cut for file, cut in found.items() if cut is not None}


def staged_artifacts(
    model: ir.Model,
    dense: Sequence[Stage],
    between: Sequence[OpBetween],
    precision: str,
    canvas: Canvas,
    cuts: Mapping[str, NcnnStage],
) -> list[Artifact]:
    """One for each backend that can run the stages `dense` of `model`; ncnn where there are `cuts` for it."""
    constants = (CONSTANTS,) if any(op.constants for op in between) else ()
    shared = {
        "quantized": tuple(name for stage in dense for name in stage.quantized),
        "ops_between": tuple(op.to_json() for op in between),
        **_borders(model, canvas),
    }
    found = []
    for backend in STAGED_BACKENDS[precision]:
        if backend == "ncnn" and not cuts:
            continue
        files: dict[str, tuple[str, ...]] = {stage_file(stage): (stage_file(stage),) for stage in dense}
        if backend == "ncnn":
            files |= {file: cut.files(file) for file, cut in cuts.items()}
        stages = tuple(stage.to_json(files[stage_file(stage)][0]) for stage in dense)
        every = (*dict.fromkeys(file for of in files.values() for file in of), WEIGHTS, *constants)
        found.append(Artifact(backend, "staged", precision, every, stages=stages, **shared))
    return found


def stage_file(stage: Stage) -> str:
    return f"staged-{stage.name}.onnx"


def _borders(model: ir.Model, canvas: Canvas) -> dict[str, Any]:
    """Inputs, outputs and profiles, which an artefact has whatever its form."""
    step = canvas.multiple
    largest = [1, canvas.height, canvas.width, 3]
    smallest = [1, 2 * step, 2 * step, 3] if canvas.dynamic else largest
    inputs = tuple(_describe(value) for value in model.graph.inputs)
    fixed = {entry["name"]: [1, *entry["shape"][1:]] for entry in inputs if entry["name"] != "images"}
    return {
        "inputs": inputs,
        "outputs": tuple(_describe(value) for value in model.graph.outputs),
        "profiles": (
            {
                "images": {"min": smallest, "opt": largest, "max": largest},
                **{name: {"min": shape, "opt": shape, "max": shape} for name, shape in fixed.items()},
            },
        ),
    }


def _describe(value: ir.Value) -> dict[str, Any]:
    """Name, NumPy type and shape; a dimension that may vary is given by its name."""
    shape = [d if isinstance(d, int) else str(d) for d in value.shape or ()]
    return {"name": value.name, "dtype": ir.DataType(value.dtype).numpy().name, "shape": shape}
