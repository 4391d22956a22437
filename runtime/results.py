"""What a detector found in one photo: boxes, scores, labels and lazily pasted masks, and their forms for others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .masks import Crop, full_mask, paste_crop, paste_rles

_NO_MASKS = "these detections have no masks: they come from a model for boxes only"


@dataclass(frozen=True, eq=False)
class Detections:
    """D objects, best score first.

    Attributes:
        boxes_xyxy: float32 [D, 4], pixels of the original photo, inside it.
        scores: float32 [D], 0…1.
        labels: int32 [D], the model's own indices (0 is the background and never occurs).
        image_size: (height, width) of the original photo.
        names: the model's labels; `names[label]` is the name, `names[0]` the background.
        roi_masks: float32 [D, M, M], probabilities inside the box, or None from a model without masks. They are pasted
            when asked for: 100 dense masks of a 12-megapixel photo would be 1.2 GB.
    """

    boxes_xyxy: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    image_size: tuple[int, int]
    names: tuple[str, ...]
    roi_masks: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, which: Any) -> Detections:
        """The detections chosen by a slice, a boolean mask or an array of indices."""
        if isinstance(which, (int, np.integer)):
            which = [int(which)]
        masks = None if self.roi_masks is None else self.roi_masks[which]
        return Detections(
            self.boxes_xyxy[which], self.scores[which], self.labels[which], self.image_size, self.names, masks
        )

    def above(self, score: float) -> Detections:
        """Those whose score is greater than `score`."""
        return self[self.scores > score]

    def name(self, index: int) -> str:
        """The name of detection `index`'s label."""
        return self.names[int(self.labels[index])]

    def crop(self, index: int) -> Crop:
        """The mask of one detection, only where it can hold pixels: y, x, bool [h, w]. ValueError without masks."""
        if self.roi_masks is None:
            raise ValueError(_NO_MASKS)
        return paste_crop(self.roi_masks[index], self.boxes_xyxy[index], self.image_size)

    def crops(self) -> Iterator[Crop]:
        """Each mask as a `Crop`, pasted when its turn comes."""
        return (self.crop(index) for index in range(len(self)))

    def mask(self, index: int) -> np.ndarray:
        """The mask of one detection in the photo: bool [H, W]."""
        return full_mask(self.crop(index), self.image_size)

    def masks(self) -> Iterator[np.ndarray]:
        """Each mask as bool [H, W], one at a time."""
        return (self.mask(index) for index in range(len(self)))

    def rle(self, index: int) -> dict[str, Any]:
        """The mask of one detection as COCO's compressed RLE {"size": [H, W], "counts": str}."""
        return self[index].rles()[0]

    def rles(self) -> list[dict[str, Any]]:
        """Each mask as COCO's compressed RLE, all at once, without the pixels in between. ValueError without masks."""
        if self.roi_masks is None:
            raise ValueError(_NO_MASKS)
        return paste_rles(self.roi_masks, self.boxes_xyxy, self.image_size)

    def to_json(self) -> dict[str, Any]:
        """{"image_size": [H, W], "detections": [{"label", "name", "score", "box_xyxy", "mask" (RLE, with masks)}]}."""
        entries: list[dict[str, Any]] = [
            {
                "label": int(self.labels[index]),
                "name": self.name(index),
                "score": float(self.scores[index]),
                "box_xyxy": [float(value) for value in self.boxes_xyxy[index]],
            }
            for index in range(len(self))
        ]
        if self.roi_masks is not None:
            for entry, rle in zip(entries, self.rles(), strict=True):
                entry["mask"] = rle
        return {"image_size": list(self.image_size), "detections": entries}

    def to_coco(
        self, image_id: int | str, category_ids: Sequence[int] | Mapping[int, int] | None = None
    ) -> list[dict[str, Any]]:
        """COCO results: {"image_id", "category_id", "bbox" (x, y, width, height), "score", "segmentation" with masks}.

        `category_ids[label]` is the data set's id of the model's label; None takes the label itself.
        """
        results = []
        for index in range(len(self)):
            label = int(self.labels[index])
            x0, y0, x1, y1 = (float(value) for value in self.boxes_xyxy[index])
            result: dict[str, Any] = {
                "image_id": image_id,
                "category_id": label if category_ids is None else int(category_ids[label]),
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "score": float(self.scores[index]),
            }
            results.append(result)
        if self.roi_masks is not None:
            for result, rle in zip(results, self.rles(), strict=True):
                result["segmentation"] = rle
        return results

    def draw(self, image: np.ndarray, score: float = 0.5) -> np.ndarray:
        """The photo (RGB uint8 [H, W, 3]) with the detections above `score` drawn on it, as a new array."""
        from .drawing import draw_detections  # Pillow's font machinery, only for who draws

        return draw_detections(image, self.above(score))
