"""Feature extractors of sliding-window nets: convolutions without padding, so that a window is a window.

A net that pads its maps with zeros sees other values at the edges of a crop than in the middle of a photo. Here the
padding of the published nets is taken away and the photo gets a margin instead, once: the map has the size that it has
in the paper, and what the net says of a window depends on that window and its margin only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.models.squeezenet import Fire

from .errors import ModelError


@dataclass(frozen=True)
class Step:
    """A convolution or pooling. padded: the published net pads it so that its map keeps its size."""

    kernel: int
    stride: int = 1
    padded: bool = False


@dataclass(frozen=True)
class ValidNet:
    """How to build one. steps: what decides where its cells look; the last pooling is the window net's, not its.

    pool, kernel: the last pooling and the classifier's first convolution over it, of the published net. widths:
    channels of the two fully connected layers behind, of the classifier and of the regressor.
    """

    build: Callable[[], nn.Sequential]
    channels: int
    steps: tuple[Step, ...]
    pool: int
    kernel: int
    classifier: tuple[int, int]
    regressor: tuple[int, int]
    description: str

    @property
    def stride(self) -> int:
        """Pixels from cell to cell."""
        product = 1
        for step in self.steps:
            product *= step.stride
        return product

    @property
    def cell(self) -> int:
        """Side in px of what a cell looks at, the margin left out."""
        return 1 + self._reach(padded=False)

    @property
    def margin(self) -> int:
        """Pixels around that a cell looks at too: where the published net pads with zeros."""
        return self._reach(padded=True) // 2

    def _reach(self, padded: bool) -> int:
        reach, jump = 0, 1
        for step in self.steps:
            reach += (step.kernel - 1) * jump if step.padded == padded else 0
            jump *= step.stride
        return reach


class ValidFire(Fire):
    """SqueezeNet's Fire module without padding: a cell less on every side."""

    def __init__(self, *channels: int) -> None:
        super().__init__(*channels)
        self.expand3x3.padding = (0, 0)

    def forward(self, x: Tensor) -> Tensor:
        x = self.squeeze_activation(self.squeeze(x))
        inner = self.expand1x1(x[..., 1:-1, 1:-1])
        return self.expand3x3_activation(torch.cat([inner, self.expand3x3(x)], 1))


def _layers(widths: Sequence[tuple[int, Step, Step | None]]) -> nn.Sequential:
    """Convolutions with ReLU, and max pooling behind them where there is one."""
    layers: list[nn.Module] = []
    before = 3
    for width, convolution, pooling in widths:
        layers += [nn.Conv2d(before, width, convolution.kernel, convolution.stride), nn.ReLU()]
        if pooling is not None:
            layers.append(nn.MaxPool2d(pooling.kernel, pooling.stride))
        before = width
    return nn.Sequential(*layers)


def _in_order(widths: Sequence[tuple[int, Step, Step | None]]) -> tuple[Step, ...]:
    return tuple(step for _, convolution, pooling in widths for step in (convolution, pooling) if step is not None)


_SAME = Step(3, padded=True)
_FAST = (  # table 1; the pooling of layer 5 is the window net's
    (96, Step(11, 4), Step(2, 2)), (256, Step(5), Step(2, 2)), (512, _SAME, None), (1024, _SAME, None),
    (1024, _SAME, None),
)  # fmt: skip
_ACCURATE = (  # table 3; the pooling of layer 6 is the window net's
    (96, Step(7, 2), Step(3, 3)), (256, Step(7), Step(2, 2)), (512, _SAME, None), (512, _SAME, None),
    (1024, _SAME, None), (1024, _SAME, None),
)  # fmt: skip


def _squeezenet1_1() -> nn.Sequential:
    """`features` of SqueezeNet 1.1 (Iandola et al., arXiv:1602.07360) up to its fourth Fire module: stride 8."""
    features = models.squeezenet1_1(weights=None).features[:8]
    channels = {3: (64, 16, 64, 64), 4: (128, 16, 64, 64), 6: (128, 32, 128, 128), 7: (256, 32, 128, 128)}
    for index, layer in enumerate(features):
        if isinstance(layer, Fire):
            features[index] = ValidFire(*channels[index])
        elif isinstance(layer, nn.MaxPool2d):
            layer.ceil_mode = False
    return features


VALID_NETS: Mapping[str, ValidNet] = {
    "squeezenet1_1": ValidNet(
        _squeezenet1_1,
        256,
        (Step(3, 2), Step(3, 2), _SAME, _SAME, Step(3, 2), _SAME, _SAME),
        3,
        2,
        (256, 256),
        (256, 128),
        "windows of 55 px, stride 8",
    ),
    "fast": ValidNet(
        lambda: _layers(_FAST), 1024, _in_order(_FAST), 2, 6, (3072, 4096), (4096, 1024),
        "the paper's fast net: windows of 231 px, stride 16",
    ),
    "accurate": ValidNet(
        lambda: _layers(_ACCURATE), 1024, _in_order(_ACCURATE), 3, 5, (4096, 4096), (4096, 1024),
        "the paper's accurate net: windows of 221 px, stride 12",
    ),
}  # fmt: skip


def valid_net(name: str) -> ValidNet:
    """ModelError for a name that is not in `VALID_NETS`."""
    if name not in VALID_NETS:
        raise ModelError(
            f"backbone {name!r}: windows need a net without padding: choose one of {', '.join(VALID_NETS)}"
        )
    return VALID_NETS[name]
