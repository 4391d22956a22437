"""What a segmentation net says of a photo: a class for every pixel, and its forms for others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .errors import BackendError
from .image import Placement
from .masks import rle_encode
from .predictor import Predictor, Prepared


@dataclass(frozen=True, eq=False)
class SemanticMap:
    """A label for every pixel of one photo.

    Attributes:
        labels: uint8 [H, W], the photo's size; `names[label]` is the class.
        names: the model's labels.
        probabilities: float32 [K, h, w] of the valid part of the canvas, from bundles that were exported with them.
    """

    labels: np.ndarray
    names: tuple[str, ...]
    probabilities: np.ndarray | None = None

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of the photo."""
        return self.labels.shape[0], self.labels.shape[1]

    def __len__(self) -> int:
        """How many classes occur."""
        return len(np.unique(self.labels))

    def above(self, score: float) -> SemanticMap:
        """Itself: every pixel has its likeliest class, whatever its score."""
        return self

    def mask(self, label: int) -> np.ndarray:
        """bool [H, W]: where a class is."""
        return self.labels == label

    def shares(self) -> dict[str, float]:
        """The share of the photo that each class covers, of those that occur, the largest first."""
        counts = np.bincount(self.labels.ravel(), minlength=len(self.names))
        return {
            self.names[k]: float(counts[k] / self.labels.size) for k in np.argsort(-counts, kind="stable") if counts[k]
        }

    def to_json(self) -> dict[str, Any]:
        """{"image_size": [H, W], "classes": [{"label", "name", "pixels", "rle" (COCO's, of the class's pixels)}]}."""
        classes = []
        for label in np.unique(self.labels):
            mask = self.mask(int(label))
            entry = {"label": int(label), "name": self.names[label], "pixels": int(mask.sum()), "rle": rle_encode(mask)}
            classes.append(entry)
        return {"image_size": list(self.image_size), "classes": classes}

    def to_coco(self, image_id: int | str) -> list[dict[str, Any]]:
        """COCO stuff results, one for each class there: {"image_id", "category_id" (the label), "segmentation"}."""
        return [
            {"image_id": image_id, "category_id": int(k), "segmentation": rle_encode(self.mask(int(k)))}
            for k in np.unique(self.labels)
        ]

    def palette_png(self) -> bytes:
        """A PNG of palette indices: the labels themselves, in the colours of `draw`."""
        from .drawing import palette_png

        return palette_png(self.labels)

    def draw(self, image: np.ndarray, score: float = 0.5) -> np.ndarray:
        """The photo (RGB uint8 [H, W, 3]) with the classes laid over it and a legend, as a new array."""
        from .drawing import draw_map

        return draw_map(image, self)


class SegmentationPredictor(Predictor):
    """Preprocess → net → label maps in the photos' own pixels; otherwise a `Predictor`."""

    def finish(self, prepared: Prepared, outputs: Mapping[str, np.ndarray]) -> list[SemanticMap]:  # type: ignore[override]
        """Third step: the valid part of each canvas, at the photo's size (nearest)."""
        shape = prepared.images.shape[:3]
        labels = outputs.get("labels")
        if labels is None or labels.shape != shape or labels.dtype != np.uint8:
            found = "none" if labels is None else f"{labels.dtype} {list(labels.shape)}"
            raise BackendError(f"{self.runner.name}: expected labels uint8 {list(shape)}, found {found}")
        probabilities = outputs.get("probabilities")
        wanted = (shape[0], len(self.labels), *shape[1:])
        if probabilities is not None and probabilities.shape != wanted:
            raise BackendError(
                f"{self.runner.name}: expected probabilities {list(wanted)}, found {list(probabilities.shape)}"
            )
        return [
            self._map(placement, labels[n], None if probabilities is None else probabilities[n])
            for n, placement in enumerate(prepared.placements)
        ]

    def _map(self, placement: Placement, labels: np.ndarray, probabilities: np.ndarray | None) -> SemanticMap:
        height, width = placement.resized
        valid = labels[:height, :width]
        if valid.max() >= len(self.labels):
            raise BackendError(
                f"{self.runner.name}: label {valid.max()}, expected 0…{len(self.labels) - 1}: "
                "the artefact does not belong to these labels"
            )
        part = None if probabilities is None else probabilities[:, :height, :width].astype(np.float32)
        return SemanticMap(placement.map_to_original(labels), self.labels, part)


def predictor_class(task: str) -> type[Predictor]:
    """What turns the outputs of nets for a task into results."""
    return SegmentationPredictor if task == "segmentation" else Predictor
