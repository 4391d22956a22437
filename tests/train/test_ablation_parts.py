"""RoIPool, the maximum of RoIAlign, softmax masks and the MLP mask head in eager nets, beside torchvision."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny_nets import LABELS, canvases, targets, tiny
from torch import nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.roi_heads import RoIHeads, paste_masks_in_image
from torchvision.ops import MultiScaleRoIAlign, RoIPool

from regionrt.plugins.roi_align.reference import roi_align
from regionrt.train.models import ModelError, build_model
from regionrt.train.models.mask_heads import SoftmaxMaskHeads, masks_of, multinomial_loss
from regionrt.train.models.region import eager, losses
from regionrt.train.models.region_pool import RegionPool, region_pool

SIZES = [(96, 128), (96, 104)]
BOXES = [torch.tensor([[3.0, 5, 40, 61], [0, 0, 127, 95], [20.2, 30.7, 28, 33]]), torch.tensor([[90.0, 10, 99, 90]])]
SHAPES = [(96, 128), (96, 128)]


def maps(*strides: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {str(i): torch.randn(2, 4, 96 // s, 128 // s, requires_grad=True) for i, s in enumerate(strides)}


def test_roi_pool_is_torchvisions():
    features = maps(16)
    found = region_pool("max", ["0"], 7)(features, BOXES, SHAPES)
    expected = RoIPool(7, 1 / 16)(features["0"], BOXES)
    torch.testing.assert_close(found, expected, atol=0, rtol=0)
    found.sum().backward()
    assert features["0"].grad.abs().sum() > 0


def test_the_maximum_of_roi_align_is_the_references_on_every_level():
    features = maps(8, 16, 32)
    pool = region_pool("align_max", ["0", "1"], 3, canonical_scale=40)
    found = pool(features, BOXES, SHAPES)
    plain = [features[name].detach().numpy() for name in "01"]
    rois = np.zeros((2, 3, 4), np.float32)
    for image, boxes in enumerate(BOXES):
        rois[image, : len(boxes)] = boxes
    expected = roi_align(
        plain, rois, np.array([3, 1], np.int32), spatial_scales=[1 / 8, 1 / 16], output_size=(3, 3), mode="max",
        canonical_scale=40.0,
    )  # fmt: skip
    expected = np.concatenate([expected[0], expected[1, :1]])
    np.testing.assert_allclose(found.detach().numpy(), expected, atol=1e-5)
    assert not np.allclose(found.detach(), MultiScaleRoIAlign(["0", "1"], 3, 2)({**features}, BOXES, SHAPES).detach())
    found.sum().backward()
    assert all(features[name].grad.abs().sum() > 0 for name in "01")


@pytest.mark.parametrize("kind", ["max", "align_max"])
def test_no_rois_at_all(kind):
    assert region_pool(kind, ["0"], 7)(maps(16), [torch.zeros(0, 4)] * 2, SHAPES).shape == (0, 4, 7, 7)


def test_align_is_torchvisions_own():
    assert type(region_pool("align", ["0"], 7)) is MultiScaleRoIAlign


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"pool": "mean"}, "pool 'mean': give 'align' or 'align_max' or 'max'"),
        ({"pool": "max", "backbone": "resnet18"}, "reads one feature map, found 4: choose a backbone of one map"),
        ({"mask_loss": "dice"}, "mask_loss 'dice': give 'sigmoid' or 'softmax'"),
        ({"mask_head": "cnn"}, "mask_head 'cnn': give 'fcn' or 'mlp'"),
        ({"mask_layers": []}, r"mask_layers \[\]: give the width"),
        ({"mask_layers": [0]}, r"mask_layers \[0\]: give the width"),
        ({"proposal_candidates": 0}, "proposal_candidates 0: give 1 or more"),
    ],
)
def test_what_cannot_be_is_refused(config, message):
    with pytest.raises(ModelError, match=message):
        build_model("mask_rcnn", config, LABELS)


def test_old_checkpoints_have_the_pool_and_masks_that_they_were_trained_with():
    heads = build_model("mask_rcnn", {"mask_layers": [16, 16]}, LABELS).roi_heads
    assert type(heads) is RoIHeads
    assert type(heads.box_roi_pool) is type(heads.mask_roi_pool) is MultiScaleRoIAlign


def test_faster_rcnn_as_in_its_paper():
    """VGG16 to conv5_3, one map of stride 16; a 3×3 convolution of 512 for the RPN, 9 anchors; RoIPool 7×7; fc6 and fc7
    of 4096 (arXiv:1506.01497, sections 3.1 and 3.3)."""
    with torch.device("meta"):
        module = build_model("faster_rcnn_original", {}, LABELS)
    convolutions = [layer for layer in module.backbone.modules() if isinstance(layer, nn.Conv2d)]
    assert [c.out_channels for c in convolutions] == [64] * 2 + [128] * 2 + [256] * 3 + [512] * 6
    assert {c.kernel_size for c in convolutions} == {(3, 3)}
    assert sum(isinstance(layer, nn.MaxPool2d) for layer in module.backbone.modules()) == 4
    rpn, heads = module.rpn, module.roi_heads
    (layer,) = (layer for layer in rpn.head.conv.modules() if isinstance(layer, nn.Conv2d))
    assert (layer.in_channels, layer.out_channels, layer.kernel_size) == (512, 512, (3, 3))
    assert (rpn.head.cls_logits.out_channels, rpn.head.bbox_pred.out_channels) == (9, 36)
    assert rpn.anchor_generator.sizes == ((128, 256, 512),)
    assert rpn.anchor_generator.aspect_ratios == ((0.5, 1.0, 2.0),)
    assert (rpn._post_nms_top_n, rpn.nms_thresh) == ({"training": 2000, "testing": 300}, 0.7)
    assert rpn._pre_nms_top_n["testing"] > 300
    assert rpn.fg_bg_sampler.batch_size_per_image == 256
    pool = heads.box_roi_pool
    assert (type(pool), pool.kind, pool.output_size) == (RegionPool, "max", (7, 7))
    assert heads.box_head.fc6.weight.shape == (4096, 512 * 49)
    assert heads.box_head.fc7.weight.shape == (4096, 4096)
    assert heads.box_predictor.bbox_pred.out_features == 4 * len(LABELS)
    assert (module.transform.min_size, module.transform.max_size) == ((600,), 1000)


def test_the_mlp_is_the_papers():
    """fc: 1024 → 1024 → K·28² (table 2e), from the features that the FCN reads; torchvision's K includes background."""
    with torch.device("meta"):
        heads = build_model("mask_rcnn", {"mask_head": "mlp", "channels": 256}, LABELS).roi_heads
    layers = [m for part in (heads.mask_head, heads.mask_predictor) for m in part if isinstance(m, nn.Linear)]
    assert [(m.in_features, m.out_features) for m in layers] == [(256 * 14**2, 1024), (1024, 1024), (1024, 3 * 28**2)]
    found = heads.mask_predictor(heads.mask_head(torch.zeros(5, 256, 14, 14, device="meta")))
    assert found.shape == (5, 3, 28, 28)


def test_softmax_masks_are_torchvisions_forward():
    module = tiny("mask_rcnn", mask_loss="softmax", channels=32, detections=20)
    images, sizes = canvases(SIZES[:1])
    values = eager(module, images, sizes)
    with torch.no_grad():
        (theirs,) = module([images[0].permute(2, 0, 1).float() / 255])
    count = int(values["num_detections"])
    assert count == len(theirs["boxes"]) == 20
    pasted = paste_masks_in_image(values["masks"][0, :count, None], values["boxes"][0, :count], SIZES[0])
    torch.testing.assert_close(pasted, theirs["masks"], atol=1e-3, rtol=0)


def test_softmax_shares_a_pixel_among_the_classes():
    torch.manual_seed(0)
    logits, labels = torch.randn(4, 3, 5, 5), torch.tensor([1, 2, 1, 0])
    heads = tiny("mask_rcnn", mask_loss="softmax", channels=8).roi_heads
    shares = torch.stack([masks_of(heads, logits, torch.full((4,), k)) for k in range(3)])
    torch.testing.assert_close(shares.sum(0), torch.ones(4, 5, 5))
    apart = masks_of(RoIHeads.__new__(RoIHeads), logits, labels)
    torch.testing.assert_close(apart, logits[torch.arange(4), labels].sigmoid())


def test_the_multinomial_loss_is_cross_entropy_of_class_or_background():
    torch.manual_seed(0)
    logits, labels = torch.randn(4, 3, 5, 5), torch.tensor([1, 2, 1, 2])
    goals = torch.randint(0, 2, (4, 5, 5))
    expected = F.cross_entropy(logits, goals * labels[:, None, None])
    torch.testing.assert_close(multinomial_loss(logits, goals.float(), labels), expected)
    assert multinomial_loss(logits[:0], goals[:0].float(), labels[:0]) == 0


def test_only_the_masks_loss_differs_from_torchvisions():
    module = tiny("mask_rcnn", channels=32).train()
    images, sizes = canvases(SIZES)
    torch.manual_seed(1)
    expected = losses(module, images, sizes, targets(2, masks=True))
    module.roi_heads = SoftmaxMaskHeads.like(module.roi_heads).train()
    torch.manual_seed(1)
    found = losses(module, images, sizes, targets(2, masks=True))
    assert found.keys() == expected.keys()
    assert found["loss_mask"] != expected["loss_mask"]
    for name in found.keys() - {"loss_mask"}:
        torch.testing.assert_close(found[name], expected[name])
    found["loss_mask"].backward()
    assert all(p.grad.abs().sum() > 0 for p in module.roi_heads.mask_predictor.parameters())


def test_images_without_objects_have_losses():
    module = tiny("mask_rcnn", channels=16, pool="max", mask_loss="softmax", mask_head="mlp").train()
    images, sizes = canvases(SIZES)
    nothing = [
        {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64), "masks": torch.zeros(0, 96, 128)}
    ] * 2
    found = losses(module, images, sizes, nothing)
    assert found["loss_mask"] == 0
    assert all(torch.isfinite(value) for value in found.values())
    assert isinstance(module, MaskRCNN)
