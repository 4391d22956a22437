"""OverFeat on photos as a classifier: what it says of one, its class map as a picture, and how often it is right."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from .checkpoint import Checkpoint, CheckpointError, module_from_checkpoint
from .data.sample import DetectionData
from .localisation_metrics import main_object
from .models.dense import normalised
from .models.overfeat import Overfeat
from .models.overfeat_classes import class_map, dense_probabilities, ten_view_probabilities
from .models.overfeat_eager import canvas_of

_HEAT = np.array([255, 40, 0], np.float32)
_STRENGTH = 0.8  # of the colour where the class is likeliest


@dataclass(frozen=True, eq=False)
class Classes:
    """Of one photo: float32 [K] each, of the labels without the background.

    dense: by all windows; views: by ten (arXiv:1312.6229, section 3.3). Neither sums to one: the rest is background,
    and `dense` takes the likeliest window of each class.
    """

    dense: np.ndarray
    views: np.ndarray


class Classifier:
    """A checkpoint of OverFeat. CheckpointError for another model's."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        if checkpoint.model != "overfeat":
            raise CheckpointError(f"expected a checkpoint of overfeat, found one of {checkpoint.model}")
        module = module_from_checkpoint(checkpoint)
        assert isinstance(module, Overfeat)
        self.module = module
        self.labels = checkpoint.labels

    def __call__(self, image: np.ndarray) -> Classes:
        """RGB uint8 [H, W, 3]."""
        x, sizes, _ = self._placed(image)
        dense, views = (of(self.module, x, sizes)[0, 1:] for of in (dense_probabilities, ten_view_probabilities))
        return Classes(dense.numpy(), views.numpy())

    def picture(self, image: np.ndarray, label: int) -> np.ndarray:
        """The photo in grey, red where the class `label` (1..K) is likely, most where it is likeliest: [H, W, 3]."""
        x, sizes, (height, width) = self._placed(image)
        found = class_map(self.module, x, sizes)
        valid = found[:, label : label + 1, : int(sizes[0, 0]), : int(sizes[0, 1])]
        shares = torch.nn.functional.interpolate(valid, (height, width), mode="bilinear", align_corners=False)
        weights = _STRENGTH * (shares[0, 0] / shares.max().clamp(min=1e-9)).numpy()[..., None]
        grey = image.mean(2, keepdims=True)
        return np.rint(grey * (1 - weights) + _HEAT * weights).astype(np.uint8)

    def _placed(self, image: np.ndarray) -> tuple[torch.Tensor, torch.Tensor, Sequence[int]]:
        canvases, sizes, (placement,) = canvas_of(self.module).place([image])
        image_sizes = torch.from_numpy(sizes)
        return normalised(self.module, torch.from_numpy(canvases), image_sizes), image_sizes, placement.original


@dataclass(frozen=True)
class Accuracy:
    """Shares from 0 to 1 of the images with an object whose main object's class is the likeliest one."""

    images: int
    dense: float
    views: float


def accuracy(
    classifier: Classifier,
    data: DetectionData,
    *,
    max_images: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Accuracy:
    """How often both ways name the class of the largest object; images without one are not judged."""
    total = len(data) if max_images is None else min(max_images, len(data))
    right: list[tuple[bool, bool]] = []
    for index in range(total):
        sample = data[index]
        wanted = main_object(sample)
        if wanted is not None:
            found, label = classifier(sample.image()), int(sample.labels[wanted]) - 1
            right.append((int(found.dense.argmax()) == label, int(found.views.argmax()) == label))
        progress(index + 1, total)
    dense, views = np.mean(right, 0) if right else (float("nan"), float("nan"))
    return Accuracy(len(right), float(dense), float(views))
