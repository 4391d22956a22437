"""Segmentation on the canvas: what every dense net is, its loss, and the eager reference that artefacts are judged by.

Inputs are the canvas and the size of its valid part, as in every artefact; so is what comes out: labels of the whole
canvas, of which the runtime takes the valid part.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from regionrt.runtime.image import Canvas

from .dense_config import CanvasConfig
from .errors import ModelError
from .memory_layout import takes_channels_first
from .region import check_size, normalise

VOID = 255


class DenseNet(nn.Module):
    """A net with a class for every pixel: normalised images [N, 3, H, W] -> logits [N, K, H, W].

    `backbone` holds the layers that --init brings weights for, `head` the others. H and W are multiples of `stride`.
    """

    task = "segmentation"

    def __init__(self, config: CanvasConfig, labels: Sequence[str], stride: int) -> None:
        super().__init__()
        check_size(config.size, stride)
        self.config = config
        self.num_classes = len(labels)
        self.stride = stride
        self.least_px = stride  # of the canvas's sides

    def forward(self, x: Tensor) -> Tensor:
        raise NotImplementedError


def canvas_of(module: nn.Module, size: Sequence[int] | None = None, dynamic: bool = False) -> Canvas:
    """The canvas for a module's own resize rule; `size` (height, width) in px if not the module's. ModelError."""
    config: CanvasConfig = module.config
    own = size is None
    if getattr(module, "fixed", False) and (dynamic or (not own and tuple(size or ()) != tuple(config.size))):
        raise ModelError(
            f"this net was made for {config.size[0]}x{config.size[1]} px and takes no other size: train it for that one"
        )
    height, width = check_size(config.size if size is None else size, module.stride)
    if min(height, width) < module.least_px:
        raise ModelError(f"size {height}x{width}: this net needs at least {module.least_px} px each way")
    return Canvas(
        height,
        width,
        min_size=(config.min_size if own else None) or min(height, width),
        max_size=(config.max_size if own else None) or max(height, width),
        multiple=module.stride,
        dynamic=dynamic,
        enlarge=config.enlarge,
    )


def normalised(module: nn.Module, images: Tensor, image_sizes: Tensor) -> Tensor:
    """Canvas uint8 [N, H, W, 3] -> what the net takes, [N, 3, H, W] of the weights' type."""
    weight = next(module.parameters())
    config: CanvasConfig = module.config
    return normalise(
        images.to(weight.device), image_sizes, config.mean, config.std, weight.dtype,
        channels_first=takes_channels_first(module),
    )  # fmt: skip


def losses(module: nn.Module, images: Tensor, image_sizes: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """Cross-entropy of the pixels that have a class. targets: uint8 [N, H, W], `VOID` where there is none.

    `module.class_weights` [K], if it has any, weighs classes; a batch of nothing but void costs nothing.
    """
    logits = module(normalised(module, images, image_sizes)).float()
    wanted = targets.to(logits.device).long()
    weights = getattr(module, "class_weights", None)
    total = F.cross_entropy(logits, wanted, weight=weights, ignore_index=VOID, reduction="sum")
    known = wanted != VOID
    mass = known.sum() if weights is None else weights[wanted[known]].sum()
    return {"loss_pixels": total / mass.clamp(min=1e-6)}


@torch.no_grad()
def eager(
    module: nn.Module, images: Tensor, image_sizes: Tensor, *, stages: bool = True, **_: object
) -> dict[str, Tensor]:
    """`labels` uint8 [N, H, W], the first of equally likely ones; with `stages` every value on the way.

    Those are `logits` and `probabilities` float32 [N, K, H, W], of the k-th pooling that keeps places `pool_input.k`,
    `pooled.k`, `places.k`, and of the k-th unpooling `unpool_input.k`, `unpooled.k`. images uint8 [N, H, W, 3],
    image_sizes int [N, 2]; the module in eval mode.
    """
    if module.training:
        raise ValueError("eager needs module.eval()")
    x = normalised(module, images, image_sizes)
    recorder = _Poolings()
    with recorder if stages else nullcontext():
        logits = module(x).float()
    values = {"labels": logits.argmax(1).to(torch.uint8)}
    if stages:
        values |= recorder.values | {"logits": logits, "probabilities": logits.softmax(1)}
    return values


class _Poolings(TorchDispatchMode):
    """Keeps what goes into our poolings and unpoolings and what comes out."""

    def __init__(self) -> None:
        super().__init__()
        self.values: dict[str, Tensor] = {}
        self._counts = {"pool": 0, "unpool": 0}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if func is torch.ops.regionrt.max_pool_argmax.default:
            self._keep("pool", args[0], {"pooled": found[0], "places": found[1]})
        elif func is torch.ops.regionrt.max_unpool.default:
            self._keep("unpool", args[0], {"unpooled": found})
        return found

    def _keep(self, kind: str, given: Tensor, found: Mapping[str, Tensor]) -> None:
        number = self._counts[kind]
        self._counts[kind] += 1
        self.values |= {f"{name}.{number}": value for name, value in {f"{kind}_input": given, **found}.items()}
