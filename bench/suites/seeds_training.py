"""Training in PyTorch: a step of Fast R-CNN on two photos, of R-CNN on as many crops, and what a photo takes in all."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from copy import deepcopy

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from regionrt.bench.latency import speedup
from regionrt.train.initial import frozen_modules
from regionrt.train.models.dense import normalised
from regionrt.train.models.memory_layout import lay_out, takes_channels_first, training_layout
from regionrt.train.models.proposal_losses import losses
from regionrt.train.models.proposal_net import ProposalNet, usually_frozen

from .child import Tell
from .seeds_measure import Candidate, added, fastest, in_batches, seconds_of, time_candidates
from .seeds_nets import placed, seed_net
from .seeds_options import CLASSES, CaseOptions
from .seeds_requests import Requests, rcnn_in_torch
from .seeds_schema import Comparison, SeedRow

PHOTOS = 2
"""Of a step of Fast R-CNN (arXiv:1504.08083, section 2.3)."""
OBJECTS = 5
"""Proposals of each photo that are taken for objects, so that others overlap them as the sampling wants it."""
RATE, MOMENTUM = 1e-6, 0.9
VISITS = 16
"""How often Fast R-CNN sees each photo: 40,000 steps of 2 of VOC07's 5,011 (arXiv:1504.08083, section 2.3 and 4.6)."""
ASKED = 9.0


def measure_training(
    photos: Sequence[np.ndarray], proposals: Sequence[np.ndarray], options: CaseOptions, tell: Tell
) -> list[Comparison]:
    """R-CNN's training ÷ Fast R-CNN's: all of it, of one photo, and a step of either, with equally many regions."""
    pairs = list(itertools.islice(itertools.cycle(zip(photos, proposals, strict=True)), PHOTOS))
    tell("training: weights, and R-CNN's fastest batch of crops")
    fast = _FastRcnnStep(seed_net("fast_rcnn", options, photos[0], proposals[0]), pairs, options.seed)
    flops = _flops(fast)
    rcnn, rcnn_flops, found = _rcnn_step(pairs, fast.regions, options)
    tell("training: R-CNN's features, and their fastest batch of crops")
    features, _, told = rcnn_in_torch(seed_net("rcnn", options, photos[0], proposals[0]), pairs, options)
    own = SeedRow("fast-rcnn-step", f"Fast R-CNN {fast.layout}", ours=False)
    frozen = ", ".join(usually_frozen(fast.module)) or "none"
    notes = [
        f"A step has {fast.regions} regions on either side: R-CNN's {fast.regions} crops, all layers learning; Fast "
        f"R-CNN's of {PHOTOS} photos ({frozen} frozen), log loss, and smooth L1 of the boxes. Forward, backward and "
        f"SGD with momentum; PyTorch eager, fp32. {found}; Fast R-CNN's layout is the one that `regionrt train` takes "
        "on this CPU.",
        f"By arithmetic, {rcnn_flops / 1e12:.3g} ÷ {flops / 1e12:.3g} TFLOP, it is {rcnn_flops / flops:.1f}×.",
    ]
    steps = Comparison("training-step", "A training step", "a step", rcnn.row, [own], "", ASKED, "all", notes)
    tell("training: timing a step of either and R-CNN's features, in turn")
    time_candidates([rcnn, Candidate(own, fast), features], options.timing)
    return [whole_training(rcnn.row, own, features.row, told), steps]


def whole_training(rcnn: SeedRow, fast: SeedRow, features: SeedRow, told: str) -> Comparison:
    """All of the training of a photo, made of parts that were measured in the same rounds.

    Either net visits it `VISITS` times with half a step (R-CNN's paper does not say how often it did); R-CNN then
    computes the features of all its proposals once, which its SVMs and regressors are fitted on. Fitting those is left
    out, in R-CNN's favour. features: PyTorch's R-CNN on a photo; told: how its form was found.
    """
    assert rcnn.latency is not None
    assert fast.latency is not None
    assert features.latency is not None
    visits = VISITS / PHOTOS
    base = SeedRow(
        "rcnn-training", "R-CNN: fine-tuning, and the features of all proposals", ours=False,
        measured=f"a step, and a part of the features, 1 in {visits:g}", factor=visits,
        latency=added([(visits, rcnn.latency), (1, features.latency)]), noisy=rcnn.noisy or features.noisy,
    )  # fmt: skip
    row = SeedRow(
        "fast-rcnn-training", "Fast R-CNN", ours=False, measured="a step", factor=visits,
        latency=added([(visits, fast.latency)]), noisy=fast.noisy,
    )  # fmt: skip
    assert base.latency is not None
    assert row.latency is not None
    row.over_base = speedup(base.latency, row.latency)
    note = (
        f"{VISITS} visits of half a step each, and for R-CNN the features of the photo's proposals once, for its SVMs "
        f"and regressors: {features.latency.p50_ms / 1e3:.3g} s. {told}."
    )
    paper = "8.8× (1504.08083, VGG16: 84 and 9.5 hours)"
    return Comparison("training", "The whole training", "a photo", base, [row], paper, ASKED, "all", [note])


def _rcnn_step(pairs: Requests, regions: int, options: CaseOptions) -> tuple[Candidate, float, str]:
    """R-CNN's step with the layout and the number of crops at once that are fastest, its FLOPs, and how it was found.

    A whole step where that takes at most `whole_seconds`, else batches of crops and an update.
    """
    first = seed_net("rcnn", options, *pairs[0])
    nets = {"channels first": first, "channels last": deepcopy(first).to(memory_format=torch.channels_last)}
    sizes = sorted({min(size, regions, *(len(boxes) for _, boxes in pairs)) for size in options.training_batches})
    tried = {
        (layout, size): _CropBatches(net, pairs, size, regions) for layout, net in nets.items() for size in sizes
    }  # fmt: skip
    (layout, size), seconds = fastest(tried, {key: key[1] for key in tried})
    batches, update = tried[layout, size], _Update(nets[layout])
    flops = _flops(batches) * regions / size
    found = f"R-CNN was fastest with {size} crops at once, of {', '.join(map(str, sizes))}, {layout}, of both"
    row = SeedRow("rcnn-step", f"R-CNN {layout}, {size} crops at once, gradients added up", ours=False)
    if seconds * regions <= options.whole_seconds:

        def step() -> None:
            batches.step()
            update()

        return Candidate(row, step), flops, found
    parts = in_batches(row, batches, size, (regions, "crops"), seconds, options.part_seconds)
    row.measured, parts.extra_ms = f"{row.measured} and an update", 1e3 * seconds_of(update)
    return parts, flops, found


def _flops(call: Callable[[], object]) -> float:
    """Of a call's matrix products and convolutions, forward and backward."""
    with FlopCounterMode(display=False) as counter:
        call()
    return float(counter.get_total_flops())


class _FastRcnnStep:
    """A step on `PHOTOS` photos, as the trainer makes it. regions: how many it sampled. layout: in words."""

    def __init__(self, module: ProposalNet, pairs: Requests, seed: int) -> None:
        layout = training_layout(module, "fp32")
        self.layout = "channels last" if layout == torch.channels_last else "channels first, what is frozen last"
        frozen_modules(module, usually_frozen(module))
        lay_out(module, layout)
        self.module = module.train()
        self.regions = 0
        self._generator_seed = seed
        module.head.register_forward_pre_hook(self._count)
        images, sizes = zip(*(placed(module, photo) for photo, _ in pairs), strict=True)
        self._batch = torch.cat(images), torch.cat(sizes)
        self._targets = [_objects(boxes, module.num_classes) for _, boxes in pairs]
        self._update = _Update(module)

    def __call__(self) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self._generator_seed)  # the same regions in every step
            sum(losses(self.module, *self._batch, self._targets).values(), torch.tensor(0.0)).backward()
        self._update()

    def _count(self, _: nn.Module, given: tuple[Tensor, ...]) -> None:
        self.regions = len(given[0])


class _Update:
    """SGD on what learns, and its gradients away."""

    def __init__(self, module: nn.Module) -> None:
        learning = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self._optimiser = torch.optim.SGD(learning, lr=RATE, momentum=MOMENTUM)

    def __call__(self) -> None:
        self._optimiser.step()
        self._optimiser.zero_grad()


class _CropBatches:
    """Forward and backward of `size` of a step's `regions` crops a call, a quarter of them objects."""

    def __init__(self, module: ProposalNet, pairs: Requests, size: int, regions: int) -> None:
        self._module = module.train()
        self._layout = torch.contiguous_format if takes_channels_first(self._module) else torch.channels_last
        self._size, self._regions = size, regions
        with torch.no_grad():
            images = [normalised(module, *placed(module, photo)) for photo, _ in pairs]
        boxes = [torch.from_numpy(boxes) for _, boxes in pairs]
        starts = range(0, max(min(len(boxes[0]), regions) - size, 0) + 1, size)
        parts = [(i, start) for start in starts for i in range(len(images))]
        self._turn = itertools.cycle((images[i], boxes[i][None, start : start + size]) for i, start in parts)
        self._labels = torch.zeros(size, dtype=torch.long)
        self._labels[: round(size * module.config.foreground)] = 1

    def __call__(self) -> None:
        self._learn(self._size)

    def step(self) -> None:
        """All of the step's crops."""
        for start in range(0, self._regions, self._size):
            self._learn(min(self._size, self._regions - start))

    def _learn(self, count: int) -> None:
        """Gradients of the next crops, as much of the step's mean as they are of its crops."""
        image, rois = next(self._turn)
        rois = rois[:, :count]
        count = rois.shape[1]
        crops = self._module.pool(image, rois, torch.tensor([count], dtype=torch.int32))[0]
        crops = crops.contiguous(memory_format=self._layout)
        logits, _ = self._module.classify(crops)
        (F.cross_entropy(logits, self._labels[:count]) * (count / self._regions)).backward()


def _objects(boxes: np.ndarray, classes: int) -> dict[str, Tensor]:
    """A training target: the first `OBJECTS` proposals are objects, of one class after the other."""
    proposals = torch.from_numpy(boxes)
    labels = torch.arange(min(OBJECTS, len(proposals))) % (min(classes, CLASSES) - 1) + 1
    return {"boxes": proposals[:OBJECTS], "labels": labels, "proposals": proposals}
