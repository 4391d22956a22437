"""A step of training: Fast R-CNN on two photos, R-CNN on as many crops, each with its paper's batch, in PyTorch."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from copy import deepcopy

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regionrt.train.models.dense import normalised
from regionrt.train.models.memory_layout import takes_channels_first, training_layout
from regionrt.train.models.proposal_losses import losses
from regionrt.train.models.proposal_net import ProposalNet, usually_frozen

from .child import Tell
from .seeds_measure import Candidate, fastest, in_batches, seconds_of, time_candidates
from .seeds_nets import placed, seed_net
from .seeds_options import CLASSES, CaseOptions
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
    """One comparison: a step of R-CNN's fine-tuning ÷ a step of Fast R-CNN's training, with equally many regions."""
    pairs = list(itertools.islice(itertools.cycle(zip(photos, proposals, strict=True)), PHOTOS))
    tell("training: weights, and R-CNN's fastest batch of crops")
    fast = _FastRcnnStep(seed_net("fast_rcnn", options, photos[0], proposals[0]), pairs, options.seed)
    fast()
    regions = fast.regions
    first = seed_net("rcnn", options, photos[0], proposals[0])
    nets = {"channels first": first, "channels last": deepcopy(first).to(memory_format=torch.channels_last)}
    sizes = sorted({min(size, regions, *(len(boxes) for _, boxes in pairs)) for size in options.training_batches})
    tried = {
        (layout, size): _CropBatches(net, pairs, size, regions) for layout, net in nets.items() for size in sizes
    }  # fmt: skip
    (layout, size), seconds = fastest(tried, {key: key[1] for key in tried})
    batches, update = tried[layout, size], _Update(nets[layout])
    row = SeedRow("rcnn-step", f"R-CNN {layout}, {size} crops at once, gradients added up", ours=False)
    if seconds * regions <= options.whole_seconds:

        def step() -> None:
            batches.step()
            update()

        base = Candidate(row, step)
    else:
        base = in_batches(row, batches, size, (regions, "crops"), seconds, options.part_seconds)
        row.measured, base.extra_ms = f"{row.measured} and an update", 1e3 * seconds_of(update)
    own = SeedRow("fast-rcnn-step", f"Fast R-CNN {fast.layout}", ours=False)
    frozen = ", ".join(usually_frozen(fast.module)) or "none"
    notes = [
        f"A step has {regions} regions on either side: R-CNN's {regions} crops, all layers learning; Fast R-CNN's of "
        f"{PHOTOS} photos ({frozen} frozen), log loss, and smooth L1 of the boxes. Forward, backward and SGD with "
        f"momentum; PyTorch eager, fp32. R-CNN was fastest with {size} crops at once, of {', '.join(map(str, sizes))}, "
        f"{layout}, of both; Fast R-CNN's layout is the one that `regionrt train` takes on this CPU.",
    ]
    paper = "8.8× (1504.08083, VGG16: the whole training, 84 and 9.5 hours)"
    comparison = Comparison("training", "A training step", "a step", row, [own], paper, ASKED, "all", notes)
    tell("training: timing a step of either, in turn")
    time_candidates([base, Candidate(own, fast)], options.timing)
    return [comparison]


def whole_training(step: Comparison, request: SeedRow) -> float | None:
    """R-CNN's whole training ÷ Fast R-CNN's, per photo, from what was measured of their parts; None without those.

    Each visits a photo `VISITS` times with half a step (R-CNN's paper does not say how often it did); R-CNN then
    computes the features of all its proposals once, which its SVMs and regressors are fitted on (request: PyTorch's).
    Fitting those is left out, in R-CNN's favour.
    """
    fast = step.rows[0].latency
    if fast is None or step.base.latency is None or request.latency is None:
        return None
    visits = VISITS / PHOTOS
    return (visits * step.base.latency.p50_ms + request.latency.p50_ms) / (visits * fast.p50_ms)


class _FastRcnnStep:
    """A step on `PHOTOS` photos, as the trainer makes it. regions: how many it sampled. layout: in words."""

    def __init__(self, module: ProposalNet, pairs: Sequence[tuple[np.ndarray, np.ndarray]], seed: int) -> None:
        layout = training_layout(module, "fp32")
        self.layout = "channels last" if layout == torch.channels_last else "channels first"
        self.module = module.to(memory_format=layout).train()
        for name in usually_frozen(module):
            for parameter in module.get_submodule(name).parameters():
                parameter.requires_grad_(False)
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

    def __init__(
        self, module: ProposalNet, pairs: Sequence[tuple[np.ndarray, np.ndarray]], size: int, regions: int
    ) -> None:
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
