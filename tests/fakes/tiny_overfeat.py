"""A tiny OverFeat with random weights that finds much."""

from __future__ import annotations

import torch

from regionrt.train.models import build_model
from regionrt.train.models.overfeat import Overfeat

LABELS = ("__background__", "disc", "square")
TINY = {
    "size": [64, 96],
    "windows": [40, 60],
    "classifier": [12, 12],
    "regressor": [12, 12],
    "candidates": 40,
    "detections": 12,
    "window_score": 0.4,
    "merge": 0.4,
    "score": 0.2,
}


def tiny(**config) -> Overfeat:
    """A net in eval mode whose windows say different things."""
    torch.manual_seed(0)
    module = build_model("overfeat", TINY | config, LABELS)
    assert isinstance(module, Overfeat)
    with torch.no_grad():
        for layer in module.backbone.modules():
            if isinstance(layer, torch.nn.Conv2d):
                torch.nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        module.classifier.last.weight.normal_(std=2.0)
        module.regressor.last.weight.normal_(std=0.05)
        logits, _ = module(torch.randn(1, 3, *module.config.size))
        module.classifier.last.bias.sub_(logits.mean((0, 1)))  # no class prevails
    return module
