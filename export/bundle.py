"""Module or checkpoint → bundle: writes what runtime/bundle.py reads."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from torch import nn
from torchvision.models.detection import FasterRCNN

from regionrt.plugins.ops import DOMAIN
from regionrt.runtime.atomic import replace_folder
from regionrt.runtime.bundle import MANIFEST, Artifact, Manifest, is_bundle, sha256_of
from regionrt.runtime.gpu.steps import why_no_kernels
from regionrt.runtime.selective_search import SelectiveSearch
from regionrt.train.checkpoint import Checkpoint, module_from_checkpoint
from regionrt.train.models import ModelError
from regionrt.train.models.region import MAX_CANDIDATES
from regionrt.train.tasks import Task, task_of

from .artifacts import CONSTANTS, WEIGHTS, cut_for_ncnn, stage_file, staged_artifacts, whole_artifact
from .calibration.ranges import METHODS
from .compress.calibration import Photo
from .errors import ExportError
from .exportable import check_supported
from .exportable_dense import check_dense
from .ncnn import NcnnStage, pieces_of, write_cuts
from .passes.fp8 import fp8
from .passes.fp16 import fp16
from .passes.int8 import SYMMETRIC, U8S8, int8
from .passes.lower import lower
from .passes.stages import OpBetween, Stage, stages, whole_stage
from .proof import prove_integers
from .quantizing import MOST_ERROR, QUANTIZED, Quantization, layer_names, quantization_of
from .thresholds import CHOSEN, check_had, thresholds_of, with_thresholds
from .to_onnx import onnx_from_module
from .weights import write_models

FORMS = {
    "fp32": ("staged", "native", "portable", "plugin"),
    "fp16": ("native", "portable", "staged", "plugin"),
    "bf16": ("staged",),
    "int8": ("staged", "native", "portable"),
    "fp8": ("portable",),
}
"""By precision: the forms of our ops that can express it, in the order in which the runtime tries them."""
PRECISIONS = tuple(FORMS)
_ASKED_FOR = {("fp16", "staged"), ("fp32", "plugin"), ("fp16", "plugin")}
"""Forms that are exported only where they are named: nothing runs them before engines are built from them."""
DENSE_TASKS = ("segmentation", "localisation")
"""Nets without regions: no thresholds, no ops between stages."""
PRECISION_TABLE = "precision.json"
"""What calibration found: sensitivity and share of the work of each layer, and why it stays in fp32."""
Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class ExportOptions:
    """What is fixed at export. None: the model's own. Sizes are (height, width) in pixels, multiples of the stride."""

    precision: str = "fp32"
    ops: tuple[str, ...] | None = None  # forms of our ops, in the order in which the runtime tries them; None: usual
    size: tuple[int, int] | None = None
    dynamic: bool = False  # any size up to `size`, in steps of the stride
    score: float | None = None  # this and the next six: of `Thresholds`; a net refuses those that it has not
    nms: float | None = None
    window_score: float | None = None
    merge: float | None = None
    candidates: int | None = None
    detections: int | None = None
    proposals: int | None = None
    calibration: str = METHODS[0]  # how ranges are found: one of METHODS
    keep: tuple[str, ...] = ()  # layers, by their names in the graph, that stay in fp32
    most_error: float = MOST_ERROR  # int8, fp8: a layer that alone costs more stays in fp32
    probabilities: bool = False  # segmentation: also of every class

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ExportError(f"expected a precision of {', '.join(PRECISIONS)}, found {self.precision!r}")
        known = FORMS[self.precision]
        given = self.forms
        if not given or len(set(given)) != len(given) or not set(given) <= set(known):
            raise ExportError(
                f"expected ops to name each of {', '.join(known)} at most once for {self.precision}, "
                f"found {list(given)}"
            )
        if self.calibration not in METHODS:
            raise ExportError(f"expected a calibration of {', '.join(METHODS)}, found {self.calibration!r}")
        if not self.most_error > 0:
            raise ExportError(f"expected a largest error of a layer above 0, found {self.most_error}")

    @property
    def forms(self) -> tuple[str, ...]:
        if self.ops is not None:
            return self.ops
        return tuple(form for form in FORMS[self.precision] if (self.precision, form) not in _ASKED_FOR)


@dataclass
class Prepared:
    """What an export has found out before it writes."""

    abstract: ir.Model | None = None
    quantization: Quantization | None = None


def export_bundle(
    source: nn.Module | Checkpoint,
    out: str | Path,
    options: ExportOptions | None = None,
    *,
    labels: Sequence[str] | None = None,
    photos: Sequence[Photo] | None = None,
    prepared: Prepared | None = None,
    progress: Progress | None = None,
) -> Path:
    """Write the bundle `out` of a checkpoint, or of a live module (see `tasks.task_of`) with `labels`.

    labels: names by index, except for segmentation with `__background__` first. photos: to calibrate on, which int8 and
    fp8 need; fp16 keeps layers in fp32 that come near the end of its range on them. prepared: filled by the first of
    several exports of the same source, photos and options but for `keep` (without photos: and for precision and forms),
    and spares the others their longest steps.

    An older bundle at `out` is replaced in one step; anything else there is an error. Nothing appears under `out`
    unless it is whole. Raises ExportError, CheckpointError, OutputError.
    """
    options = options or ExportOptions()
    tell = progress or (lambda text, done: None)
    if isinstance(source, Checkpoint):
        module, names, model_name = module_from_checkpoint(source), source.labels, source.model
        checkpoint_hash = sha256_of(source.path) if source.path else None
    else:
        if labels is None:
            raise ExportError(
                "a live module needs labels=: the names of its classes, a detector's with `__background__` first"
            )
        module, names, model_name, checkpoint_hash = source, tuple(labels), type(source).__name__, None
    _check_photos(options, photos)
    task = _task_of(module)
    _check_labels(module, names, task)
    thresholds, ready, candidates = _thresholds(module, task, options)
    if task.name in DENSE_TASKS and options.precision == "fp16" and "staged" in options.forms:
        raise ExportError("fp16 staged: a net without regions is one stage: build engines from the form portable")
    canvas = task.canvas_of(module, options.size, options.dynamic)
    with replace_folder(out, is_bundle) as folder:
        tell("exporting to ONNX", 0.0)
        found = prepared or Prepared()
        if found.abstract is None:
            found.abstract = onnx_from_module(ready, canvas, candidates=candidates, probabilities=options.probabilities)
        abstract = found.abstract.clone()
        why = why_no_kernels(node.op_type for node in abstract.graph if node.domain == DOMAIN)
        if why and options.precision == "fp16" and "staged" in options.forms:  # which only a GPU runs
            raise ExportError(f"fp16 staged: {why}")
        quantization = None
        if photos is not None:
            if found.quantization is None:
                found.quantization = quantization_of(
                    abstract, canvas, photos, options.precision, method=options.calibration,
                    most_error=options.most_error, proposals=task.proposals_of(ready),
                    progress=lambda text, done: tell(text, 0.2 + 0.5 * done),
                )  # fmt: skip
            quantization = found.quantization.keeping(options.keep, layer_names(abstract))
            table = quantization.to_json(layer_names(abstract))
            (folder / PRECISION_TABLE).write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")
        if options.precision == "fp16":
            abstract = fp16(abstract, quantization.kept if quantization else options.keep)
        tell("writing the forms", 0.7)
        models: dict[str, ir.Model] = {}
        artifacts: list[Artifact] = []
        cuts: dict[str, NcnnStage] = {}
        for form in options.forms:
            if form == "staged":
                dense, between = _stages_of(abstract, task, alone=options.forms == ("staged",))
                if options.precision == "int8" and quantization is not None:
                    dense = [_in_int8(stage, quantization) for stage in dense]
                models |= {stage_file(stage): stage.model for stage in dense}
                if options.precision == "fp32":
                    cuts = cut_for_ncnn(dense)
                    models |= pieces_of(cuts)
                artifacts += staged_artifacts(abstract, dense, between, options.precision, canvas, cuts)
                constants: dict[str, Any] = {k: v for op in between for k, v in op.constants.items()}
                if constants:
                    np.savez(folder / CONSTANTS, **constants)
            else:
                lowered, layers = _quantized(abstract, form, quantization)
                models[f"{form}.onnx"] = lower(lowered, form)
                artifacts.append(whole_artifact(f"{form}.onnx", abstract, options.precision, canvas, layers))
        write_models(folder, models, WEIGHTS)
        write_cuts(folder, cuts, WEIGHTS)
        for artifact in artifacts:
            if artifact.quantized and artifact.backend == "onnxruntime":
                prove_integers(folder, artifact)
        (folder / "labels.txt").write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
        seal(
            Manifest(
                folder=folder,
                task=task.name,
                model=model_name,
                labels=tuple(names),
                canvas=canvas,
                thresholds=thresholds,
                files={},
                artifacts=tuple(artifacts),
                checkpoint_sha256=checkpoint_hash,
                search=_search_of(task, ready),
                created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
                versions={name: version(name) for name in ("regionrt", "torch", "torchvision", "onnx", "onnxscript")},
            )
        )
        tell("done", 1.0)
    return Path(out)


def seal(manifest: Manifest) -> None:
    """Write `manifest.json` into the manifest's folder, listing every file that lies there with its size and hash."""
    folder = manifest.folder
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST)
    entries = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256_of(path)} for path in files
    }
    whole = replace(manifest, files=entries)  # type: ignore[arg-type]
    (folder / MANIFEST).write_text(json.dumps(whole.to_json(), indent=2) + "\n", encoding="utf-8")


def _task_of(module: nn.Module) -> Task:
    """The task of a module that can be exported; ExportError for others."""
    try:
        task = task_of(module)
    except ModelError as error:
        check_supported(module)  # says what it is instead
        raise ExportError(str(error)) from error
    (check_supported if isinstance(module, FasterRCNN) else check_dense)(module)
    return task


def _thresholds(module: nn.Module, task: Task, options: ExportOptions) -> tuple[dict[str, Any], nn.Module, int]:
    """What stands in the manifest, the module with it, and the cap of candidates. ExportError for options of others."""
    given = {name: getattr(options, name) for name in CHOSEN if getattr(options, name) is not None}
    if task.name in DENSE_TASKS:
        check_had(given, (), f"a net for {task.name}")
        return dict(task.thresholds_of(module)), module, MAX_CANDIDATES
    thresholds = thresholds_of(module, **given)
    return thresholds.to_json(), with_thresholds(module, thresholds).eval(), thresholds.candidates


def _stages_of(abstract: ir.Model, task: Task, alone: bool) -> tuple[list[Stage], list[OpBetween]]:
    """Dense stages and the ops between them; nets without RoIs are one stage."""
    if task.name in DENSE_TASKS:
        return [whole_stage(lower(abstract, "portable"))], []
    return stages(abstract, permute_weights=alone)


def _search_of(task: Task, module: nn.Module) -> SelectiveSearch | None:
    """What the runtime finds proposals by, of a net that takes them."""
    taken = task.proposals_of(module)
    return None if taken is None else taken.search


def _check_labels(module: nn.Module, labels: Sequence[str], task: Task) -> None:
    if not isinstance(module, FasterRCNN):
        classes = module.num_classes
    else:
        predictor = module.roi_heads.box_predictor
        classes = getattr(getattr(predictor, "cls_score", None), "out_features", len(labels))
    if len(labels) != classes:
        raise ExportError(
            f"expected {classes} labels (one for each class of the model, `__background__` first), found {len(labels)}"
        )
    no_background = task.name != "segmentation" and labels[0] != "__background__"
    if no_background or any(name.splitlines() != [name] or not name.strip() for name in labels):
        first = "" if task.name == "segmentation" else "`__background__` as the first label, and "
        raise ExportError(f"expected {first}no label empty or with a line break")


def _quantized(model: ir.Model, form: str, quantization: Quantization | None) -> tuple[ir.Model, tuple[str, ...]]:
    """The abstract model with Q/DQ nodes in the dialect of what runs the form, and its quantised layers."""
    if quantization is None or quantization.precision not in QUANTIZED:
        return model, ()
    ranges, kept = quantization.calibration.ranges, quantization.kept
    if quantization.precision == "fp8":
        return fp8(model, ranges, kept)
    return int8(model, ranges, SYMMETRIC if form == "portable" else U8S8, kept)


def _in_int8(stage: Stage, quantization: Quantization) -> Stage:
    """After the cut, so that stages have weights in the order that they take RoI features in."""
    ranges = quantization.calibration.ranges
    ranges = ranges | {f"{name}.channels_first": ranges[name] for name in stage.channels_last if name in ranges}
    model, layers = int8(stage.model, ranges, U8S8, quantization.kept)
    return replace(stage, model=model, quantized=layers)


def _check_photos(options: ExportOptions, photos: Sequence[Photo] | None) -> None:
    if photos is None and options.precision in QUANTIZED:
        raise ExportError(f"{options.precision} needs images to calibrate on: give --calibrate DIR")
    if photos is not None and options.precision == "fp32":
        raise ExportError("fp32 needs no calibration: leave --calibrate out, or choose another --precision")
    if options.keep and photos is None and options.precision != "fp16":
        raise ExportError(f"layers can be kept in fp32 for int8, fp8 and fp16, not for {options.precision}")
