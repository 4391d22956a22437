"""The whole road in one function: compress, export, build, verify, bench, and the contract that decides."""

import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from regionrt.bench.report import BenchOptions, bench, render
from regionrt.bench.schema import Report
from regionrt.bench.search.fallback import Step, keep_until_it_holds
from regionrt.export.bundle import ExportOptions, export_bundle, seal
from regionrt.export.compress.calibration import Photo
from regionrt.export.verify import verify
from regionrt.runtime.atomic import replace_folder
from regionrt.runtime.build import TARGETS, BuildOptions, build_engines
from regionrt.runtime.bundle import Manifest, is_bundle
from regionrt.runtime.errors import OptionError, RegionRTError
from regionrt.train.checkpoint import Checkpoint, module_from_checkpoint
from regionrt.train.models import MODELS
from regionrt.train.tasks import TASKS, Task

Progress = Callable[[str, float], None]
_STEPS = {"export": 0.0, "build": 0.15, "verify": 0.3, "bench": 0.5}  # where each begins, as a share of the time
_EXPLAIN_IMAGES = 4


class ContractError(RegionRTError):
    """The artefact is not what it has to be: it differs from its PyTorch net, or costs more accuracy than allowed."""


@dataclass(frozen=True)
class DeployOptions:
    """max_drop: points of AP50:95 (and mask AP), mIoU or localisation that may be lost. targets: engines to build.

    margin: points of `max_drop` kept back while int8 layers are given back to fp32 on `search_split`, for what that
    split differs by from the one that is judged.
    """

    max_drop: float = 0.5
    margin: float = 0.0
    export: ExportOptions = field(default_factory=ExportOptions)
    build: BuildOptions = field(default_factory=BuildOptions)
    bench: BenchOptions = field(default_factory=BenchOptions)
    targets: tuple[str, ...] | None = None  # None: TensorRT for RTX where its library is installed
    verify_images: int = 32
    search_split: str = "val"  # where layers are given back to fp32 until the drop holds

    def __post_init__(self) -> None:
        if not self.max_drop >= 0:
            raise OptionError(f"max_drop: points ≥ 0 expected, {self.max_drop} given")
        if not 0 <= self.margin <= self.max_drop:
            raise OptionError(f"margin: points from 0 to max_drop ({self.max_drop:g}) expected, {self.margin} given")
        if self.margin and self.export.precision != "int8":
            raise OptionError(f"margin: only int8 is searched, {self.export.precision} is given: leave it out")
        if self.verify_images < 1:
            raise OptionError(f"verify_images: at least 1 expected, {self.verify_images} given")


def deploy(
    checkpoint: Checkpoint,
    data: str | Path,
    out: str | Path,
    options: DeployOptions,
    *,
    compress: Callable[[Checkpoint], Checkpoint] | None = None,
    photos: Sequence[Photo] | None = None,
    commands: tuple[str, ...] = (),
    progress: Progress | None = None,
) -> Report:
    """Write the bundle `out` with its report, if the contract holds; else nothing appears there.

    The contract is judged on `options.bench.split` of `data`, on each artefact that runs here, against `checkpoint` in
    eager PyTorch. compress: what is done to the checkpoint before export. photos: to calibrate on. In int8 layers go
    back to fp32, the most sensitive first, until the drop holds on `options.search_split`.

    Raises ContractError, naming the figures and the stage where PyTorch and the artefact first part, or why nothing
    could be judged; and what the steps raise. Returns the report, which also lies in the bundle.
    """
    tell = progress or (lambda text, done: None)
    with replace_folder(out, is_bundle) as final, tempfile.TemporaryDirectory() as scratch:
        bundle = Path(scratch) / Path(out).absolute().name  # its name stands in the report
        exported = compress(checkpoint) if compress else checkpoint
        task = TASKS[MODELS[checkpoint.model].task]
        chosen, prepared, tries = options.export, None, list[Step]()
        if options.export.precision == "int8" and photos is not None:
            validation = task.open_data(data, options.search_split, checkpoint.labels, options.bench.classes)
            chosen, prepared, tries = keep_until_it_holds(
                exported, checkpoint, options.export, photos, task, validation, options.max_drop - options.margin,
                _part(tell, "export"),
            )  # fmt: skip
        export_bundle(exported, bundle, chosen, photos=photos, prepared=prepared, progress=_part(tell, "export"))
        targets = options.targets if options.targets is not None else _targets_here(options.export)
        for target in targets:
            build_engines(bundle, target, options.build, _part(tell, "build"))
        samples = task.open_data(data, options.bench.split, checkpoint.labels, options.bench.classes)
        images = [
            (s.name, s.image()) for s in map(samples.__getitem__, range(min(len(samples), options.verify_images)))
        ]
        verdicts = verify(bundle, module_from_checkpoint(exported), images, progress=_part(tell, "verify"))
        for verdict in verdicts:
            if not verdict.passed:
                raise ContractError(f"{verdict.artefact} differs from its PyTorch net: {verdict.first_difference}")
        report = bench(
            [bundle],
            checkpoint,
            data,
            replace(options.bench, max_drop=options.max_drop),
            verification=[verdict.to_json() for verdict in verdicts],
            commands=commands or None,
            progress=_part(tell, "bench"),
        )
        if unjudged := _unjudged(report, task, options.bench.split):
            raise ContractError(f"{unjudged}; nothing was written to {out}")
        broken = _broken_contract(report, task, options.max_drop)
        if broken:
            apart = verify(bundle, module_from_checkpoint(checkpoint), images[:_EXPLAIN_IMAGES], batches=(1,))
            where = next((v.first_difference for v in apart if v.first_difference), None)
            first = f"PyTorch and the artefact first part at {where}" if where else "no single stage stands out"
            searched = _searched(tries, options)
            raise ContractError(f"{broken}; {first}{searched}; nothing was written to {out}")
        render(report, bundle)
        manifest = Manifest.read(bundle)
        seal(replace(manifest, artifacts=_by_latency(manifest, report)))
        for item in bundle.iterdir():
            shutil.move(item, final / item.name)
    tell("done", 1.0)
    return report


def _part(tell: Progress, step: str) -> Progress:
    starts = [*_STEPS.values(), 1.0]
    index = list(_STEPS).index(step)
    start, stop = starts[index], starts[index + 1]
    return lambda text, done: tell(f"{step}: {text}", start + (stop - start) * done)


def _targets_here(export: ExportOptions) -> tuple[str, ...]:
    whole = {"portable", "plugin"} & set(export.forms)
    buildable = whole and find_spec(TARGETS["tensorrt-rtx"].module) is not None
    return ("tensorrt-rtx",) if buildable else ()


def _unjudged(report: Report, task: Task, split: str) -> str | None:
    """Why `max_drop` was not judged, as a sentence; None if it was, by every metric that the data has objects for.

    Artefacts that do not run here go unjudged (an engine built ahead of time); one at least has to run.
    """
    baseline = report.candidate(report.baseline)
    figures = baseline.accuracy.metrics if baseline and baseline.accuracy else {}
    wanted = [metric for metric in task.contract if figures.get(metric) is not None]
    if not wanted:
        return f"the {split} split has no objects to judge the accuracy by: give another with --split"
    judged = [(row.name, row.accuracy) for row in report.candidates if row.kind == "bundle" and row.accuracy]
    if not judged:
        why = "; ".join(f"{row.name}: {row.reason}" for row in report.candidates if row.kind == "bundle")
        return (
            f"no artefact runs here, so that none could be judged ({why}): deploy on the device, or there `export`, "
            "`build`, and `bench --data`"
        )
    for name, accuracy in judged:
        if missing := [m for m in wanted if m not in {found.metric for found in accuracy.differences}]:
            return f"{name} has no figure for {', '.join(missing)} on {split}, which its PyTorch net has"
    return None


def _broken_contract(report: Report, task: Task, max_drop: float) -> str | None:
    """The worst loss beyond `max_drop` points as a sentence; None if the contract holds."""
    worst: tuple[float, str] | None = None
    for row in report.candidates:
        if row.kind != "bundle" or row.accuracy is None:
            continue
        for found in row.accuracy.differences:
            if found.metric in task.contract and -found.points > max(max_drop, worst[0] if worst else 0.0):
                text = (
                    f"{row.name} loses {-found.points:.2f} points of {found.metric} on {row.accuracy.images} images "
                    f"({found.confidence:.0%} interval {-found.high:.2f} to {-found.low:.2f}), allowed are {max_drop:g}"
                )
                worst = (-found.points, text)
    return worst[1] if worst else None


def _searched(tries: Sequence[Step], options: DeployOptions) -> str:
    """What to do where layers were chosen on one split and the other one says no."""
    if not tries:
        return ""
    return (
        f"; on {options.search_split}, where its layers were chosen, it lost {tries[-1].drop:.2f} points: keep some of "
        f"--max-drop back with --margin, or more layers in fp32 with --most-error below {options.export.most_error:g}"
    )


def _by_latency(manifest: Manifest, report: Report) -> tuple[Any, ...]:
    """The manifest's artefacts in the order to try them: engines, which did not run here, then as measured."""
    medians = {
        (row.backend, row.form, row.precision): row.latency.p50_ms
        for row in report.candidates
        if row.kind == "bundle" and row.latency
    }

    def rank(artifact: Any) -> float:
        return medians.get(
            (artifact.backend, artifact.form, artifact.precision), 0.0 if artifact.engine else float("inf")
        )

    return tuple(sorted(manifest.artifacts, key=rank))
