"""Random weights that behave like a trained detector's, for comparisons of speed where no trained ones are at hand.

Default initialisation lets residual sums grow until rounding decides what is found, and gives scores that tie. Here the
last norm of each residual block is damped, the statistics of BatchNorm are those of real photos, and the heads are
scaled until objectness, boxes and scores are spread; some 30 to 100 detections per photo result.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

DAMPING = 0.2
OBJECTNESS, RPN_DELTAS, LOGITS, BOX_DELTAS = 1.5, 0.2, 1.5, 0.5
"""Standard deviations that the heads' outputs get."""
PAIRS = 150
"""(RoI, class) pairs above the score threshold per photo, before NMS."""


@torch.no_grad()
def calibrate(module: nn.Module, photos: Sequence[Tensor], pairs: int = PAIRS) -> None:
    """Changes a torchvision detector in eval mode in place; photos: float [3, H, W], 0…1, as it will see them."""
    for block in module.modules():
        if (last := _last_norm(block)) is not None:
            nn.init.constant_(last.weight, DAMPING)
    images = module.transform(list(photos))[0].tensors
    _set_statistics(module, images)
    features = module.backbone(images)
    head = module.rpn.head
    objectness, deltas = head([features] if isinstance(features, Tensor) else list(features.values()))
    head.cls_logits.weight.mul_(OBJECTNESS / _spread(objectness))
    head.bbox_pred.weight.mul_(RPN_DELTAS / _spread(deltas))
    _spread_scores(module, photos, pairs)


def freeze_norms(module: nn.Module) -> nn.Module:
    """BatchNorm2d becomes FrozenBatchNorm2d, which torchvision's builders have when they load trained weights."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            frozen = FrozenBatchNorm2d(child.num_features, eps=child.eps)
            frozen.load_state_dict({k: v for k, v in child.state_dict().items() if k != "num_batches_tracked"})
            setattr(module, name, frozen)
        else:
            freeze_norms(child)
    return module


def _last_norm(block: nn.Module) -> nn.Module | None:
    """The norm in front of a residual sum: ResNet's bottleneck, MobileNet's inverted residual."""
    if hasattr(block, "bn3"):
        return block.bn3 if isinstance(block.bn3, nn.BatchNorm2d) else None
    if getattr(block, "use_res_connect", False):
        norms = [layer for layer in block.modules() if isinstance(layer, nn.BatchNorm2d)]
        return norms[-1] if norms else None
    return None


def _set_statistics(module: nn.Module, images: Tensor) -> None:
    norms = [layer for layer in module.backbone.modules() if isinstance(layer, nn.BatchNorm2d)]
    momenta = [layer.momentum for layer in norms]
    for layer in norms:
        layer.reset_running_stats()
        layer.momentum = None  # the mean over all batches, which is one here
        layer.train()
    module.backbone(images)
    for layer, momentum in zip(norms, momenta, strict=True):
        layer.momentum = momentum
        layer.eval()


def _spread_scores(module: nn.Module, photos: Sequence[Tensor], pairs: int) -> None:
    heads, seen = module.roi_heads, []
    hook = heads.box_predictor.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    module(list(photos))
    hook.remove()
    rows = torch.cat(seen).flatten(1)  # [RoIs of all photos, representation]
    score, box = heads.box_predictor.cls_score, heads.box_predictor.bbox_pred
    spread_heads(score, rows, box, rows, least_score=heads.score_thresh, pairs=pairs * len(photos))


@torch.no_grad()
def spread_heads(
    score: nn.Linear, scored: Tensor, box: nn.Linear, boxed: Tensor, *, least_score: float, pairs: int
) -> None:
    """Logits around zero, of one spread, and as much more for the background as lets `pairs` (row, class) through.

    scored, boxed: what the layers for classes and for boxes read, a row for each RoI.
    """
    score.bias.copy_(-(score.weight @ scored.mean(0)))
    factor = LOGITS / score(scored).std()
    score.weight.mul_(factor)
    score.bias.mul_(factor)
    box.bias.zero_()
    box.weight.mul_(BOX_DELTAS / box(boxed).std())
    logits = score(scored)
    low, high = -20.0, 40.0
    for _ in range(20):  # fewer pass, the more the background gets
        middle = (low + high) / 2
        shifted = logits.clone()
        shifted[:, 0] += middle
        passing = int((shifted.softmax(-1)[:, 1:] > least_score).sum())
        low, high = (middle, high) if passing > pairs else (low, middle)
    score.bias[0] += high


def _spread(values: Sequence[Tensor]) -> Tensor:
    return torch.cat([v.flatten() for v in values]).std()
