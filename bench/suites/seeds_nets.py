"""R-CNN, SPPnet and Fast R-CNN on one backbone, with random weights whose activations keep their spread."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from regionrt.train.models import build_model
from regionrt.train.models.dense import normalised
from regionrt.train.models.proposal_net import ProposalNet

from .random_weights import PAIRS, spread_heads
from .seeds_options import CLASSES, CROP, CROPS, CaseOptions

LABELS = ("__background__", *(f"class {i}" for i in range(1, CLASSES)))
_ROWS = 32  # of one photo, that weights are calibrated on


def seed_net(key: str, options: CaseOptions, photo: np.ndarray, proposals: np.ndarray) -> ProposalNet:
    """The net `key` of `NETS` in eval mode, calibrated on one photo [H, W, 3] and its proposals [P, 4].

    With SVD fc6 and fc7 are pairs of the ranks of `options`; how long they take does not depend on their weights,
    which are random ones too.
    """
    name, svd = key.removesuffix("_svd"), key.endswith("_svd")
    config = {
        "backbone": options.backbone,
        "representation": options.representation,
        "proposals": options.proposals,
        "size": options.canvas,
        "min_size": min(options.size),
        "max_size": max(options.size),
        "rois_per_image": options.regions,
        **({"crop": options.crop or CROPS.get(options.backbone, CROP)} if name == "rcnn" else {}),
        **({"svd": options.ranks} if svd else {}),
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        module = build_model(name, config, LABELS)
    assert isinstance(module, ProposalNet)
    _calibrate(module, *placed(module, photo), torch.from_numpy(proposals[:_ROWS]))
    return module


def placed(module: nn.Module, photo: np.ndarray) -> tuple[Tensor, Tensor]:
    """uint8 [1, H, W, 3] with the photo at the top left of the module's canvas, and its size [1, 2]."""
    canvas = np.zeros((1, *module.config.size, 3), np.uint8)
    canvas[0, : photo.shape[0], : photo.shape[1]] = photo
    return torch.from_numpy(canvas), torch.tensor([photo.shape[:2]], dtype=torch.int32)


@torch.no_grad()
def _calibrate(module: ProposalNet, images: Tensor, sizes: Tensor, rois: Tensor) -> None:
    """Each layer's outputs get a standard deviation of 1, in one pass; the last ones' what makes some detections."""
    head = module.head
    pooled: list[Tensor] = []
    with unit_spread(module, [head.cls_score, head.bbox_pred]), _seen(head, pooled):
        feature = module.features(normalised(module, images, sizes))
        module.classify(module.pool(feature, rois[None], torch.tensor([len(rois)], dtype=torch.int32))[0])
    rows = pooled[0].flatten(1)
    hidden = head.hidden(rows)  # type: ignore[operator]
    boxed = rows if head.of_pooled else hidden
    pairs = max(1, PAIRS * len(rows) // module.slots)
    spread_heads(head.cls_score, hidden, head.bbox_pred, boxed, least_score=module.config.score, pairs=pairs)  # type: ignore[arg-type]


@contextmanager
def unit_spread(module: nn.Module, last: Sequence[nn.Module]) -> Iterator[None]:
    """Within it, layers other than the `last` ones scale their weights as they run, to outputs with a spread of 1."""

    def scale(layer: nn.Module, _: tuple[Tensor, ...], out: Tensor) -> Tensor:
        spread = out.std().clamp_min(1e-12)
        layer.weight.div_(spread)
        if layer.bias is not None:
            layer.bias.div_(spread)
        return out / spread

    layers = [layer for layer in module.modules() if isinstance(layer, (nn.Conv2d, nn.Linear)) and layer not in last]
    hooks = [layer.register_forward_hook(scale) for layer in layers]  # type: ignore[arg-type]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _seen(layer: nn.Module, inputs: list[Tensor]) -> Iterator[None]:
    """Collects what the layer is given."""
    hook = layer.register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
    try:
        yield
    finally:
        hook.remove()
