"""OverFeat: all windows of six scales by convolutions over the whole photo, against the net run on each window."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from regionrt.bench.forms import TorchForm
from regionrt.train.models import build_model
from regionrt.train.models.dense import normalised
from regionrt.train.models.overfeat import Overfeat
from regionrt.train.models.valid_nets import VALID_NETS

from .child import Tell
from .random_weights import PAIRS, spread_heads
from .seeds_compare import compare
from .seeds_measure import Candidate, fastest, in_batches
from .seeds_nets import LABELS, placed, unit_spread
from .seeds_options import CaseOptions
from .seeds_schema import Comparison, SeedRow

USUAL = "fast"
"""The net where the backbone of `options` has no form without padding: the paper's fast one."""
SCALES = (245, 281, 317, 389, 425, 461)
"""Shorter side in px that the paper resizes photos to, for windows of `WINDOW` px (arXiv:1312.6229, table 5)."""
WINDOW = 221
ASKED = 5.0


def measure_overfeat(
    photos: Sequence[np.ndarray], proposals: Sequence[np.ndarray], options: CaseOptions, tell: Tell
) -> list[Comparison]:
    """One comparison: every window cut out and run through the net in PyTorch ÷ a request of the dense form."""
    tell("OverFeat: weights, and the fastest batch of windows")
    module = overfeat_net(options, photos[0])
    windows = sum(scale.rows * scale.columns for scale in module.layout(module.config.size).scales)
    sizes = sorted({min(size, windows) for size in options.crop_batches})
    cut = cut_windows(module, photos[0])
    batches = {size: _WindowBatches(module, cut, size) for size in sizes}
    size, seconds = fastest(batches, {size: size for size in sizes})
    row = SeedRow("windows-torch-fp32", f"each window, PyTorch eager, fp32, {size} at once", ours=False)
    if seconds * windows <= options.whole_seconds:
        base = Candidate(row, batches[size].all)
    else:
        base = in_batches(row, batches[size], size, (windows, "windows"), seconds, options.part_seconds)
    notes = [
        f"The {module.config.backbone} net, {windows} windows at {len(SCALES)} scales, exactly those of the dense form "
        f"(a test shows that both give the same); cutting them out is left out, and so is the merging of boxes. It was "
        f"fastest with {size} windows at once, of {', '.join(map(str, sizes))}: {1e3 * seconds:.1f} ms a window."
    ]
    paper = "shares the work of windows that overlap (1312.6229), without a figure"
    comparison = Comparison("overfeat", "OverFeat, dense ÷ windows", "a request", row, [], paper, ASKED, notes=notes)
    compare(comparison, module, base, TorchForm(), [(photo, None) for photo in photos], options, tell)
    return [comparison]


def overfeat_net(options: CaseOptions, photo: np.ndarray) -> Overfeat:
    """In eval mode, with windows at the paper's six scales, calibrated on one photo [H, W, 3]."""
    shorter = min(options.size)
    config = {
        "backbone": options.backbone if options.backbone in VALID_NETS else USUAL,
        "size": options.size,
        "windows": [shorter * WINDOW / side for side in reversed(SCALES)],
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        module = build_model("overfeat", config, LABELS)
    assert isinstance(module, Overfeat)
    _calibrate(module, *placed(module, photo))
    return module


@torch.no_grad()
def _calibrate(module: Overfeat, images: Tensor, sizes: Tensor) -> None:
    """As `seeds_nets` does it, on the windows of the largest scale."""
    x = normalised(module, images, sizes)
    scale = module.layout(x.shape[2:]).scales[0]
    heads = (module.classifier, module.regressor)
    rows: list[Tensor] = []
    hooks = [head.last.register_forward_pre_hook(lambda _, given: rows.append(given[0])) for head in heads]
    with unit_spread(module, [head.last for head in heads]):
        module.of_map(module.features(x, scale))
    for hook in hooks:
        hook.remove()
    scored, boxed = (value[0].flatten(1).T for value in rows)  # [windows, width]
    box = module.regressor.last.bias.clone()
    spread_heads(
        _as_linear(module.classifier.last), scored, _as_linear(module.regressor.last), boxed,
        least_score=module.heads.window_score, pairs=max(1, min(PAIRS, len(scored)) // 4),
    )  # fmt: skip
    module.regressor.last.weight.mul_(0.2)  # edges are parts of the window's sides
    module.regressor.last.bias.copy_(box)


def _as_linear(layer: nn.Conv2d) -> nn.Linear:
    """The 1×1 convolution as a fully connected layer on the same memory."""
    linear = nn.Linear(layer.in_channels, layer.out_channels)
    linear.weight.data, linear.bias.data = layer.weight.data.flatten(1), layer.bias.data  # type: ignore[union-attr]
    return linear


@torch.inference_mode()
def cut_windows(module: Overfeat, photo: np.ndarray) -> Tensor:
    """Every window of a photo, scale by scale, in the order of the layout: [W, 3, window, window]."""
    x = normalised(module, *placed(module, photo))[0]
    return torch.cat([module.crops(x, number) for number in range(len(module.layout(x.shape[1:]).scales))])


class _WindowBatches:
    """The net on `size` of the windows [W, 3, h, w] a call."""

    def __init__(self, module: Overfeat, windows: Tensor, size: int) -> None:
        self._module = module
        self._parts = windows.split(size)
        self._turn = itertools.cycle([part for part in self._parts if len(part) == size])

    @torch.inference_mode()
    def __call__(self) -> None:
        self._module.of_crops(next(self._turn))

    @torch.inference_mode()
    def all(self) -> tuple[Tensor, Tensor]:
        """Logits and edges of every window, in the order of the layout."""
        found = [self._module.of_crops(part) for part in self._parts]
        logits, edges = (torch.cat(values) for values in zip(*found, strict=True))
        return logits, edges
