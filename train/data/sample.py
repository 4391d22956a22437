"""One annotated image, and what every detection data set offers."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from regionrt.runtime.image import read_image

from .errors import DataError

RLE = dict[str, Any]
"""A COCO run-length mask: {"size": [height, width], "counts": str}, compressed, column by column."""


@dataclass(frozen=True, eq=False)
class Sample:
    """An image with its objects. Pixels are decoded only by `image()`, so that a sample is cheap to hold and to pickle.

    image_id: the data set's own id, unique within it. name: what to show a person.
    boxes: float32 [n, 4], xyxy in pixels of the image (edges, not indices: the whole image is 0, 0, width, height).
    labels: int64 [n], indices into the data's `labels`, never 0. masks: n RLEs of the image's size, or None.
    ignore: bool [n]: neither to be learnt nor counted as a miss (VOC `difficult`, COCO `iscrowd`).
    areas: float32 [n] px², as COCO's area ranges count them (of the mask where there is one). size: (height, width).
    """

    image_id: int | str
    name: str
    boxes: np.ndarray
    labels: np.ndarray
    masks: list[RLE] | None
    ignore: np.ndarray
    areas: np.ndarray
    size: tuple[int, int]
    pixels: Path | np.ndarray

    def image(self) -> np.ndarray:
        """RGB uint8 [height, width, 3], decoded the way the runtime does it (EXIF orientation applied).

        Raises ImageError for a file that cannot be decoded, DataError where its size is not the annotated one.
        """
        if isinstance(self.pixels, np.ndarray):
            return self.pixels.copy()
        image = read_image(self.pixels)
        if image.shape[:2] != self.size:
            raise DataError(
                f"{self.pixels}: the annotation was made for {self.size[1]}×{self.size[0]} pixels, the decoded image "
                f"has {image.shape[1]}×{image.shape[0]} (rotated by EXIF, or resized?): annotate it again"
            )
        return image


class DetectionData(Protocol):
    """What training and evaluation use; VOC, COCO and `shapes` are all read as this."""

    @property
    def labels(self) -> tuple[str, ...]:
        """Class names, where the index is the label; the first is "__background__"."""

    @property
    def split(self) -> str: ...

    @property
    def has_masks(self) -> bool: ...

    @property
    def dropped(self) -> Counter[str]:
        """Objects left out or changed, by reason: "zero area", "outside the image", "clipped", "class not chosen"."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...
