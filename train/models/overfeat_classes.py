"""OverFeat as a classifier: what a photo shows, by all windows or by ten views, and where each class is likely.

Sermanet et al., arXiv:1312.6229, section 3.3. Images are normalised canvases [N, 3, H, W], of a module in eval mode.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .overfeat import Overfeat
from .windows import Scale


@torch.no_grad()
def dense_probabilities(module: Overfeat, x: Tensor) -> Tensor:
    """[N, K+1]: of each class the likeliest window of each scale, in the image and its mirror image, on average."""
    views = (x, x.flip(3))
    return torch.stack([found.amax((2, 3)) for view in views for found in _class_maps(module, view)]).mean(0)


@torch.no_grad()
def ten_view_probabilities(module: Overfeat, x: Tensor, image_sizes: Tensor) -> Tensor:
    """[N, K+1]: the mean over four corner windows, the middle one, and their mirror images, of the largest scale.

    image_sizes: int [N, 2], the part of each canvas that the photo fills; its corners are meant.
    """
    scales = module.layout(x.shape[2:]).scales
    number = min(range(len(scales)), key=lambda n: scales[n].size)  # the smallest map has the largest windows
    found = []
    for image, size in zip(x, image_sizes.tolist(), strict=True):
        crops = module.crops(image, number, _views(module, x.shape[2:], scales[number], size))
        logits, _ = module.of_crops(torch.cat([crops, crops.flip(3)]))
        found.append(logits.float().softmax(1).mean(0))
    return torch.stack(found)


@torch.no_grad()
def class_map(module: Overfeat, x: Tensor) -> Tensor:
    """[N, K+1, H, W]: how likely each class is at each pixel: between the middles of windows linear, beyond them as
    the nearest says, and the mean of all scales."""
    height, width = x.shape[2:]
    total = x.new_zeros(())
    maps = _class_maps(module, x)
    for scale, found in zip(module.layout(x.shape[2:]).scales, maps, strict=True):
        windows = _grid(module, x.shape[2:], scale).to(x.device)
        down = _positions(windows[:, 0, [1, 3]].mean(1), height)
        across = _positions(windows[0, :, [0, 2]].mean(1), width)
        places = torch.stack(torch.meshgrid(across, down, indexing="xy"), -1)  # [H, W, 2]
        places = places.expand(len(x), -1, -1, -1)
        total = total + F.grid_sample(found, places, padding_mode="border", align_corners=True)
    return total / len(maps)


def _class_maps(module: Overfeat, x: Tensor) -> list[Tensor]:
    """Probabilities [N, K+1, rows, columns] of each scale's windows."""
    scales = module.layout(x.shape[2:]).scales
    return [module.classifier(module.features(x, scale)).float().softmax(1) for scale in scales]


def _grid(module: Overfeat, canvas: Sequence[int], scale: Scale) -> Tensor:
    """xyxy of the windows of a scale: [rows, columns, 4], canvas px."""
    return module.sliding.windows((int(canvas[0]), int(canvas[1])), scale).reshape(scale.rows, scale.columns, 4)


def _views(module: Overfeat, canvas: Sequence[int], scale: Scale, size: Sequence[int]) -> list[int]:
    """Places of the four corner windows and the middle one in the valid part of a canvas; one row at least."""
    windows = _grid(module, canvas, scale)
    slack = 0.5  # px
    last_row = max(int((windows[:, 0, 3] <= size[0] + slack).sum()), 1) - 1
    last_column = max(int((windows[0, :, 2] <= size[1] + slack).sum()), 1) - 1
    corners = [(row, column) for row in (0, last_row) for column in (0, last_column)]
    return [row * scale.columns + column for row, column in [*corners, (last_row // 2, last_column // 2)]]


def _positions(middles: Tensor, side: int) -> Tensor:
    """Where the pixels of a side lie among `middles`, from −1, the first, to 1, the last."""
    pixels = torch.arange(side, device=middles.device) + 0.5
    if len(middles) == 1:
        return torch.zeros_like(pixels)
    return 2 * (pixels - middles[0]) / (middles[-1] - middles[0]) - 1
