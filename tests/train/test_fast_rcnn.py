"""Fast R-CNN in PyTorch: its reference against plain loops, its sampling and losses, its options; and it learns."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torchvision
from tiny_nets import canvases
from tiny_proposal_nets import LABELS, TINY, boxes_in, instead_of_searching, tiny

from regionrt.plugins.pyramid_pool import torch_op as pyramid_pool
from regionrt.plugins.roi_align import torch_op as roi_align
from regionrt.plugins.roi_pool import torch_op as roi_pool
from regionrt.train.initial import frozen_modules
from regionrt.train.models import ModelError, build_model
from regionrt.train.models.proposal_losses import _sampled, losses
from regionrt.train.models.proposal_net import ProposalConfig, eager
from regionrt.train.options import TrainOptions
from regionrt.train.trainer import train


def proposals_for(count: int, counts: list[int]):
    boxes = boxes_in(np.zeros((60, 90, 3), np.uint8), count)
    return torch.from_numpy(boxes).repeat(len(counts), 1, 1), torch.tensor(counts, dtype=torch.int32)


@pytest.mark.parametrize("pool", ["max", "align"])
def test_eager_is_what_plain_loops_compute(pool):
    module = tiny("fast_rcnn", pool=pool)
    images, sizes = canvases([(60, 90), (50, 70)], 64, 96)
    rois, counts = proposals_for(40, [40, 17])
    found = eager(module, images, sizes, rois, counts)
    for n in range(2):
        x = torch.zeros(1, 3, 64, 96)
        height, width = sizes[n]
        mean, std = (torch.tensor(v)[:, None, None] for v in (module.config.mean, module.config.std))
        x[0, :, :height, :width] = (images[n, :height, :width].permute(2, 0, 1) / 255 - mean) / std
        feature = module.backbone(x)
        boxes = [rois[n, : counts[n]]]
        if pool == "max":
            pooled = torchvision.ops.roi_pool(feature, boxes, 7, 1 / 16)
        else:
            pooled = torchvision.ops.roi_align(feature, boxes, 7, 1 / 16, 2, False)
        logits, deltas = module.head(pooled)
        torch.testing.assert_close(found["class_logits"][n, : counts[n]], logits)
        candidates = []
        for row, box in enumerate(boxes[0]):
            for label in (1, 2):
                score = float(logits[row].softmax(0)[label])
                dx, dy, dw, dh = deltas[row, 4 * label : 4 * label + 4] / torch.tensor([10.0, 10, 5, 5])
                w, h = box[2] - box[0], box[3] - box[1]
                cx, cy = box[0] + w / 2 + dx * w, box[1] + h / 2 + dy * h
                half = torch.stack([dw.exp() * w, dh.exp() * h]) / 2
                moved = torch.cat([torch.stack([cx, cy]) - half, torch.stack([cx, cy]) + half])
                moved = moved.clamp(min=0).minimum(torch.tensor([width, height, width, height]))
                if score > 0.1 and (moved[2:] - moved[:2] >= 0.01).all():
                    candidates.append((score, label, moved))
        kept: list = []
        for score, label, box in sorted(candidates, key=lambda one: -one[0]):
            same = [other for _, taken, other in kept if taken == label]
            if not same or torchvision.ops.box_iou(box[None], torch.stack(same)).max() <= 0.3:
                kept.append((score, label, box))
        kept = kept[:12]
        assert found["num_detections"][n] == len(kept) > 3
        assert found["labels"][n, : len(kept)].tolist() == [label for _, label, _ in kept]
        torch.testing.assert_close(found["scores"][n, : len(kept)], torch.tensor([score for score, _, _ in kept]))
        torch.testing.assert_close(found["boxes"][n, : len(kept)], torch.stack([box for _, _, box in kept]))


def test_parts_of_the_proposals_give_what_all_at_once_give():
    module = tiny("fast_rcnn")
    images, sizes = canvases([(60, 90), (50, 70)], 64, 96)
    rois, counts = proposals_for(40, [33, 0])
    whole = eager(module, images, sizes, rois, counts)
    module.rows_at_once = 16
    parts = eager(module, images, sizes, rois, counts)
    assert whole.keys() == parts.keys()
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, msg=name)
    assert whole["num_detections"].tolist()[1] == 0
    for name, value in eager(module, images, sizes, rois, counts, stages=False).items():
        torch.testing.assert_close(value, parts[name], msg=name)


@pytest.mark.parametrize(
    ("op", "module", "options"),
    [
        ("roi_pool", roi_pool, (1 / 16, 7, 7)),
        ("pyramid_pool", pyramid_pool, (1 / 16, [6, 3, 2, 1])),
        ("roi_align", roi_align, ([1 / 16], 7, 7, 2, False, "avg", 224.0, 4)),
    ],
)
def test_ops_with_gradients_are_the_ops(op, module, options):
    torch.manual_seed(0)
    feature = torch.randn(2, 5, 6, 8, requires_grad=True)
    rois, counts = proposals_for(20, [20, 7])
    maps = [feature] if op == "roi_align" else feature
    found = module.differentiable(maps, rois, counts, *options)
    without = getattr(module, op)([feature.detach()] if op == "roi_align" else feature.detach(), rois, counts, *options)
    torch.testing.assert_close(found, without, rtol=0, atol=0)
    weights = torch.randn_like(found)
    (gradient,) = torch.autograd.grad((found * weights).sum(), feature)
    step = torch.randn_like(feature) * 1e-3
    moved = [feature.detach() + step] if op == "roi_align" else feature.detach() + step
    change = ((module.differentiable(moved, rois, counts, *options) - found.detach()) * weights).sum()
    torch.testing.assert_close(change, (gradient * step).sum(), rtol=0.1, atol=2e-3)


def test_sampling_takes_a_quarter_of_objects_and_the_rest_from_around_them():
    torch.manual_seed(0)
    config = ProposalConfig(rois_per_image=64)
    objects = torch.tensor([[10.0, 10, 50, 50], [60, 20, 90, 60]])
    shift = torch.rand(3000, 4) * 40 - 20
    proposals = objects[torch.arange(3000) % 2] + shift
    boxes, labels, matched = _sampled(
        {"boxes": objects, "labels": torch.tensor([2, 1]), "proposals": proposals}, config
    )
    overlap, nearest = torchvision.ops.box_iou(boxes, objects).max(1)
    assert len(boxes) == 64
    assert (labels > 0).sum() == 16
    assert (overlap[labels > 0] >= 0.5).all()
    assert ((overlap[labels == 0] >= 0.1) & (overlap[labels == 0] < 0.5)).all()
    assert torch.equal(labels[:16], torch.tensor([2, 1])[nearest[:16]])
    assert torch.equal(matched[:16], objects[nearest[:16]])


def test_without_objects_all_are_background_and_without_anything_nothing_is_learnt():
    config = ProposalConfig(rois_per_image=8)
    none = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long)}
    boxes, labels, _ = _sampled({**none, "proposals": torch.tensor([[1.0, 2, 30, 40]])}, config)
    assert boxes.tolist() == [[1, 2, 30, 40]]
    assert labels.tolist() == [0]
    module = tiny("fast_rcnn").train()
    found = losses(module, *canvases([(60, 90)], 64, 96), [{**none, "proposals": torch.zeros(0, 4)}])
    assert {name: float(value) for name, value in found.items()} == {"loss_class": 0, "loss_box": 0}
    sum(found.values()).backward()


@pytest.mark.parametrize(("name", "frozen"), [("rcnn", "head.fc6"), ("sppnet", "backbone"), ("fast_rcnn", "backbone")])
def test_a_batch_without_regions_passes_whatever_learns(name, frozen):
    module = (tiny(name, crop=64, context=4) if name == "rcnn" else tiny(name)).train()
    frozen_modules(module, [frozen])
    none = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long), "proposals": torch.zeros(0, 4)}
    sum(losses(module, *canvases([(60, 90)], 64, 96), [none]).values()).backward()
    for parameter in module.parameters():
        assert (parameter.grad is not None) == parameter.requires_grad
        assert parameter.grad is None or not parameter.grad.any()


def test_losses_are_those_of_the_paper():
    module = tiny("fast_rcnn", dropout=0.0, box_weight=2.0, rois_per_image=4, foreground=0.5).train()
    images, sizes = canvases([(60, 90)], 64, 96)
    target = {"boxes": torch.tensor([[10.0, 12, 50, 52]]), "labels": torch.tensor([2])}
    proposals = torch.tensor([[12.0, 12, 52, 52], [40, 30, 90, 60], [30.0, 12, 70, 52]])
    found = losses(module, images, sizes, [{**target, "proposals": proposals}])
    rois = torch.stack([target["boxes"][0], proposals[0], proposals[2]])  # the second touches the object too little
    feature = module.backbone(torch.as_tensor(_normalised(module, images, sizes)))
    logits, deltas = module.head(torchvision.ops.roi_pool(feature, [rois], 7, 1 / 16))
    wanted = torch.tensor([[0.0, 0, 0, 0], [10 * -2 / 40, 0, 0, 0]])
    apart = (deltas[:2, 8:] - wanted).abs()
    smooth = torch.where(apart < 1, apart**2 / 2, apart - 0.5).sum()
    torch.testing.assert_close(found["loss_box"], 2.0 * smooth / 3)
    picked = logits.log_softmax(1)[torch.arange(3), torch.tensor([2, 2, 0])]
    torch.testing.assert_close(found["loss_class"], -picked.mean())


def _normalised(module, images, sizes):
    height, width = sizes[0]
    x = torch.zeros(1, 3, 64, 96)
    mean, std = (torch.tensor(v)[:, None, None] for v in (module.config.mean, module.config.std))
    x[0, :, :height, :width] = (images[0, :height, :width].permute(2, 0, 1) / 255 - mean) / std
    return x


@pytest.mark.parametrize("backbone", ["alexnet", "mobilenet_v2"])
def test_backbones_give_maps_of_stride_16(backbone):
    module = build_model("fast_rcnn", TINY | {"backbone": backbone, "channels": None}, LABELS)
    assert module.features(torch.zeros(1, 3, 64, 96)).shape[2:] == (4, 6)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"backbone": "resnet18"}, "pool from one map: choose one of squeezenet1_1"),
        ({"pool": "mean"}, "pool 'mean'"),
        ({"background_iou": [0.5, 0.1]}, "background_iou"),
        ({"search": {"mode": "slow"}}, "selective search: mode 'slow'"),
        ({"proposals": 0}, "proposals 0"),
        ({"nms": 1.5}, "nms 1.5"),
        ({"size": [60, 96]}, "multiple of the stride 16"),
    ],
)
def test_options_that_cannot_be(config, message):
    with pytest.raises(ModelError, match=message):
        build_model("fast_rcnn", config, LABELS)


def test_it_learns_shapes_and_freezes_what_init_brought(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    instead_of_searching(monkeypatch)
    config = TINY | {"rois_per_image": 32, "representation": 64, "dropout": 0.0}
    data = "shapes:train=24,val=4,test=4,size=64x96"
    weights = tmp_path / "squeezenet.pth"
    torch.save(torchvision.models.squeezenet1_1(weights=None).state_dict(), weights)
    options = TrainOptions(epochs=3, batch=2, lr=0.002, optimizer="adamw", evaluate_every=3, init=weights)
    rows: list = []
    best = train("fast_rcnn", data, tmp_path / "run", options, config=config, report=rows.append)
    epochs = [row for row in rows if "epoch" in row]
    assert epochs[-1]["loss"] < 0.8 * epochs[0]["loss"]
    assert "AP50" in epochs[-1]
    groups = next(row["groups"] for row in rows if "groups" in row)
    assert [g["parameters"] for g in groups if g["frozen"]] == [64 * 27 + 64]
    stored = torch.load(best, weights_only=True)["state_dict"]
    first = torch.load(weights, weights_only=True)["features.0.weight"]
    assert torch.equal(stored["backbone.body.0.weight"], first)
