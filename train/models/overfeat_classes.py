"""OverFeat as a classifier: what a photo shows, by all windows or by ten views, and where each class is likely.

Sermanet et al., arXiv:1312.6229, section 3.3. Images are normalised canvases [N, 3, H, W], of a module in eval mode;
image_sizes int [N, 2] the part of each that the photo fills. Windows centred in the padding, which training never
shows as background, count nowhere; of a photo so narrow that it holds no centre the first row or column does.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .overfeat import Overfeat
from .windows import Scale


@torch.no_grad()
def dense_probabilities(module: Overfeat, x: Tensor, image_sizes: Tensor) -> Tensor:
    """[N, K+1]: of each class the likeliest window of each scale, in the image and its mirror image, on average."""
    mirrored = [found.flip(3) for found in _class_maps(module, x.flip(3))]  # windows lie where the photo has them
    maps = list(zip(module.layout(x.shape[2:]).scales, _class_maps(module, x), mirrored, strict=True))
    found = []
    for image, size in enumerate(image_sizes.tolist()):
        best = []
        for scale, *views in maps:
            rows, columns = _within(_grid(module, x.shape[2:], scale), size)
            best += [view[image, :, :rows, :columns].amax((1, 2)) for view in views]
        found.append(torch.stack(best).mean(0))
    return torch.stack(found)


@torch.no_grad()
def ten_view_probabilities(module: Overfeat, x: Tensor, image_sizes: Tensor) -> Tensor:
    """[N, K+1]: the mean over four corner windows of the photo, the middle one, and their mirror images, of the largest
    scale."""
    scales = module.layout(x.shape[2:]).scales
    number = min(range(len(scales)), key=lambda n: scales[n].size)  # the smallest map has the largest windows
    found = []
    for image, size in zip(x, image_sizes.tolist(), strict=True):
        crops = module.crops(image, number, _views(module, x.shape[2:], scales[number], size))
        logits, _ = module.of_crops(torch.cat([crops, crops.flip(3)]))
        found.append(logits.float().softmax(1).mean(0))
    return torch.stack(found)


@torch.no_grad()
def class_map(module: Overfeat, x: Tensor, image_sizes: Tensor) -> Tensor:
    """[N, K+1, H, W]: how likely each class is at each pixel: between the middles of windows linear, beyond them as
    the nearest says, and the mean of all scales."""
    height, width = x.shape[2:]
    maps = _class_maps(module, x)
    scales = module.layout(x.shape[2:]).scales
    total = x.new_zeros(len(x), module.num_classes, height, width)
    for scale, found in zip(scales, maps, strict=True):
        windows = _grid(module, x.shape[2:], scale).to(x.device)
        for image, size in enumerate(image_sizes.tolist()):
            rows, columns = _within(windows, size)
            down = _positions(windows[:rows, 0, [1, 3]].mean(1), height)
            across = _positions(windows[0, :columns, [0, 2]].mean(1), width)
            places = torch.stack(torch.meshgrid(across, down, indexing="xy"), -1)[None]  # [1, H, W, 2]
            counted = found[image : image + 1, :, :rows, :columns]
            total[image] += F.grid_sample(counted, places, padding_mode="border", align_corners=True)[0]
    return total / len(maps)


def _class_maps(module: Overfeat, x: Tensor) -> list[Tensor]:
    """Probabilities [N, K+1, rows, columns] of each scale's windows."""
    scales = module.layout(x.shape[2:]).scales
    return [module.classifier(module.features(x, scale)).float().softmax(1) for scale in scales]


def _grid(module: Overfeat, canvas: Sequence[int], scale: Scale) -> Tensor:
    """xyxy of the windows of a scale: [rows, columns, 4], canvas px."""
    return module.sliding.windows((int(canvas[0]), int(canvas[1])), scale).reshape(scale.rows, scale.columns, 4)


def _within(windows: Tensor, size: Sequence[int]) -> tuple[int, int]:
    """How many rows and columns of `windows` [rows, columns, 4] have their middle in the valid part; one at least."""
    rows = int((windows[:, 0, [1, 3]].mean(1) < size[0]).sum())
    columns = int((windows[0, :, [0, 2]].mean(1) < size[1]).sum())
    return max(rows, 1), max(columns, 1)


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
