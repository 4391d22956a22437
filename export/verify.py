"""PyTorch eager against an artefact, from the same canvas: stage by stage, then end to end.

Every unit between two of our ops is fed with eager's own values, so that an error is seen where it arises and not where
it has grown. Proposals and detections are compared as sets: another order of ties is no difference.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from regionrt.runtime.backends import Runner
from regionrt.runtime.bundle import Artifact, Manifest
from regionrt.runtime.loading import runner_for
from regionrt.train.requests import request_for
from regionrt.train.tasks import task_of

from .errors import ExportError
from .matching import match_scored
from .thresholds import with_thresholds
from .to_onnx import OUTPUTS
from .units import Values, units_of
from .verdict import PIXELS, TOLERANCES, Agreement, StageCheck, Tolerance, Verification, stage_of

_SETS = {  # ops whose outputs are sets of boxes: names of boxes, scores, labels, count
    "RegionProposals": ("rois", "roi_scores", None, "roi_counts"),
    "RegionDetections": ("boxes", "scores", "labels", "num_detections"),
    "RegionMerge": ("boxes", "scores", "labels", "num_detections"),
}


def verify(
    bundle: str | Path,
    module: nn.Module,
    images: Sequence[tuple[str, np.ndarray]],
    *,
    batches: Sequence[int] = (1, 4),
    forms: Sequence[str] | None = None,
    progress: Callable[[str, float], None] | None = None,
) -> list[Verification]:
    """Judge each ONNX artefact of `bundle` against `module`, the PyTorch detector that it was exported from.

    images: (name, RGB uint8 [H, W, 3]). Stages are fed at the first of `batches`, end to end runs at each of them;
    progress is called with a text and the share done. A difference is a verdict, not an error; ExportError means that
    there is nothing to verify. Engines run on their device only and are judged there, by `bench`.
    """
    if not images:
        raise ExportError("expected at least one image to verify on, found none")
    manifest = Manifest.read(bundle)
    module = with_thresholds(module, manifest.thresholds).eval()
    chosen = [a for a in manifest.artifacts if a.engine is None and (not forms or a.form in forms)]
    for artifact in list(chosen):
        why = manifest.preflight(artifact)
        if why is not None:
            warnings.warn(f"{bundle}: {artifact} is not verified here: {why}", stacklevel=2)
            chosen.remove(artifact)
    if not chosen:
        raise ExportError(f"{bundle} holds no ONNX artefact{f' of form {forms}' if forms else ''} to verify")

    tolerances = [_tolerance_of(artifact, manifest.task) for artifact in chosen]
    results = [
        Verification(str(a), a.form, a.precision, len(images), t) for a, t in zip(chosen, tolerances, strict=True)
    ]
    tell = progress or (lambda text, done: None)
    reference = _Reference(module, manifest)
    _check_stages(manifest, chosen, reference, images, batches[0], results, tell)
    for done, (result, artifact) in enumerate(zip(results, chosen, strict=True)):
        tell(f"{artifact}: end to end", 0.5 + 0.5 * done / len(chosen))
        runner = runner_for(manifest, artifact)
        try:
            result.agreements += [
                _check_whole(manifest, runner, reference, images, batch, result.tolerance) for batch in batches
            ]
        finally:
            runner.close()
    return results


def _tolerance_of(artifact: Artifact, task: str) -> Tolerance:
    if artifact.precision not in TOLERANCES:
        known = " or ".join(TOLERANCES)
        raise ExportError(f"{artifact}: no tolerance is known for {artifact.precision}, expected {known}")
    tolerance = TOLERANCES[artifact.precision]
    return replace(tolerance, matched=PIXELS[artifact.precision]) if task == "segmentation" else tolerance


class _Reference:
    """Eager's values. On a fixed canvas what is found in an image does not depend on its batch: it is computed once."""

    def __init__(self, module: nn.Module, manifest: Manifest):
        self.module, self.eager = module, task_of(module).eager
        caps = manifest.thresholds
        self.candidates = {"candidates": int(caps["candidates"])} if "candidates" in caps else {}
        self.fixed = not manifest.canvas.dynamic
        self.outputs = ("labels", "probabilities") if manifest.task == "segmentation" else OUTPUTS
        self.known: dict[int, dict[str, np.ndarray]] = {}

    def stages(self, start: int, request: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Every stage value of the batch that begins with image `start`."""
        values = self.eager(self.module, *map(torch.from_numpy, request.values()), **self.candidates, stages=True)
        found: dict[str, Any] = {name: value.numpy() for name, value in values.items()}
        for n in range(len(request["images"])):
            self.known[start + n] = {name: found[name][n : n + 1].copy() for name in self.outputs if name in found}
        return found | dict(request)

    def detections(self, start: int, request: Mapping[str, np.ndarray]) -> Values:
        """The outputs that artefacts have too."""
        wanted = range(start, start + len(request["images"]))
        if not (self.fixed and all(n in self.known for n in wanted)):
            return self.stages(start, request)
        return {name: np.concatenate([self.known[n][name] for n in wanted]) for name in self.known[start]}


def _check_stages(
    manifest: Manifest,
    artifacts: Sequence[Artifact],
    reference: _Reference,
    images: Sequence[tuple[str, np.ndarray]],
    batch: int,
    results: Sequence[Verification],
    tell: Callable[[str, float], None],
) -> None:
    """Fill in the stage checks of each artefact's result; eager runs once for all of them."""
    units = [units_of(manifest, artifact) for artifact in artifacts]
    maps = manifest.task == "segmentation"
    checks: list[dict[str, StageCheck]] = [{} for _ in artifacts]
    for start, names, request in _batches(images, manifest, batch):
        values = reference.stages(start, request)
        for sessions, known, result in zip(units, checks, results, strict=True):
            for session in sessions:
                compare = _compare_sets if session.op in _SETS else _compare_values
                found = session.run(values)
                told = list(_compare_maps(found, values, result.tolerance)) if maps else []
                for value, limit, errors in [*compare(session.op, found, values, result.tolerance), *told]:
                    check = known.setdefault(value, StageCheck(stage_of(value), value, session.name, limit))
                    for name, (error, absolute) in zip(names, errors, strict=True):
                        check.add(error, absolute, name)
        done = start + len(names)
        tell(f"stages, {done} of {len(images)} images", 0.5 * done / len(images))
    for result, known in zip(results, checks, strict=True):
        result.checks = list(known.values())


def _compare_maps(
    found: Values, reference: Values, tolerance: Tolerance
) -> Iterator[tuple[str, float, list[tuple[float, float]]]]:
    """Takes what is no number out of `found`: labels and places, by the share that differs (of valid pixels)."""
    for name in [name for name in found if name == "labels" or name.startswith("places.")]:
        value, errors = found.pop(name), []  # type: ignore[attr-defined]
        for n, (height, width) in enumerate(reference["image_sizes"]):
            part = (slice(height), slice(width)) if name == "labels" else ()
            share = float((value[n] != reference[name][n])[part].mean())
            errors.append((share, share))
        yield name, 1 - tolerance.matched, errors


def _compare_values(
    op: str | None, found: Values, reference: Values, tolerance: Tolerance
) -> Iterator[tuple[str, float, list[tuple[float, float]]]]:
    """Per output: its name, the limit, and for each image the error as a part of max |reference|, and absolute."""
    for name, value in found.items():
        wanted = reference[name].astype(np.float64)
        scale = float(np.abs(wanted).max()) or 1.0
        difference = np.abs(value.astype(np.float64) - wanted)
        if value.shape[0] != reference["images"].shape[0]:  # anchors: the same for each image
            difference = np.broadcast_to(difference, (reference["images"].shape[0], *difference.shape))
        worst = difference.reshape(len(difference), -1).max(1)
        yield name, tolerance.stage, [(float(w) / scale, float(w)) for w in worst]


def _compare_sets(
    op: str | None, found: Values, reference: Values, tolerance: Tolerance
) -> Iterator[tuple[str, float, list[tuple[float, float]]]]:
    """For the boxes of our ops: the share that has no partner, and the largest score error of those that have one."""
    assert op is not None
    boxes, scores, labels, count = _SETS[op]
    errors = []
    for n in range(len(reference[count])):
        sets = [_set_of(values, n, boxes, scores, labels, count) for values in (reference, found)]
        rows, columns = match_scored(*sets, min_iou=tolerance.iou, max_score_error=tolerance.score)
        most = max(len(sets[0][0]), len(sets[1][0]))
        worst = np.abs(sets[0][1][rows] - sets[1][1][columns]).max(initial=0.0)
        errors.append((1 - len(rows) / most if most else 0.0, float(worst)))
    yield boxes, 1 - tolerance.matched, errors


def _set_of(
    values: Values, n: int, boxes: str, scores: str, labels: str | None, count: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rows = slice(0, int(values[count][n]))
    names = values[labels][n, rows] if labels else np.zeros(rows.stop, np.int32)
    return values[boxes][n, rows], values[scores][n, rows], names


def _check_whole(
    manifest: Manifest,
    runner: Runner,
    reference: _Reference,
    images: Sequence[tuple[str, np.ndarray]],
    batch: int,
    tolerance: Tolerance,
) -> Agreement:
    maps = reference.outputs[0] == "labels"
    agreement = Agreement(batch, "pixels" if maps else "detections")
    for start, names, request in _batches(images, manifest, batch):
        wanted, found = reference.detections(start, request), runner.run(**request)
        for n, name in enumerate(names):
            if maps:
                _add_map(agreement, name, wanted["labels"][n], found["labels"][n], request["image_sizes"][n])
            else:
                _add_image(agreement, name, n, wanted, found, tolerance)
    return agreement


def _add_image(agreement: Agreement, name: str, n: int, wanted: Values, found: Values, tolerance: Tolerance) -> None:
    sets = [_set_of(values, n, "boxes", "scores", "labels", "num_detections") for values in (wanted, found)]
    rows, columns = match_scored(*sets, min_iou=tolerance.iou, max_score_error=tolerance.score)
    if "masks" in wanted and len(rows):
        a, b = wanted["masks"][n][rows] >= 0.5, found["masks"][n][columns] >= 0.5
        union = (a | b).sum((1, 2))
        same = np.divide((a & b).sum((1, 2)), union, out=np.ones(len(rows)), where=union > 0) >= tolerance.mask_iou
        rows, columns = rows[same], columns[same]
    agreement.add(
        name,
        matched=len(rows),
        eager=len(sets[0][0]),
        artefact=len(sets[1][0]),
        score_error=float(np.abs(sets[0][1][rows] - sets[1][1][columns]).max(initial=0.0)),
    )


def _add_map(agreement: Agreement, name: str, wanted: np.ndarray, found: np.ndarray, size: np.ndarray) -> None:
    height, width = size
    same = int((wanted[:height, :width] == found[:height, :width]).sum())
    pixels = int(height * width)
    agreement.add(name, matched=same, eager=pixels, artefact=pixels, score_error=0.0)


def _batches(
    images: Sequence[tuple[str, np.ndarray]], manifest: Manifest, batch: int
) -> Iterator[tuple[int, list[str], dict[str, np.ndarray]]]:
    """Number of the first image, names, and what the net takes, by name; `batch` images at a time."""
    for start in range(0, len(images), batch):
        chunk = images[start : start + batch]
        yield (
            start,
            [name for name, _ in chunk],
            request_for(manifest.canvas, manifest.proposals, [image for _, image in chunk]),
        )
