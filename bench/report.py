"""One run that measures artefacts beside PyTorch, for speed and accuracy alike, and returns it as a `Report`."""

from __future__ import annotations

import shlex
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from regionrt.export.thresholds import Thresholds, thresholds_from, with_thresholds
from regionrt.runtime.backends.staged import StagedRunner
from regionrt.runtime.bundle import Manifest, sha256_of
from regionrt.runtime.clock import TimingOptions
from regionrt.runtime.machine import usable_cores
from regionrt.train.checkpoint import Checkpoint, module_from_checkpoint, read_checkpoint, write_checkpoint
from regionrt.train.data.proposals import kept_for
from regionrt.train.models import MODELS
from regionrt.train.tasks import TASKS, Task, task_of

from .accuracy import judge
from .assembly import Measured, assemble
from .candidates import Entry, bundle_notes, check_labels, open_artifacts, read_manifests
from .environment import environment
from .errors import BenchError
from .fresh import measure_fresh
from .latency import Timed, time_requests
from .options import BenchOptions
from .photos import Photos, made_photos, photos_of_data, photos_of_files
from .pictures import pictures
from .render import render
from .schema import Accuracy, Report, Shares
from .stage_shares import Profiled, shares_in_turn
from .torch_forms import EAGER_ID, TorchForms
from .verification import verifications

__all__ = ["BenchOptions", "Report", "bench", "render"]

Progress = Callable[[str, float], None]
_FRESH_TIMEOUT_S = 300.0
_FRESH_PHOTOS = 3


def bench(
    bundles: Sequence[str | Path],
    checkpoint: Checkpoint | str | Path | None = None,
    data: str | Path | None = None,
    options: BenchOptions | None = None,
    *,
    verification: Sequence[Mapping[str, Any]] | None = None,
    commands: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> Report:
    """Measure bundles beside the PyTorch they were made from.

    Args:
        bundles: folders; may be none, for PyTorch alone.
        checkpoint: the baseline; without it there are no speed-ups and no differences, only the artefacts' own figures.
        data: folder or `shapes…`, as `open_data` takes it; without it accuracy is not measured, and the report says so.
        verification: what `verify` found: verdicts (`Verification.to_json()`), or dicts with stage, unit,
            max_abs_error, limit, passed, image.
        commands: to reproduce the report; None: the `regionrt bench` call that does the same.
        progress: told (what is being done, share done 0…1).

    Returns the report; `render(report, folder)` writes it. Raises BenchError (nothing to measure, or things that cannot
    be compared), BundleError, CheckpointError, DataError, ImageError, and BackendError if an artefact fails while it is
    timed.
    """
    options = options or BenchOptions()
    tell = progress or (lambda text, share: None)
    if not bundles and checkpoint is None:
        raise BenchError("nothing to measure: give at least one bundle, or a checkpoint")
    verdicts = verifications(verification)
    manifests = read_manifests(bundles)
    if checkpoint is not None and not isinstance(checkpoint, Checkpoint):
        checkpoint = read_checkpoint(checkpoint)
    if checkpoint is not None:
        check_labels(checkpoint.labels, str(checkpoint.path or "the checkpoint"), manifests)
    labels = checkpoint.labels if checkpoint is not None else manifests[0].labels
    task = TASKS[MODELS[checkpoint.model].task if checkpoint is not None else manifests[0].task]
    opened = task.open_data(data, options.split, labels, options.classes) if data is not None else None
    threads = options.threads or usable_cores()
    facts = environment(threads)  # before we load the machine ourselves
    with ExitStack() as stack:
        stack.enter_context(_torch_threads(threads))
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        tell("opening", 0.0)
        module = _torch_forms(checkpoint, manifests, threads, scratch, options.device) if checkpoint else None
        photos = _photos(opened, options, module, manifests)
        entries: list[Entry] = []
        stack.callback(_close, entries)
        best = _torch_entries(entries, module, photos, options, tell)
        entries += open_artifacts(manifests, threads)
        if options.fresh:
            _footprints(entries, photos, tell)
        timed = _latency(entries, photos, options, tell)
        shares = _shares(entries, photos, options, tell)
        accuracy = _accuracy(entries, module, opened, task, options, tell)
        made_from = sha256_of(checkpoint.path) if checkpoint is not None and checkpoint.path else None
        measured = Measured(
            task=task.name,
            model=checkpoint.model if checkpoint is not None else manifests[0].model,
            labels=tuple(labels),
            entries=entries,
            best_torch=best,
            timed=timed,
            shares=shares,
            accuracy=accuracy,
            data_name=str(data) if data is not None else None,
            data=opened,
            photos=photos.what,
            environment=facts,
            notes=bundle_notes(manifests, made_from),
        )
        report = assemble(measured, options)
        tell("sample pictures", 0.97)
        drawn = {e.id: e.predict for e in entries if e.id in (report.baseline, report.chosen) and e.predict is not None}
        shots = pictures(drawn, photos.images, photos.names, count=options.pictures, score=options.score)
        tell("done", 1.0)
        told = tuple(commands) if commands is not None else (_command(bundles, checkpoint, data, options),)
        return replace(report, pictures=shots, verification=verdicts, commands=told)


def _torch_forms(
    checkpoint: Checkpoint, manifests: Sequence[Manifest], threads: int, scratch: Path, device: str
) -> TorchForms:
    """PyTorch with the first bundle's canvas and thresholds, so that all answer the same question."""
    module = module_from_checkpoint(checkpoint)
    task = task_of(module)
    canvas = manifests[0].canvas if manifests else task.canvas_of(module)
    thresholds: Thresholds | None = None
    if manifests and "candidates" in task.thresholds_of(module):
        thresholds = thresholds_from(module, manifests[0].thresholds)
        module = with_thresholds(module, thresholds)
    file = scratch / "checkpoint.pt"  # in our format, whatever the given one was: its own process needs no options
    write_checkpoint(file, checkpoint)
    return TorchForms(
        module.eval().to(device),
        checkpoint.labels,
        canvas,
        checkpoint=file,
        size_bytes=(checkpoint.path or file).stat().st_size,
        thresholds=thresholds.to_json() if thresholds else None,
        threads=threads,
    )


def _photos(data: Any, options: BenchOptions, module: TorchForms | None, manifests: Sequence[Manifest]) -> Photos:
    if data is not None:
        return photos_of_data(data, options.photos)
    if options.images:
        return photos_of_files(options.images, options.photos)
    return made_photos(module.canvas if module else manifests[0].canvas, options.photos, options.seed)


def _torch_entries(
    entries: list[Entry], module: TorchForms | None, photos: Photos, options: BenchOptions, tell: Progress
) -> str | None:
    """Adds PyTorch's rows; returns the id of its best form (None: not asked for)."""
    if module is None:
        return None
    eager = module.eager()
    entries.append(eager)
    best = None
    if options.best_torch:
        best = module.best(
            eager,
            photos.images,
            batch=options.batch,
            compile_seconds=options.compile_seconds,
            tell=lambda text: tell(text, 0.05),
        )
        if best is not eager:
            entries.append(best)
    own = module.torchvision() if options.torchvision else None
    if own is not None:
        entries.append(own)
    return best.id if best else None


def _footprints(entries: Sequence[Entry], photos: Photos, tell: Progress) -> None:
    waiting = [entry for entry in entries if entry.job is not None and entry.fresh is None]
    for number, entry in enumerate(waiting):
        tell(f"load time and memory: {entry.name}", 0.15 + 0.15 * number / len(waiting))
        entry.fresh = measure_fresh(entry.job or {}, photos.images[:_FRESH_PHOTOS], timeout_s=_FRESH_TIMEOUT_S)


def _latency(entries: Sequence[Entry], photos: Photos, options: BenchOptions, tell: Progress) -> Timed:
    predictors = {entry.id: entry.predict for entry in entries if entry.predict is not None}
    if not predictors:
        return Timed({}, {}, 0)
    tell("latency, candidates in turn", 0.3)
    return time_requests(
        predictors,
        photos.images,
        TimingOptions(2, min(1.0, options.seconds / 10), seconds=options.seconds, least_rounds=options.least_rounds),
        batch=options.batch,
        batch_options=TimingOptions(1, 0.0, seconds=options.seconds / 4, least_rounds=3),
        mask_score=options.score,
        progress=lambda done, _: tell(f"latency, round {done}", 0.3 + 0.3 * done / (done + options.least_rounds)),
    )


def _shares(entries: Sequence[Entry], photos: Photos, options: BenchOptions, tell: Progress) -> dict[str, Shares]:
    """The steps of the staged artefacts, in turn."""
    tell("steps of the staged artefacts, in turn", 0.6)
    candidates = {
        entry.id: Profiled(
            entry.predict, photos.images, *kept_for(entry.predict, photos.images), mask_score=options.score
        )
        for entry in entries
        if entry.predict is not None and isinstance(entry.predict.runner, StagedRunner)
    }
    return shares_in_turn(candidates, TimingOptions(1, 0.0, seconds=options.seconds / 4, least_rounds=3))


def _accuracy(
    entries: Sequence[Entry],
    module: TorchForms | None,
    data: Any,
    task: Task,
    options: BenchOptions,
    tell: Progress,
) -> dict[str, Accuracy]:
    names = {entry.id: entry.name for entry in entries if entry.predict is not None}
    if data is None or not names:
        return {}
    predictors = {}
    for entry in entries:
        predict = module.for_accuracy(entry) if module is not None else entry.predict
        if predict is not None:
            predictors[entry.id] = predict
    order = list(predictors)

    def told(id_: str, done: int, total: int) -> None:
        share = (order.index(id_) + done / max(total, 1)) / len(order)
        tell(f"accuracy: {names[id_]}, image {done} of {total}", 0.6 + 0.37 * share)

    return judge(
        predictors,
        data,
        task=task,
        reference=EAGER_ID if EAGER_ID in predictors else None,
        max_images=options.max_images,
        resamples=options.resamples,
        seed=options.seed,
        progress=told,
    )


def _command(
    bundles: Sequence[str | Path], checkpoint: Checkpoint | None, data: str | Path | None, options: BenchOptions
) -> str:
    """The call that measures the same again, with paths as they were given."""
    words = ["regionrt", "bench", *map(str, bundles)]
    if checkpoint is not None and checkpoint.path is not None:
        words += ["--checkpoint", str(checkpoint.path)]
    if data is not None:
        words += ["--data", str(data), "--split", options.split]
    if options.max_drop is not None:
        words += ["--max-drop", f"{options.max_drop:g}"]
    return shlex.join([*words, "--out", "report"])


def _close(entries: Sequence[Entry]) -> None:
    for entry in entries:
        if entry.predict is not None:
            entry.predict.close()


@contextmanager
def _torch_threads(threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
