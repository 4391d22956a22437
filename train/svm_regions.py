"""What SVMs and ridge regressors of boxes are fitted on: features of each image's regions, within a budget of bytes."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_iou

from .data.proposals import KeptProposals
from .models.dense import canvas_of, normalised
from .models.proposal_net import ProposalNet, proposals_of

NEAR_IOU = 0.6  # of a proposal that a regressor learns from
BUDGET = 2 << 30  # bytes of features that SVMs are fitted on, and of those of the regressors
_FEW = 8  # proposals of a kind and image: where these are still too many, images are left out
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Regions:
    """What SVMs read of one image: fc7 [R, …] of its n objects, then of `near` proposals that are near an object, then
    of others; IoU [R, n] with the objects, and their labels [n]. Proposals are in random order."""

    fc7: np.ndarray
    overlap: np.ndarray
    labels: np.ndarray
    near: int

    def first(self, most: int) -> Regions:
        """With at most so many proposals that are near an object, and as many others."""
        objects, others = len(self.labels), len(self.labels) + self.near
        near = min(self.near, most)
        kept = np.r_[: objects + near, others : min(others + most, len(self.fc7))]
        return Regions(self.fc7[kept], self.overlap[kept], self.labels, near)

    @property
    def nbytes(self) -> int:
        return self.fc7.nbytes


@dataclass(frozen=True)
class Near:
    """What regressors read of one image's proposals that are near an object: what was pooled [M, …], the nearest
    object's label [M], and the targets [M, 4]. In random order."""

    pooled: np.ndarray
    labels: np.ndarray
    targets: np.ndarray

    def first(self, most: int) -> Near:
        return Near(self.pooled[:most].copy(), self.labels[:most], self.targets[:most])

    @property
    def nbytes(self) -> int:
        return self.pooled.nbytes


_Part = TypeVar("_Part", Regions, Near)


class _Kept(Generic[_Part]):
    """What images give, one after the other, in at most `BUDGET` bytes.

    Whenever it is more, of every image half as many proposals stay, seen ones and those to come; of `_FEW` on every
    other image does. So all have the same share, that which they would have had from the start.
    """

    def __init__(self, most: int) -> None:
        self.parts: list[_Part] = []
        self.most, self.every = most, 1
        self._seen = self._bytes = 0

    def add(self, part: _Part) -> None:
        if self._seen % self.every == 0:
            self.parts.append(part.first(self.most))
            self._bytes += self.parts[-1].nbytes
        self._seen += 1
        while self._bytes > BUDGET and (self.most > _FEW or len(self.parts) > 1):
            if self.most > _FEW:
                self.most //= 2
                for index, one in enumerate(self.parts):  # in place: never all of them twice
                    self.parts[index] = one.first(self.most)
            else:
                self.every *= 2
                self.parts = self.parts[::2]
            self._bytes = sum(one.nbytes for one in self.parts)

    def tell(self, what: str, most: int) -> None:
        """Warn where not all is kept."""
        if (self.most, self.every) != (most, 1):
            images = "an image" if self.every == 1 else f"of one image in {self.every}"
            warnings.warn(
                f"{what} more than {BUDGET / 2**30:.3g} GiB of features: of each kind at most {self.most} "
                f"proposals {images} are kept, not {most}",
                stacklevel=4,
            )


def regions_of_all(
    module: ProposalNet, data: Any, most: int, rng: np.random.Generator, progress: Progress
) -> tuple[list[Regions], list[Near]]:
    """`regions_of` each image, of as many as fit into `BUDGET`; warns where that is not all."""
    regions, near = _Kept[Regions](most), _Kept[Near](most)
    for index in range(len(data)):
        of_svms, of_regressors = regions_of(module, data[index], most, rng)
        regions.add(of_svms)
        near.add(of_regressors)
        progress(index + 1, len(data))
    regions.tell("SVMs have", most)
    near.tell("regressors of boxes have", most)
    return regions.parts, near.parts


@torch.no_grad()
def regions_of(module: ProposalNet, sample: Any, most: int, rng: np.random.Generator) -> tuple[Regions, Near]:
    """Objects first, then at most so many proposals that are near one (IoU ≥ 0.6), and as many others."""
    image = sample.image()
    canvases, sizes, (placement,) = canvas_of(module).place([image])
    wanted = ~sample.ignore
    found = KeptProposals(proposals_of(module).search)(image)[: module.slots]
    objects, others = (torch.from_numpy(placement.boxes_to_canvas(b)) for b in (sample.boxes[wanted], found))
    overlap = box_iou(others, objects).max(1).values if len(objects) else others.new_zeros(len(others))
    near, far = (
        places[torch.from_numpy(rng.permutation(len(places))[:most])]
        for places in (torch.where(overlap >= NEAR_IOU)[0], torch.where(overlap < NEAR_IOU)[0])
    )
    boxes = torch.cat([objects, others[near], others[far]])
    x = normalised(module, torch.from_numpy(canvases), torch.from_numpy(sizes))
    fc7, pooled = _features(module, module.features(x), boxes)
    overlaps = box_iou(boxes, objects).numpy()
    labels = sample.labels[wanted].astype(np.int64)
    rows = np.arange(len(objects), len(objects) + len(near))
    nearest = overlaps[rows].argmax(1) if len(objects) else rows[:0]
    targets = module.heads.box_coder.encode([objects[nearest]], [boxes[rows]])[0] if len(rows) else boxes[:0]
    near_an_object = Near(pooled[rows].numpy(), labels[nearest], targets.numpy())
    return Regions(fc7.numpy(), overlaps, labels, len(near)), near_an_object


def _features(module: ProposalNet, feature: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """What SVMs and regressors read, of boxes [R, 4] of one image: float32 [R, …] each."""
    step = module.rows_at_once or max(len(boxes), 1)
    fc7, pooled = [], []
    for part in boxes.split(step):
        rows = module.pool(feature, part[None], torch.tensor([len(part)], dtype=torch.int32))[0]
        flat = module.cells(rows).flatten(1)
        pooled.append(flat)
        fc7.append(module.head.hidden(flat))
    if not fc7:
        empty = feature.new_zeros(0, module.head.bbox_pred.in_features)
        return feature.new_zeros(0, module.head.cls_score.in_features), empty
    return torch.cat(fc7), torch.cat(pooled)
