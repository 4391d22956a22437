"""A request of R-CNN, SPPnet, Fast R-CNN, and Fast R-CNN with truncated SVD: PyTorch and our artefacts, in turn."""

from __future__ import annotations

import itertools
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from regionrt.bench.baseline import torch_baseline
from regionrt.bench.environment import without_folders
from regionrt.bench.forms import TorchForm, prepared
from regionrt.export import ExportOptions, export_bundle
from regionrt.runtime.backends.openvino import OpenVinoStages
from regionrt.runtime.loading import load
from regionrt.runtime.predictor import Predictor
from regionrt.train.models.dense import canvas_of, normalised
from regionrt.train.models.proposal_net import ProposalNet

from .child import Tell
from .peer_case import share_matched
from .seeds_measure import Candidate, fastest, seconds_of, time_candidates
from .seeds_nets import LABELS, placed, seed_net
from .seeds_options import NETS, ROWS, CaseOptions
from .seeds_schema import Comparison, SeedRow
from .stage_shares import shares_of

PART = 32
"""Proposals of a request of R-CNN's artefact where all take too long: the staged form runs as many crops at once."""
_PAPERS = {  # the paper's figure, and how many times faster the artefact is to be
    "rcnn": ("", None),
    "sppnet": ("24 to 102× (1406.4729, smaller nets); 20× (1504.08083, VGG16)", 102.0),
    "fast_rcnn": ("146× (1504.08083, VGG16)", None),
    "fast_rcnn_svd": ("213× (1504.08083, VGG16)", 213.0),
}
Request = tuple[np.ndarray, np.ndarray]


def measure_requests(
    photos: Sequence[np.ndarray], proposals: Sequence[np.ndarray], options: CaseOptions, tell: Tell
) -> list[Comparison]:
    """Each net's requests against PyTorch's R-CNN, which takes part anew in every comparison."""
    tell("R-CNN: weights, and its fastest batch of crops")
    rcnn = seed_net("rcnn", options, photos[0], proposals[0])
    base, form, told = _rcnn_in_torch(rcnn, list(zip(photos, proposals, strict=True)), options)
    found = []
    for key in (key for key in NETS if key in options.nets):
        name, (paper, asked) = NETS[key], _PAPERS[key]
        base.row = replace(base.row, latency=None, note="")
        notes = [told] if key == "rcnn" else []
        comparison = Comparison(key, name, "a request", base.row, [], paper, asked, notes=notes)
        tell(f"{name}: weights and artefacts")
        module = rcnn if key == "rcnn" else seed_net(key, options, photos[0], proposals[0])
        with tempfile.TemporaryDirectory() as scratch:
            _compare(comparison, module, base, form, photos, proposals, options, Path(scratch), tell)
        found.append(comparison)
    return found


def _compare(
    comparison: Comparison,
    module: ProposalNet,
    base: Candidate,
    form: TorchForm,
    photos: Sequence[np.ndarray],
    proposals: Sequence[np.ndarray],
    options: CaseOptions,
    scratch: Path,
    tell: Tell,
) -> None:
    """Opens, checks and times the rows of one net. A row that fails says why and leaves the others alone."""
    crops = comparison.key == "rcnn"
    baseline = torch_baseline(module, form, canvas=canvas_of(module), labels=LABELS)
    few = (photos[0], proposals[0][:PART] if crops else proposals[0])  # R-CNN in PyTorch takes minutes for all
    expected = baseline(*few)
    candidates = [base]
    opened: dict[str, Predictor] = {}
    if not crops:
        row = SeedRow("torch-fp32", f"PyTorch {form}, fp32", ours=False, matched=1.0)
        comparison.rows.append(row)
        candidates.append(Candidate(row, _ring(baseline, photos, proposals)))
    for id in (id for id in ROWS if id in options.rows):
        row = SeedRow(id, ROWS[id], ours=not id.startswith("torch"))
        comparison.rows.append(row)
        tell(f"{comparison.title}: opening {row.name}")
        try:
            predict = opened[id] = _open(id, module, options, scratch)
            row.matched = share_matched([expected], [predict(*few)])
            candidates.append(_requests(row, predict, photos, proposals, options, crops))
        except Exception as error:  # a candidate that fails is a finding; what it raises is the library's own
            row.reason = without_folders(f"{type(error).__name__}: {' '.join(str(error).split())}"[:400])
    tell(f"{comparison.title}: timing {len(candidates)} candidates, in turn")
    time_candidates(candidates, options.timing)
    comparison.notes.append(f"load average {os.getloadavg()[0]:.1f} when it ended")
    if options.profile_rounds and not crops:
        for row in comparison.rows:
            if row.ours and row.latency is not None:
                row.shares = shares_of(opened[row.id], photos, options.profile_rounds, proposals)
    for predict in (baseline, *opened.values()):
        predict.close()


def _open(id: str, module: ProposalNet, options: CaseOptions, scratch: Path) -> Predictor:
    backend, precision = id.split("-")
    if precision == "bf16":
        OpenVinoStages("bf16", options.threads)  # says why where this CPU does not compute in it
    if backend == "torch":
        form = TorchForm("bf16", channels_last=True)
        return torch_baseline(module, form, canvas=canvas_of(module), labels=LABELS)
    bundle = scratch / precision
    if not bundle.exists():
        asked = ExportOptions(precision=precision, ops=("staged",))
        export_bundle(module, bundle, asked, labels=LABELS)
    return load(bundle, backend, threads=options.threads, form="staged", precision=precision)


def _requests(
    row: SeedRow,
    predict: Predictor,
    photos: Sequence[np.ndarray],
    proposals: Sequence[np.ndarray],
    options: CaseOptions,
    crops: bool,
) -> Candidate:
    """Whole requests; of R-CNN a part of the proposals where all would take longer than `whole_seconds`."""
    if crops and options.proposals > PART:
        part = [boxes[:PART] for boxes in proposals]
        factor = options.proposals / PART
        if factor * seconds_of(lambda: predict(photos[0], part[0])) > options.whole_seconds:
            row.factor, row.measured = factor, f"requests with {PART} of {options.proposals} proposals"
            return Candidate(row, _ring(predict, photos, part))
    return Candidate(row, _ring(predict, photos, proposals))


def _ring(predict: Predictor, photos: Sequence[np.ndarray], proposals: Sequence[np.ndarray]) -> Callable[[], object]:
    """Requests over the photos, one a call."""
    turn = itertools.cycle(zip(photos, proposals, strict=True))
    return lambda: predict(*next(turn))


def _rcnn_in_torch(
    module: ProposalNet, requests: Sequence[Request], options: CaseOptions
) -> tuple[Candidate, TorchForm, str]:
    """PyTorch's R-CNN with the number of crops at once and the layout that are fastest, and how those were found.

    A whole request where that takes at most `whole_seconds`, else batches of crops, cut and run through the net; the
    canvas, its normalisation and NMS are left out then, in R-CNN's favour.
    """
    sizes = sorted({min(size, options.proposals) for size in options.crop_batches})
    forms = [TorchForm(), TorchForm(channels_last=True)]
    nets = {form: prepared(module, form) for form in forms}
    batches = {
        (form, size): _CropBatches(nets[form], requests, size) for form in forms for size in sizes
    }  # fmt: skip
    (form, size), seconds = fastest(batches, {key: key[1] for key in batches})
    told = (
        f"R-CNN in PyTorch is fastest with {size} crops at once, {form}, of {', '.join(map(str, sizes))}, eager and "
        f"channels last: {1e3 * seconds:.1f} ms a crop of {module.config.crop} px"  # type: ignore[attr-defined]
    )
    row = SeedRow("rcnn-torch-fp32", f"R-CNN, PyTorch {form}, fp32, {size} crops at once", ours=False)
    if seconds * options.proposals <= options.whole_seconds:
        net = nets[form]
        net.rows_at_once = size
        predict = torch_baseline(net, canvas=canvas_of(net), labels=LABELS)
        call = _ring(predict, *map(list, zip(*requests, strict=True)))
        return Candidate(row, call), form, told
    row.factor = options.proposals / size
    row.measured = f"batches of {size} of {options.proposals} crops"
    return Candidate(row, batches[form, size]), form, told


class _CropBatches:
    """R-CNN on `size` proposals a call, the photos' one after the other: cut out, warped, through the net."""

    def __init__(self, module: ProposalNet, requests: Sequence[Request], size: int) -> None:
        self._module = module
        with torch.inference_mode():
            images = [normalised(module, *placed(module, photo)) for photo, _ in requests]
        boxes = [torch.from_numpy(boxes) for _, boxes in requests]
        starts = range(0, len(boxes[0]) - size + 1, size)
        parts = [(i, start) for start in starts for i in range(len(images))]
        self._turn = itertools.cycle((images[i], boxes[i][None, start : start + size]) for i, start in parts)

    @torch.inference_mode()
    def __call__(self) -> None:
        image, rois = next(self._turn)
        crops = self._module.pool(image, rois, torch.tensor([rois.shape[1]], dtype=torch.int32))
        self._module.classify(crops[0])
