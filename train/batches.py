"""From annotated samples to training batches: augmentation, the runtime's canvas, and an order that can be resumed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from regionrt.runtime.image import Canvas

from .data import DetectionData, Sample

Target = dict[str, Tensor]
Batch = tuple[Tensor, Tensor, list[Target]]
_MIN_SIDE_PX = 1.0  # of a target box on the canvas
_DRAWN_BYTES = 512 * 2**20  # of made images that are kept; per process that prepares batches
_PROPOSAL = -1  # in the place of a label
_MIN_VISIBLE = 0.3  # share of a box that a crop must leave of it


@dataclass(frozen=True)
class Augmentation:
    """What happens to a photo before it is placed on the canvas. `scale` (1, 1) and `colour` 0 mean: nothing.

    flip: "none", "horizontal", or "both" (vertical as well, for things without an up). scale: range of the zoom;
    below 1 the photo gets smaller on its canvas, above 1 a random part of it fills the canvas. colour: contrast and
    brightness change by up to this share. sizes: (height, width) of canvases that epochs are trained on in turn
    (multi-size training, He et al., arXiv:1406.4729, section 2.3); (): the net's own, always.
    """

    flip: str = "horizontal"
    scale: tuple[float, float] = (1.0, 1.0)
    colour: float = 0.0
    sizes: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        if self.flip not in ("none", "horizontal", "both"):
            raise ValueError(f'flip {self.flip!r}: give "none", "horizontal" or "both"')
        if not 0.1 <= self.scale[0] <= self.scale[1] <= 10:
            raise ValueError(f"scale {self.scale}: give the smallest and the largest zoom, between 0.1 and 10")
        if not 0 <= self.colour <= 1:
            raise ValueError(f"colour {self.colour}: give a share between 0 and 1")

    def canvas_in(self, epoch: int, canvas: Canvas) -> Canvas:
        """Of an epoch: the net's own, or one of `sizes` in turn, onto which photos are resized in proportion."""
        if not self.sizes:
            return canvas
        height, width = self.sizes[epoch % len(self.sizes)]
        ratio = min(height / canvas.height, width / canvas.width)
        return replace(_resizing(canvas, ratio), height=height, width=width)


class TrainingCanvases(Dataset):
    """Items by (epoch, index), so that what is random in an item depends on nothing but seed, epoch and index.

    An item is the canvas uint8 [H, W, 3], its valid size int32 [2], and the target: `boxes` float32 [n, 4] in canvas
    px, `labels` int64 [n], and with `masks` also `masks` uint8 [n, H, W]. Objects that are marked to be ignored are
    left out. propose: gives the boxes [m, 4] of a photo; they go the way of the objects, to `proposals` float32 [m, 4].
    """

    def __init__(
        self,
        data: DetectionData,
        canvas: Canvas,
        augmentation: Augmentation,
        seed: int,
        masks: bool = False,
        propose: Callable[[np.ndarray], np.ndarray] | None = None,
    ) -> None:
        self.data = data
        self.canvas = canvas
        self.augmentation = augmentation
        self.seed = seed
        self.masks = masks
        self.propose = propose
        self._drawn: dict[int, Sample] = {}
        self._drawn_bytes = 0

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Tensor, Target]:
        epoch, index = key
        rng = np.random.default_rng([self.seed, epoch, index])
        sample = self._sample(index)
        image = sample.image()
        keep = ~sample.ignore
        boxes, labels = sample.boxes[keep].astype(np.float32), sample.labels[keep]
        masks = None
        if self.propose is not None:
            proposals = self.propose(image)
            boxes = np.concatenate([boxes, proposals])
            labels = np.concatenate([labels, np.full(len(proposals), _PROPOSAL)])
        if self.masks:
            rles = [rle for rle, wanted in zip(sample.masks or [], keep, strict=True) if wanted]
            decoded = coco_mask.decode(rles).transpose(2, 0, 1) if rles else np.zeros((0, *image.shape[:2]))
            masks = decoded.astype(np.uint8)  # [n, h, w]
        image, boxes, masks = flipped(image, boxes, masks, self.augmentation.flip, rng)
        zoom = rng.uniform(*self.augmentation.scale)
        if zoom > 1:
            image, boxes, masks, kept = _cropped(image, boxes, masks, zoom, rng)
            labels = labels[kept]
        image = recoloured(image, self.augmentation.colour, rng)
        canvas = smaller(self.augmentation.canvas_in(epoch, self.canvas), zoom)
        images, sizes, (placement,) = canvas.place([image])
        boxes = placement.boxes_to_canvas(boxes)
        big = (boxes[:, 2:] - boxes[:, :2] > _MIN_SIDE_PX).all(axis=1)
        proposed = labels == _PROPOSAL
        real = big & ~proposed
        target = {"boxes": torch.from_numpy(boxes[real]), "labels": torch.from_numpy(labels[real].astype(np.int64))}
        if self.propose is not None:
            target["proposals"] = torch.from_numpy(boxes[big & proposed])
        if masks is not None:
            target["masks"] = torch.from_numpy(_masks_on_canvas(masks[big], images.shape[1:3], placement.resized))
        return torch.from_numpy(images[0]), torch.from_numpy(sizes[0]), target

    def _sample(self, index: int) -> Sample:
        """Samples that are drawn rather than read from files cost more than a step of a small net: they are kept."""
        if index in self._drawn:
            return self._drawn[index]
        sample = self.data[index]
        if isinstance(sample.pixels, np.ndarray) and self._drawn_bytes < _DRAWN_BYTES:
            self._drawn[index] = sample
            self._drawn_bytes += sample.pixels.nbytes
        return sample


class EpochSampler(Sampler):
    """(epoch, index) in an order that seed and epoch decide alone; in distributed training each process its share."""

    def __init__(self, length: int, seed: int, rank: int = 0, processes: int = 1) -> None:
        self.length = length
        self.seed = seed
        self.rank = rank
        self.processes = processes
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-self.length // self.processes)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.length)
        order = np.resize(order, len(self) * self.processes)  # every process gets as many
        return iter([(self.epoch, int(i)) for i in order[self.rank :: self.processes]])


def collate(items: Sequence[tuple[Tensor, Tensor, Target]]) -> Batch:
    """Canvases uint8 [N, H, W, 3], valid sizes int32 [N, 2], and the targets as they are."""
    images, sizes, targets = zip(*items, strict=True)
    return torch.stack(images), torch.stack(sizes), list(targets)


def flipped(
    image: np.ndarray, boxes: np.ndarray, masks: np.ndarray | None, flip: str, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    across, down = (bool(v) for v in rng.integers(0, 2, 2))
    for axis, wanted in ((1, across and flip != "none"), (0, down and flip == "both")):
        if wanted:
            image = np.flip(image, axis)
            masks = masks if masks is None else np.flip(masks, axis + 1)
            low, high = (0, 2) if axis == 1 else (1, 3)
            boxes = boxes.copy()
            boxes[:, [low, high]] = image.shape[axis] - boxes[:, [high, low]]
    return np.ascontiguousarray(image), boxes, masks


def _cropped(
    image: np.ndarray, boxes: np.ndarray, masks: np.ndarray | None, zoom: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, np.ndarray]:
    """A random window of 1/zoom of each side; boxes are clipped to it, and those that hardly show are dropped."""
    window = window_of(image.shape[:2], zoom, rng)
    (top, left), (height, width) = [s.start for s in window], [s.stop - s.start for s in window]
    moved = boxes - np.array([left, top, left, top], np.float32)
    clipped = np.clip(moved, 0, np.array([width, height, width, height], np.float32))
    kept = _areas(clipped) >= _MIN_VISIBLE * np.maximum(_areas(moved), 1e-6)
    cut = None if masks is None else masks[kept][:, window[0], window[1]]
    if cut is not None and len(cut):  # a mask may show outside of what the clipped box suggests: drop what is empty
        shown = cut.any(axis=(1, 2))
        kept[np.flatnonzero(kept)[~shown]] = False
        cut = cut[shown]
    return np.ascontiguousarray(image[window]), clipped[kept], cut, kept


def window_of(size: Sequence[int], zoom: float, rng: np.random.Generator) -> tuple[slice, slice]:
    """Rows and columns of a random window of 1/zoom of each side of an image of `size` (height, width)."""
    height, width = (max(round(side / zoom), 1) for side in size)
    top, left = (int(rng.integers(0, whole - part + 1)) for whole, part in zip(size, (height, width), strict=True))
    return slice(top, top + height), slice(left, left + width)


def _areas(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def recoloured(image: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    contrast, brightness = rng.uniform(-share, share, 2)
    if not share:
        return image
    table = (np.arange(256) - 128) * (1 + contrast) + 128 * (1 + brightness)
    return np.clip(np.rint(table), 0, 255).astype(np.uint8)[image]


def smaller(canvas: Canvas, zoom: float) -> Canvas:
    """The same canvas with a rule that leaves photos smaller by `zoom` < 1."""
    return canvas if zoom >= 1 else _resizing(canvas, zoom)


def _resizing(canvas: Canvas, ratio: float) -> Canvas:
    least, most = (max(round(side * ratio), 1) for side in (canvas.min_size, canvas.max_size))
    return replace(canvas, min_size=least, max_size=most)


def _masks_on_canvas(masks: np.ndarray, canvas: tuple[int, ...], resized: tuple[int, int]) -> np.ndarray:
    """[n, h, w] -> [n, H, W]: nearest pixel, top left."""
    placed = np.zeros((len(masks), *canvas), np.uint8)
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(np.int64) for new, old in zip(resized, masks.shape[1:], strict=True)
    )
    placed[:, : resized[0], : resized[1]] = masks[:, rows[:, None], columns]
    return placed
