"""`shapes` as label maps: every pixel is the background or the shape that is visible there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from pycocotools import mask as coco_mask

from .classes import BACKGROUND
from .semantic import SemanticSample, class_ids
from .shapes import NAMES, ShapesData, ShapesSpec


class ShapesMaps:
    """A split of `shapes` for segmentation; see `SemanticData`. The images are those of `ShapesData`."""

    has_masks = False

    def __init__(self, spec: str | ShapesSpec, split: str, labels: Sequence[str] | None = None) -> None:
        self._objects = ShapesData(spec, split)
        known = (BACKGROUND, *NAMES)
        self._ids = class_ids(known, labels, "shapes")
        self.split = split
        self.labels = self._ids.labels
        self.dropped: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._objects)

    def __getitem__(self, index: int) -> SemanticSample:
        sample = self._objects[index]
        ids = np.zeros(sample.size, np.uint8)
        for label, mask in zip(sample.labels, sample.masks or [], strict=True):
            ids[coco_mask.decode(mask).astype(bool)] = label
        pixels = sample.pixels
        return SemanticSample(sample.image_id, sample.name, sample.size, pixels, self._ids.table[ids])
