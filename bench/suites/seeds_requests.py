"""A request of R-CNN, SPPnet, Fast R-CNN, and Fast R-CNN with truncated SVD: PyTorch and our artefacts, in turn."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from regionrt.bench.baseline import torch_baseline
from regionrt.bench.forms import TorchForm, prepared
from regionrt.runtime.predictor import Predictor
from regionrt.train.models.dense import canvas_of, normalised
from regionrt.train.models.proposal_net import ProposalNet

from .child import Tell
from .seeds_compare import compare, whole_requests
from .seeds_measure import Candidate, fastest, in_batches, seconds_of
from .seeds_nets import LABELS, placed, seed_net
from .seeds_options import NETS, CaseOptions
from .seeds_schema import Comparison, SeedRow

PART = 32
"""Proposals of a request of R-CNN's artefact where all take too long: the staged form runs as many crops at once."""
_PAPERS = {  # the paper's figure, and how many times faster the artefact is to be
    "rcnn": ("", None),
    "sppnet": ("24 to 102× (1406.4729, smaller nets); 20× (1504.08083, VGG16)", 102.0),
    "fast_rcnn": ("146× (1504.08083, VGG16)", None),
    "fast_rcnn_svd": ("213× (1504.08083, VGG16)", 213.0),
}
Requests = Sequence[tuple[np.ndarray, np.ndarray]]
"""Photos with their proposals."""


def measure_requests(
    photos: Sequence[np.ndarray], proposals: Sequence[np.ndarray], options: CaseOptions, tell: Tell
) -> list[Comparison]:
    """Each net's requests against PyTorch's R-CNN, which takes part anew in every comparison."""
    requests = list(zip(photos, proposals, strict=True))
    tell("R-CNN: weights, and its fastest batch of crops")
    rcnn = seed_net("rcnn", options, *requests[0])
    base, form, told = rcnn_in_torch(rcnn, requests, options)
    found = []
    for key in (key for key in NETS if key in options.nets):
        name, (paper, asked) = NETS[key], _PAPERS[key]
        base.row = replace(base.row, latency=None, note="")
        comparison = Comparison(key, name, "a request", base.row, [], paper, asked)
        tell(f"{name}: weights and artefacts")
        if key == "rcnn":
            comparison.notes.append(told)
            few = requests[0][0], requests[0][1][:PART]  # PyTorch takes minutes for all
            compare(
                comparison, rcnn, base, form, requests, options, tell, check=few,
                candidate=lambda row, predict: _some_proposals(row, predict, requests, options),
            )  # fmt: skip
        else:
            compare(comparison, seed_net(key, options, *requests[0]), base, form, requests, options, tell)
        found.append(comparison)
    return found


def _some_proposals(row: SeedRow, predict: Predictor, requests: Requests, options: CaseOptions) -> Candidate:
    """Requests of R-CNN's artefact, with a part of the proposals where all would take longer than `whole_seconds`."""
    if options.proposals > PART:
        part = [(photo, boxes[:PART]) for photo, boxes in requests]
        factor = options.proposals / PART
        if factor * seconds_of(lambda: predict(*part[0])) > options.whole_seconds:
            row.factor, row.measured = factor, f"requests with {PART} of {options.proposals} proposals"
            return whole_requests(row, predict, part)
    return whole_requests(row, predict, requests)


def rcnn_in_torch(module: ProposalNet, requests: Requests, options: CaseOptions) -> tuple[Candidate, TorchForm, str]:
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
        return whole_requests(row, predict, requests), form, told
    crops = (options.proposals, "crops")
    return in_batches(row, batches[form, size], size, crops, seconds, options.part_seconds), form, told


class _CropBatches:
    """R-CNN on `size` proposals a call, the photos' one after the other: cut out, warped, through the net."""

    def __init__(self, module: ProposalNet, requests: Requests, size: int) -> None:
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
