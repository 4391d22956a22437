"""Training items of segmentation and localisation: the canvas, and a label map or the main object on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from regionrt.runtime.image import Canvas

from .batches import Augmentation, TrainingCanvases, flipped, recoloured, smaller, window_of
from .data.sample import DetectionData
from .data.semantic import VOID, SemanticData

Item = tuple[Tensor, Tensor, Tensor]
_KEPT_BYTES = 512 * 2**20  # of decoded images; per process that prepares batches


class SemanticCanvases(Dataset):
    """Items by (epoch, index): canvas uint8 [H, W, 3], its valid size int32 [2], and its label map uint8 [H, W].

    What is random follows from seed, epoch and index alone. Outside the valid part the map is `VOID`.
    """

    def __init__(self, data: SemanticData, canvas: Canvas, augmentation: Augmentation, seed: int) -> None:
        self.data = data
        self.canvas = canvas
        self.augmentation = augmentation
        self.seed = seed
        self._kept: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self._kept_bytes = 0

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, key: tuple[int, int]) -> Item:
        epoch, index = key
        rng = np.random.default_rng([self.seed, epoch, index])
        image, labels = self._decoded(index)
        image, _, masks = flipped(image, np.zeros((0, 4), np.float32), labels[None], self.augmentation.flip, rng)
        assert masks is not None
        labels = masks[0]
        zoom = rng.uniform(*self.augmentation.scale)
        if zoom > 1:
            rows, columns = window_of(image.shape[:2], zoom, rng)
            image, labels = np.ascontiguousarray(image[rows, columns]), labels[rows, columns]
        image = recoloured(image, self.augmentation.colour, rng)
        canvas = self.augmentation.canvas_in(epoch, self.canvas)
        images, sizes, (placement,) = enlarging(smaller(canvas, zoom), zoom).place([image])
        on_canvas = placement.map_to_canvas(labels, images.shape[1:3], VOID)
        return torch.from_numpy(images[0]), torch.from_numpy(sizes[0]), torch.from_numpy(on_canvas)

    def _decoded(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Image and label map; kept, as far as memory allows, because decoding costs as much as a small net's step."""
        if index not in self._kept:
            sample = self.data[index]
            pair = sample.image(), sample.label_map()
            size = pair[0].nbytes + pair[1].nbytes
            if self._kept_bytes + size > _KEPT_BYTES:
                return pair
            self._kept[index] = pair
            self._kept_bytes += size
        return self._kept[index]


class MainObjects(Dataset):
    """Items by (epoch, index): canvas, its valid size, and float32 [5], label and box (xyxy, canvas px) of the object.

    Of several objects it is the one that is largest on the canvas; label 0: none shows.
    """

    def __init__(self, data: DetectionData, canvas: Canvas, augmentation: Augmentation, seed: int) -> None:
        self.items = TrainingCanvases(data, canvas, augmentation, seed, masks=False)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, key: tuple[int, int]) -> Item:
        image, size, target = self.items[key]
        boxes, labels = target["boxes"], target["labels"]
        found = torch.zeros(5)
        if len(boxes):
            best = int((boxes[:, 2:] - boxes[:, :2]).prod(1).argmax())
            found[0], found[1:] = float(labels[best]), boxes[best]
        return image, size, found


def collate_tensors(items: Sequence[Item]) -> tuple[Tensor, ...]:
    """Canvases uint8 [N, H, W, 3], valid sizes int32 [N, 2], and the targets, stacked."""
    return tuple(torch.stack(values) for values in zip(*items, strict=True))


def enlarging(canvas: Canvas, zoom: float) -> Canvas:
    """A part of a photo that a zoom cut out fills the canvas as the photo did, also where photos are not enlarged."""
    return replace(canvas, enlarge=True) if zoom > 1 else canvas
