"""Training on windows: which are sampled, negatives on the fly, both losses (OverFeat, arXiv:1312.6229, 4.2, 5)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import box_iou

from .dense import normalised
from .overfeat import Overfeat, OverfeatConfig
from .windows import Layout

_LOOKED_AT = 8  # backgrounds at random among which the offending ones are found, for each that is wanted


@dataclass(frozen=True)
class Matches:
    """Windows of one image that may be sampled. object_of: the object that each of the Q windows is learnt as."""

    foreground: Tensor  # indices of windows
    background: Tensor
    object_of: Tensor


def losses(
    module: Overfeat, images: Tensor, image_sizes: Tensor, targets: list[dict[str, Tensor]]
) -> dict[str, Tensor]:
    """`loss_class`, log loss over K + 1 classes, and `loss_box`, the squared error of the foreground's edges, weighted.

    Both are means over the sampled windows, 0 if there are none, edges in parts of the window's side. targets: per
    image `boxes` float [n, 4] (canvas px), `labels` int64 [n].
    """
    x = normalised(module, images, image_sizes)
    layout = module.layout(x.shape[2:])
    maps = [module.features(x, scale) for scale in layout.scales]
    windows = layout.windows.to(x.device)
    patches, labels, wanted = [], [], []
    for n, target in enumerate(targets):
        boxes, classes = target["boxes"].to(x.device), target["labels"].to(x.device)
        matches = matched(windows, boxes, image_sizes[n].to(x.device), module.config)
        chosen = _sampled(module, maps, layout, n, matches)
        patches.append(windows_of(maps, layout, n, chosen, module))
        of_chosen = classes.new_zeros(len(chosen))
        edges = boxes.new_zeros(len(chosen), 4)
        objects = torch.isin(chosen, matches.foreground)
        if objects.any():
            place = matches.object_of[chosen[objects]]
            of_chosen[objects] = classes[place]
            edges[objects] = edges_of(boxes[place], windows[chosen[objects]])
        labels.append(of_chosen)
        wanted.append(edges)
    label = torch.cat(labels)
    logits, edges = (value.flatten(1).float() for value in module.of_map(torch.cat(patches)))
    foreground = torch.where(label > 0)[0]
    column = torch.zeros_like(foreground) if module.config.class_agnostic else label[foreground] - 1
    own = edges.unflatten(1, (-1, 4))[foreground, column]
    apart = F.mse_loss(own, torch.cat(wanted)[foreground], reduction="sum")
    return {
        "loss_class": F.cross_entropy(logits, label, reduction="sum") / max(len(label), 1),
        "loss_box": module.config.box_weight * apart / max(len(label), 1),
    }


def edges_of(boxes: Tensor, windows: Tensor) -> Tensor:
    """The edges [R, 4] of `boxes` [R, 4] as parts of the sides of `windows` [R, 4]: what the regressor learns."""
    corner, side = windows[:, :2].repeat(1, 2), (windows[:, 2:] - windows[:, :2]).repeat(1, 2)
    return (boxes - corner) / side


def matched(windows: Tensor, boxes: Tensor, size: Tensor, config: OverfeatConfig) -> Matches:
    """Foreground: IoU ≥ foreground_iou with an object, learnt as the one that it fits best, and a window for each
    object that has none so (`_of_the_rest`). Background: below background_iou with all, its centre in the valid
    part."""
    center = (windows[:, :2] + windows[:, 2:]) / 2
    inside = (center < size.flip(0)).all(1)
    if not len(boxes):
        nowhere = torch.zeros(0, dtype=torch.long, device=windows.device)
        return Matches(
            nowhere, torch.where(inside)[0], torch.zeros(len(windows), dtype=torch.long, device=boxes.device)
        )
    overlap = box_iou(windows, boxes)  # [Q, n]
    most, object_of = overlap.max(1)
    is_foreground = most >= config.foreground_iou
    for window, object_ in _of_the_rest(overlap, torch.where(is_foreground, object_of, -1), config.background_iou):
        is_foreground[window], object_of[window] = True, object_
    background = inside & (most < config.background_iou) & ~is_foreground
    return Matches(torch.where(is_foreground)[0], torch.where(background)[0], object_of)


def _of_the_rest(overlap: Tensor, taken: Tensor, least: float) -> list[tuple[int, int]]:
    """A window for each object that has none, small, long or beside another that its windows fit better.

    overlap: IoU [Q, n]; taken: the object that has each window, −1: none has. Objects choose by falling IoU, each the
    nearest window from the IoU `least` on, of those that nobody has, else of those whose owner keeps another.
    """
    taken, found = taken.clone(), []
    have = taken[taken >= 0].bincount(minlength=overlap.shape[1])
    for object_ in overlap.amax(0).argsort(descending=True, stable=True).tolist():
        if have[object_]:
            continue
        near, nobodys = overlap[:, object_] >= least, taken < 0
        free = near & nobodys
        choice = free if free.any() else near & ~nobodys & (have[taken] > 1)
        if choice.any():
            window = int(torch.where(choice, overlap[:, object_], -1).argmax())
            if taken[window] >= 0:
                have[taken[window]] -= 1
            taken[window], have[object_] = object_, 1
            found.append((window, object_))
    return found


def windows_of(maps: list[Tensor], layout: Layout, image: int, chosen: Tensor, module: Overfeat) -> Tensor:
    """What the heads read of the windows `chosen` of an image: [R, C, reach, reach] of the pooled maps."""
    reach, found, start = module.reach, maps[0].new_empty(len(chosen), maps[0].shape[1], module.reach, module.reach), 0
    for map_, scale in zip(maps, layout.scales, strict=True):
        count = scale.rows * scale.columns
        mine = torch.where((chosen >= start) & (chosen < start + count))[0]
        place = chosen[mine] - start
        cell = torch.arange(reach, device=map_.device)
        rows = (place // scale.columns)[:, None, None] + cell[:, None]
        columns = (place % scale.columns)[:, None, None] + cell
        found = found.index_copy(0, mine, map_[image][:, rows, columns].transpose(0, 1))
        start += count
    return found


def _sampled(module: Overfeat, maps: list[Tensor], layout: Layout, image: int, matches: Matches) -> Tensor:
    """Windows of one image: foreground at random, every object as likely as another, whether many windows show it or
    few; of the background the most offending and some at random."""
    config = module.config
    most = config.most_foreground
    foreground = matches.foreground
    if len(foreground) > most:
        shown = matches.object_of[foreground]
        foreground = foreground[torch.multinomial(1 / shown.bincount()[shown], most)]
    wanted = config.windows_per_image - len(foreground)
    worst = round(wanted * config.offending)
    looked_at = _some_of(matches.background, _LOOKED_AT * worst)
    with torch.no_grad():
        read = windows_of([m.detach() for m in maps], layout, image, looked_at, module)
        sure = module.classifier(read).flatten(1).float().softmax(1)[:, 0] if len(looked_at) else read.new_zeros(0)
    offending = looked_at[sure.argsort()[:worst]]
    others = matches.background[~torch.isin(matches.background, offending)]
    return torch.cat([foreground, offending, _some_of(others, wanted - len(offending))])


def _some_of(places: Tensor, most: int) -> Tensor:
    """At most so many of them, at random."""
    return places[torch.randperm(len(places), device=places.device)[:most]]
