"""A net run over photos one by one, with an eye on the inputs and outputs of some of its layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from regionrt.train.requests import request_for
from regionrt.train.tasks import task_of

from ..errors import ExportError

LEAST_PHOTOS = 5
_HELD_OUT = 5  # every fifth photo


@dataclass(frozen=True)
class Photo:
    """A photo that is decoded only when its turn comes: RGB uint8 [H, W, 3]."""

    name: str
    pixels: Callable[[], np.ndarray]


Watch = Callable[[str, nn.Module, Tensor, Tensor], None]
"""Called with a layer's name, the layer, its input and its output."""


def spread(photos: Sequence[Any], wanted: int) -> list[Any]:
    """As many as wanted (or all), evenly over the sequence."""
    count = min(wanted, len(photos))
    return [photos[i * len(photos) // count] for i in range(count)]


def calibration_and_held_out(photos: Sequence[Photo]) -> tuple[list[Photo], list[Photo]]:
    """Four of five photos to compute from, every fifth to measure on. ExportError where there are too few."""
    if len(photos) < LEAST_PHOTOS:
        raise ExportError(
            f"{len(photos)} images to calibrate on: give {LEAST_PHOTOS} or more, of which every fifth is held out"
        )
    held_out = list(photos[_HELD_OUT - 1 :: _HELD_OUT])
    return [photo for i, photo in enumerate(photos) if i % _HELD_OUT != _HELD_OUT - 1], held_out


@torch.no_grad()
def watch(
    module: nn.Module,
    layers: Mapping[str, nn.Module],
    photos: Sequence[Photo],
    seen: Watch,
    progress: Callable[[str, float], None] = lambda text, share: None,
) -> None:
    """Run the net on each photo, on its canvas, and call `seen` whenever one of `layers` has computed.

    Inputs and outputs are the layers' own ([N, …, in], or [N, C, H, W] of a convolution), of one photo at a time.
    ExportError names photo and layer where a value is NaN or infinite, and refuses images that show nothing at all.
    """
    task = task_of(module)
    canvas, proposals = task.canvas_of(module), task.proposals_of(module)
    # `eager` appends a row of zeros to the RoIs' features, to learn what padding gives: no RoI of any photo.
    heads = getattr(module, "roi_heads", None)
    behind_rois = {id(x) for part in ("box_head", "box_predictor") for x in getattr(heads, part, nn.Module()).modules()}
    photo = photos[0]
    shows_something = False

    def hook_for(name: str) -> Callable[[nn.Module, tuple[Tensor], Tensor], None]:
        def hook(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
            x, y = (v[:-1] for v in (inputs[0], output)) if id(layer) in behind_rois else (inputs[0], output)
            if not (x.isfinite().all() and y.isfinite().all()):
                raise ExportError(f"{photo.name}: layer {name} computes NaN or infinite values: leave the image out")
            if y.numel():
                seen(name, layer, x, y)

        return hook

    hooks = [layer.register_forward_hook(hook_for(name)) for name, layer in layers.items()]
    try:
        for i, photo in enumerate(photos):
            progress(photo.name, i / len(photos))
            pixels = photo.pixels()
            shows_something = shows_something or bool((pixels != pixels[0, 0]).any())
            request = request_for(canvas, proposals, [pixels])
            task.eager(module, *map(torch.from_numpy, request.values()), stages=False)
    finally:
        for hook in hooks:
            hook.remove()
    if not shows_something:
        raise ExportError(f"{len(photos)} images of one colour each: give photos of what the net is to see")


def as_rows(layer: nn.Module, values: Tensor) -> Tensor:
    """[N, …, features] of a fully connected layer, or [N, C, H, W] of a convolution, as [rows, features]."""
    if isinstance(layer, nn.Conv2d):
        values = values.movedim(1, -1)
    return values.reshape(-1, values.shape[-1])
