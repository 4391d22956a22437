"""Training OverFeat: which windows are learnt as what, negatives on the fly, both losses."""

from __future__ import annotations

import pytest
import torch
from tiny_overfeat import tiny

from regionrt.train.models.overfeat_losses import _sampled, losses, matched, windows_of

SAME = 1e-4  # as in test_overfeat.py


def test_what_windows_are_matched_to():
    module = tiny(windows=[20, 40])
    windows = module.layout((64, 96)).windows
    size = torch.tensor([64, 48])  # the right half of the canvas is empty
    boxes = torch.tensor([[0.0, 0, 40, 40], [30, 30, 34, 34]])  # the second fits no window
    found = matched(windows, boxes, size, module.config)
    overlap = (windows[:, None, 2:].minimum(boxes[:, 2:]) - windows[:, None, :2].maximum(boxes[:, :2])).clamp(min=0)
    shared = overlap.prod(-1)
    iou = shared / ((windows[:, 2:] - windows[:, :2]).prod(1)[:, None] + (boxes[:, 2:] - boxes[:, :2]).prod(1) - shared)
    assert set(found.foreground.tolist()) == set(torch.where(iou.max(1).values >= 0.5)[0].tolist())
    assert (iou[found.background] < 0.3).all()
    centers = (windows[found.background, 0] + windows[found.background, 2]) / 2
    assert (centers < 48).all()
    assert not set(found.foreground.tolist()) & set(found.background.tolist())
    nothing = matched(windows, boxes[:0], size, module.config)
    assert len(nothing.foreground) == 0
    assert len(nothing.background) > len(found.background)


def test_each_object_has_a_window_where_one_comes_near():
    module = tiny(windows=[20])
    windows = module.layout((64, 96)).windows
    boxes = torch.tensor([[20.0, 20, 32, 32]])
    found = matched(windows, boxes, torch.tensor([64, 96]), module.config)
    assert len(found.foreground) == 1


BESIDE = torch.tensor([[0.0, 0, 40, 36], [0, 0, 20, 28]])  # the second, in the first, fits no window so well


@pytest.mark.parametrize(
    ("windows", "of_first", "of_second"),
    [
        ([[0.0, 0, 40, 40], [0, 4, 40, 44]], [1], [0]),  # both fit the first better: it keeps one
        ([[0.0, 0, 40, 40]], [0], []),  # it keeps its only one
        ([[0.0, 0, 40, 40], [0, 4, 40, 44], [0, 0, 40, 46]], [1, 2], [0]),
        ([[0.0, 0, 40, 40], [0, 0, 35, 46], [0, 0, 10, 24]], [0, 1], [2]),  # nobody's
        ([[0.0, 0, 40, 40], [0, 0, 20, 32]], [0], [1]),
    ],
    ids=["one is given up", "the only one", "the nearest is given up", "a free one", "its own"],
)
@pytest.mark.parametrize("swapped", [False, True])
def test_an_object_whose_windows_fit_another_better_gets_one(windows, of_first, of_second, swapped):
    boxes = BESIDE.flip(0) if swapped else BESIDE
    found = matched(torch.tensor(windows), boxes, torch.tensor([64, 96]), tiny().config)
    owners = {int(window): int(found.object_of[window]) != swapped for window in found.foreground}
    assert [window for window, second in owners.items() if not second] == of_first
    assert [window for window, second in owners.items() if second] == of_second


def test_two_objects_without_windows_do_not_take_the_same():
    windows = torch.tensor([[0.0, 0, 40, 40], [8, 0, 48, 40]])
    boxes = torch.tensor([[10.0, 0, 32, 30], [10, 0, 31, 30]])  # IoU 0.41, 0.39 with either
    found = matched(windows, boxes, torch.tensor([64, 96]), tiny().config)
    assert found.foreground.tolist() == [0, 1]
    assert sorted(found.object_of.tolist()) == [0, 1]


def test_sampled_windows_are_read_as_the_dense_net_reads_them():
    module = tiny()
    x = torch.randn(2, 3, 64, 96)
    layout = module.layout((64, 96))
    logits, edges = module(x)
    maps = [module.features(x, scale) for scale in layout.scales]
    chosen = torch.randperm(len(layout.windows))[:17]
    for image in range(2):
        read = windows_of(maps, layout, image, chosen, module)
        one, other = (value.flatten(1) for value in module.of_map(read))
        torch.testing.assert_close(one, logits[image, chosen], atol=SAME, rtol=SAME)
        torch.testing.assert_close(other, edges[image, chosen], atol=SAME, rtol=SAME)


def batch(boxes=((10.0, 10, 50, 50),), labels=(2,)):
    images = torch.randint(0, 256, (1, 64, 96, 3), dtype=torch.uint8)
    target = {"boxes": torch.tensor(boxes).reshape(-1, 4), "labels": torch.tensor(labels, dtype=torch.long)}
    return images, torch.tensor([[64, 96]]), [target]


def test_losses_fall_with_training():
    torch.manual_seed(0)
    module = tiny(class_agnostic=False).train()
    given = batch()
    optimizer = torch.optim.Adam(module.parameters(), 0.003)
    history = []
    for _ in range(25):
        found = losses(module, *given)
        assert set(found) == {"loss_class", "loss_box"}
        optimizer.zero_grad()
        torch.stack(list(found.values())).sum().backward()
        optimizer.step()
        history.append({name: value.item() for name, value in found.items()})
    assert history[-1]["loss_class"] < 0.5 * history[0]["loss_class"]
    assert history[-1]["loss_box"] < 0.5 * history[0]["loss_box"]


def test_an_image_without_objects_teaches_the_background():
    module = tiny().train()
    found = losses(module, *batch((), ()))
    assert found["loss_class"] > 0
    assert found["loss_box"] == 0
    found["loss_class"].backward()


@pytest.mark.parametrize("config", [{"windows_per_image": 2}, {"windows_per_image": 1, "foreground": 1.0}], ids=str)
def test_few_windows_an_image_are_enough(config):
    found = losses(tiny(**config).train(), *batch())
    assert found["loss_class"] > 0
    assert found["loss_box"] > 0


def test_a_photo_that_no_window_shows_teaches_nothing():
    """Of a strip 5 px wide not one window has its middle in the photo."""
    module = tiny().train()
    images, _, targets = batch((), ())
    found = losses(module, images, torch.tensor([[64, 5]]), targets)
    assert {name: value.item() for name, value in found.items()} == {"loss_class": 0, "loss_box": 0}
    torch.stack(list(found.values())).sum().backward()


@pytest.mark.parametrize("joint", [True, False])
def test_boxes_teach_the_features_where_they_are_to(joint):
    module = tiny(joint=joint).train()
    losses(module, *batch())["loss_box"].backward()
    moved = [p.grad is not None and bool((p.grad != 0).any()) for p in module.backbone.parameters()]
    assert any(moved) == joint


def test_offending_backgrounds_are_preferred():
    """Of the backgrounds that are looked at, those that the classifier is least sure of are learnt from."""
    module = tiny(windows_per_image=12, offending=1.0, windows=[20])
    _, sizes, targets = batch()
    x = torch.randn(1, 3, 64, 96)
    layout = module.layout((64, 96))
    maps = [module.features(x, scale) for scale in layout.scales]
    matches = matched(layout.windows, targets[0]["boxes"], sizes[0], module.config)
    sure = module(x)[0].softmax(-1)[0, :, 0]
    chosen = _sampled(module, maps, layout, 0, matches)
    background = chosen[torch.isin(chosen, matches.background)]
    assert len(chosen) == 12
    assert len(chosen.unique()) == 12
    assert sure[background].mean() < sure[matches.background].median()
