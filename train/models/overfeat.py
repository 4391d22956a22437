"""OverFeat (Sermanet et al., arXiv:1312.6229): a classifier and a regressor of boxes, run over all windows at once.

Windows of six scales share one pass of convolutions each. The fully connected layers are convolutions; the last
pooling, taken at every offset, and the convolution behind it give a window every few pixels (section 3.3, figure 3).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .dense_config import CanvasConfig
from .errors import ModelError
from .region import MAX_CANDIDATES, check_size
from .valid_nets import valid_net
from .windows import Layout, Scale, Sliding, usual_windows


@dataclass(frozen=True)
class OverfeatConfig(CanvasConfig):
    """windows: sides in canvas px, one for each scale; None: six. fine: windows at every offset of the last pooling
    (section 3.3), or only where the poolings of the whole map begin. pool, kernel, classifier, regressor: of the last
    pooling, of the convolution over it, and widths of the two layers of either head; None: the backbone's own.
    class_agnostic: one box of a window for all classes, or one for each (section 4.2; the paper's own choice was one).

    window_score: of windows whose boxes are merged; merge: the score at which two boxes no longer become one;
    candidates: most (window, class) pairs that are merged; score, detections: of merged boxes.

    Training: windows_per_image are sampled, the part `foreground` among those with IoU ≥ foreground_iou with an object,
    the others below background_iou, `offending` of these the worst of a random sample, the rest at random (section 5).
    box_weight: of the L2 loss of boxes. joint: boxes teach the features too; False: as in the paper, they do not.
    """

    size: tuple[int, int] = (384, 512)
    enlarge: bool = True
    backbone: str = "squeezenet1_1"
    windows: tuple[float, ...] | None = None
    fine: bool = True
    pool: int | None = None
    kernel: int | None = None
    classifier: tuple[int, int] | None = None
    regressor: tuple[int, int] | None = None
    dropout: float = 0.5
    class_agnostic: bool = True
    window_score: float = 0.5
    merge: float = 0.7
    candidates: int = 1024
    score: float = 0.25
    detections: int = 100
    windows_per_image: int = 128
    foreground: float = 0.5
    foreground_iou: float = 0.5
    background_iou: float = 0.3
    offending: float = 0.5
    box_weight: float = 10.0
    joint: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("window_score", "score", "foreground", "foreground_iou", "background_iou", "offending"):
            if not 0 <= getattr(self, name) <= 1:
                raise ModelError(f"{name} {getattr(self, name)}: give a number from 0 to 1")
        if self.background_iou > self.foreground_iou:
            raise ModelError(
                f"background_iou {self.background_iou}: give at most foreground_iou, {self.foreground_iou}"
            )
        if self.most_foreground < 1:
            raise ModelError(
                f"windows_per_image {self.windows_per_image} and foreground {self.foreground}: no window would be "
                "learnt as an object, give more of either"
            )
        if not 0 <= self.merge <= 2:
            raise ModelError(f"merge {self.merge}: give a number from 0 (never) to 2 (all boxes become one)")
        if self.windows is not None and not (self.windows and min(self.windows) > 0):
            raise ModelError(f"windows {list(self.windows)}: give the sides of at least one scale's windows in px")
        for name in ("classifier", "regressor"):
            given = getattr(self, name)
            if given is not None and (len(given) != 2 or min(given) < 1):
                raise ModelError(f"{name} {list(given)}: give the widths of two layers")
        if not self.box_weight >= 0:
            raise ModelError(f"box_weight {self.box_weight}: give 0 or more")
        if self.candidates > MAX_CANDIDATES:
            raise ModelError(f"candidates {self.candidates}: give at most {MAX_CANDIDATES}, TensorRT's limit")

    @property
    def most_foreground(self) -> int:
        """Most windows of an image that are sampled to show an object."""
        return round(self.windows_per_image * self.foreground)


@dataclass(frozen=True)
class Merging:
    """How boxes of windows become detections; see `OverfeatConfig`."""

    window_score: float
    merge: float
    score: float
    detections: int
    candidates: int


class Head(nn.Module):
    """Fully connected layers as convolutions: [N, C, h, w] -> [N, outputs, h − k', w − k'], k' the kernel's reach."""

    def __init__(
        self, channels: int, kernel: int, dilation: int, widths: Sequence[int], outputs: int, dropout: float, std: float
    ) -> None:
        super().__init__()
        self.fc6 = nn.Conv2d(channels, widths[0], kernel, dilation=dilation)
        self.fc7 = nn.Conv2d(widths[0], widths[1], 1)
        self.dropout = nn.Dropout(dropout)
        self.last = nn.Conv2d(widths[1], outputs, 1)
        for layer in (self.fc6, self.fc7):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
        nn.init.normal_(self.last.weight, std=std)
        nn.init.zeros_(self.last.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.dropout(F.relu(self.fc6(x)))
        return self.last(self.dropout(F.relu(self.fc7(x))))


class Overfeat(nn.Module):
    """Normalised images [N, 3, H, W] -> class logits [N, Q, K+1] and box edges [N, Q, 4 or 4K] of the Q windows
    of `layout`.

    Edges are parts of the window's sides from its left upper corner. `backbone` holds the layers that --init brings
    weights for.
    """

    task = "window-detection"

    def __init__(self, config: OverfeatConfig, labels: Sequence[str]) -> None:
        super().__init__()
        net = valid_net(config.backbone)
        self.config = config
        self.num_classes = len(labels)
        self.stride = 1
        check_size(config.size, 1)
        self.pool, kernel = config.pool or net.pool, config.kernel or net.kernel
        reach = self.pool * kernel
        # A pooling at each offset and a convolution over every one of its maps, interleaved, are a pooling of stride 1
        # and a convolution whose taps are `pool` cells apart.
        self.pool_step, dilation = (1, self.pool) if config.fine else (self.pool, 1)
        self.reach = dilation * (kernel - 1) + 1  # cells of the pooled map that a window covers
        self.sliding = Sliding(net.cell + net.stride * (reach - 1), net.stride * self.pool_step, net.margin)
        self.least_px = 1
        self.backbone = nn.ModuleDict({"body": net.build()})
        boxes = 1 if config.class_agnostic else len(labels) - 1
        self.classifier = Head(
            net.channels, kernel, dilation, config.classifier or net.classifier, len(labels), config.dropout, 0.01
        )
        self.regressor = Head(net.channels, kernel, dilation, config.regressor or net.regressor, 4 * boxes, 0.0, 0.001)
        with torch.no_grad():  # begins with the window itself
            self.regressor.last.bias.copy_(torch.tensor([0.0, 0.0, 1.0, 1.0]).repeat(boxes))
        self.heads = Merging(config.window_score, config.merge, config.score, config.detections, config.candidates)
        self._layouts: dict[tuple[int, int], Layout] = {}
        self.layout(config.size)  # says what does not fit

    def layout(self, canvas: Sequence[int]) -> Layout:
        """Scales and windows on a canvas of (height, width) px. On another than the config's they grow with it."""
        size = (int(canvas[0]), int(canvas[1]))
        if size not in self._layouts:
            grown = min(size) / min(self.config.size)
            given = self.config.windows
            sides = usual_windows(size) if given is None else [side * grown for side in given]
            self._layouts[size] = self.sliding.layout(size, sides)
        return self._layouts[size]

    def features(self, x: Tensor, scale: Scale) -> Tensor:
        """The pooled map of a scale, [N, C, rows + reach − 1, columns + reach − 1]."""
        return F.max_pool2d(self.backbone["body"](self.sliding.resized(x, scale)), self.pool, self.pool_step)

    def of_map(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """Class logits [N, K+1, rows, columns] and box edges [N, 4 or 4K, rows, columns] of a pooled map."""
        return self.classifier(pooled), self.regressor(pooled if self.config.joint else pooled.detach())

    def maps(self, x: Tensor) -> list[tuple[Tensor, Tensor]]:
        """`of_map` of each scale."""
        return [self.of_map(self.features(x, scale)) for scale in self.layout(x.shape[2:]).scales]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        rows = [[value.flatten(2) for value in pair] for pair in self.maps(x)]
        logits, edges = (torch.cat(parts, 2).transpose(1, 2) for parts in zip(*rows, strict=True))
        return logits, edges

    def crops(self, x: Tensor, number: int, places: Sequence[int] | None = None) -> Tensor:
        """Windows of scale `number`, all or those at `places`, cut out of one normalised canvas [3, H, W]."""
        return self.sliding.crops(x, self.layout(x.shape[1:]).scales[number], places)

    def of_crops(self, crops: Tensor) -> tuple[Tensor, Tensor]:
        """The net run on each cut-out window [Q, 3, s, s]: logits [Q, K+1] and edges [Q, 4 or 4K], as `forward` has."""
        pooled = F.max_pool2d(self.backbone["body"](crops), self.pool, self.pool_step)
        logits, edges = self.of_map(pooled)
        return logits.flatten(1), edges.flatten(1)


def overfeat(config: OverfeatConfig, labels: Sequence[str]) -> Overfeat:
    """An OverFeat detector, randomly initialised."""
    return Overfeat(config, labels)
