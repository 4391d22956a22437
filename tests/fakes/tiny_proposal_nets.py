"""Tiny nets on proposals with random weights that find much, and proposals that need no search."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from regionrt.runtime.selective_search import SelectiveSearch
from regionrt.train.models import build_model

LABELS = ("__background__", "disc", "square")
TINY = {"size": [64, 96], "channels": 8, "representation": 24, "proposals": 40, "detections": 12, "score": 0.1}


def tiny(name: str, **config):
    """A net in eval mode whose scores are far from ties."""
    torch.manual_seed(0)
    module = build_model(name, TINY | config, LABELS)
    with torch.no_grad():
        for layer in module.head.modules():
            if isinstance(layer, torch.nn.Linear):
                layer.weight.normal_(std=(2 / layer.in_features) ** 0.5)
        module.head.cls_score.weight.mul_(3)
        module.head.bbox_pred.weight.mul_(0.5)
    return module


def boxes_in(image: np.ndarray, count: int = 60) -> np.ndarray:
    """Boxes of all sizes anywhere in a photo: float32 [count, 4]; the same for every photo of a size."""
    height, width = image.shape[:2]
    ends = np.random.default_rng(3).random((count, 2, 2))
    return (np.concatenate([ends.min(1), ends.max(1)], 1) * [width, height, width, height]).astype(np.float32)


def instead_of_searching(patch: pytest.MonkeyPatch) -> None:
    """From now on selective search gives `boxes_in`: where OpenCV is not installed too, and at once."""
    patch.setattr(SelectiveSearch, "__call__", lambda self, image: boxes_in(image))
    patch.setattr("regionrt.train.data.proposals.usable_cores", lambda: 1)  # other processes would search
