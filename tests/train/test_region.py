"""`region.eager` and `region.losses` against torchvision's own forward, and the canvas contract."""

from __future__ import annotations

import pytest
import torch
from tiny_nets import LABELS, TINY, canvases, targets, tiny
from torchvision.models.detection.roi_heads import paste_masks_in_image
from torchvision.ops import box_iou

from regionrt.train.models import ModelError, build_model
from regionrt.train.models.region import canvas_of, eager, losses, normalise, stride_of, thresholds_of

# Of an image of the canvas's own size, and of one with padding: neither is resized by torchvision (shorter side 96).
SIZES = [(96, 128), (96, 104)]


def as_torchvision(images, sizes):
    return [image[:h, :w].permute(2, 0, 1).float() / 255 for image, (h, w) in zip(images, sizes.tolist(), strict=True)]


@pytest.mark.parametrize(
    ("name", "backbone"),
    [("faster_rcnn", "squeezenet1_1"), ("faster_rcnn", "resnet18"), ("mask_rcnn", "mobilenet_v3_large")],
)
def test_eager_is_torchvisions_forward(name, backbone):
    """Same network, other code: torchvision differs only by the rounding of its class-shifted NMS."""
    module = tiny(name, backbone=backbone)
    images, sizes = canvases(SIZES)
    with torch.no_grad():
        expected = module(as_torchvision(images, sizes))
    values = eager(module, images, sizes)
    for i, theirs in enumerate(expected):
        count = int(values["num_detections"][i])
        assert count > 20
        boxes, scores, labels = (values[k][i, :count] for k in ("boxes", "scores", "labels"))
        assert abs(count - len(theirs["boxes"])) <= 1
        same = (box_iou(boxes, theirs["boxes"]) > 0.99) & (labels[:, None] == theirs["labels"])
        same &= (scores[:, None] - theirs["scores"]).abs() < 1e-4
        assert same.any(1).float().mean() >= 0.97
        if name == "mask_rcnn":
            h, w = sizes[i].tolist()
            pasted = paste_masks_in_image(values["masks"][i, :count, None], boxes, (h, w))
            best = same.float().argmax(1)[same.any(1)]
            torch.testing.assert_close(pasted[same.any(1)], theirs["masks"][best], atol=1e-3, rtol=0)


@pytest.mark.parametrize(("name", "backbone"), [("faster_rcnn", "squeezenet1_1"), ("mask_rcnn", "resnet18")])
def test_losses_are_torchvisions(name, backbone):
    module = tiny(name, backbone=backbone, norm="frozen").train()
    images, sizes = canvases(SIZES)
    goal = targets(2, masks=name == "mask_rcnn")
    cut = [dict(target) for target in goal]
    if name == "mask_rcnn":
        cut[1]["masks"] = cut[1]["masks"][:, :, : SIZES[1][1]]
    module.transform._skip_resize = True  # it would draw the size of each image from the generator
    torch.manual_seed(1)
    expected = module(as_torchvision(images, sizes), cut)
    torch.manual_seed(1)
    found = losses(module, images, sizes, goal)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, atol=1e-5, rtol=1e-4)


def test_losses_in_bf16_keep_boxes_fp32():
    module = tiny().train()
    images, sizes = canvases(SIZES)
    torch.manual_seed(1)
    exact = losses(module, images, sizes, targets(2))
    seen = []
    hook = module.roi_heads.box_roi_pool.register_forward_pre_hook(lambda _, inputs: seen.extend(inputs[1]))
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = losses(module, images, sizes, targets(2))
    hook.remove()
    assert all(boxes.dtype == torch.float32 for boxes in seen)
    assert any((boxes != boxes.bfloat16().float()).any() for boxes in seen)
    # bf16 has 8 bits of mantissa; the nets' own sums lose a percent or so
    assert sum(rounded.values()).item() == pytest.approx(sum(exact.values()).item(), rel=0.1)
    assert not module.rpn.head._forward_hooks


def test_losses_with_an_image_without_objects():
    module = tiny("mask_rcnn").train()
    images, sizes = canvases(SIZES)
    nothing = {key: value[:0] for key, value in targets(1, masks=True)[0].items()}
    goal = [*targets(1, masks=True), nothing]
    total = sum(losses(module, images, sizes, goal).values())
    total.backward()
    assert torch.isfinite(total)


def test_pixels_outside_the_valid_part_do_not_matter():
    module = tiny()
    images, sizes = canvases([(96, 104), (64, 128)])
    noisy = images.clone()
    noisy[0, :, 104:] = 255
    noisy[1, 64:] = 77
    clean, dirty = eager(module, images, sizes), eager(module, noisy, sizes)
    for name, value in clean.items():
        torch.testing.assert_close(dirty[name], value, rtol=0, atol=0)
    for i, (h, w) in enumerate(sizes.tolist()):
        for name in ("rois", "boxes"):
            boxes = clean[name][i]
            assert boxes[:, 0::2].max() <= w
            assert boxes[:, 1::2].max() <= h


def test_scales_are_the_canvass_after_torchvision_saw_mostly_padding():
    """torchvision infers the pools' scales once, from valid sizes: much padding makes them twice too fine."""
    module = tiny(backbone="resnet18")
    images, sizes = canvases([(96, 60), (60, 60)])
    expected = eager(module, images, sizes)
    module.roi_heads.box_roi_pool.scales = [1 / 2, 1 / 4, 1 / 8, 1 / 16]
    found = eager(module, images, sizes)
    torch.testing.assert_close(found["roi_features"], expected["roi_features"], rtol=0, atol=0)
    assert module.roi_heads.box_roi_pool.scales == [1 / 4, 1 / 8, 1 / 16, 1 / 32]


def test_batch_is_its_images():
    """Padded slots and other images influence nothing."""
    module = tiny("mask_rcnn")
    images, sizes = canvases([(96, 128), (80, 100), (33, 128)])
    together = eager(module, images, sizes)
    for i in range(3):
        alone = eager(module, images[i : i + 1], sizes[i : i + 1])
        for name in ("roi_counts", "num_detections", "labels"):
            assert torch.equal(alone[name][0], together[name][i])
        for name in ("rois", "boxes", "scores", "masks"):
            torch.testing.assert_close(alone[name][0], together[name][i], rtol=1e-3, atol=1e-3)


def test_padding_and_shapes():
    module = tiny("mask_rcnn", detections=7)
    images, sizes = canvases(SIZES)
    with torch.no_grad():
        module.roi_heads.box_predictor.cls_score.bias[0] = 1000  # nothing is found
    values = eager(module, images, sizes)
    slots, classes = TINY["proposals"], len(LABELS)
    assert values["num_detections"].tolist() == [0, 0]
    assert values["num_detections"].dtype == values["labels"].dtype == values["roi_index"].dtype == torch.int32
    assert values["overflow"].tolist() == [0, 0]
    for name, padding in {"boxes": 0, "scores": -1, "labels": -1, "roi_index": -1, "masks": 0}.items():
        assert (values[name] == padding).all(), name
    assert values["boxes"].shape == (2, 7, 4)
    assert values["masks"].shape == (2, 7, 28, 28)
    assert values["mask_roi_features"].shape == (2, 7, 512, 14, 14)
    assert values["class_logits"].shape == (2, slots, classes)
    assert values["box_deltas"].shape == (2, slots, 4 * classes)
    heads = module.roi_heads
    with torch.no_grad():
        on_zero = heads.box_predictor(heads.box_head(torch.zeros(1, 512, 7, 7)))[0][0]
    for i, count in enumerate(values["roi_counts"].tolist()):
        assert 0 < count < slots
        assert (values["rois"][i, :count, 2:] > values["rois"][i, :count, :2]).all()
        for name in ("rois", "roi_scores", "roi_features"):
            assert (values[name][i, count:] == 0).all(), name
        torch.testing.assert_close(values["class_logits"][i, -1], on_zero)
    assert values["objectness.0"].shape == values["rpn_deltas.0"].shape[:2] == (2, len(values["anchors.0"]))


def test_candidates_beyond_the_cap_are_counted():
    module = tiny(detections=300)
    images, sizes = canvases(SIZES)
    free = eager(module, images, sizes)
    capped = eager(module, images, sizes, candidates=9)
    for i, count in enumerate(free["roi_counts"].tolist()):
        scores = free["class_logits"][i, :count].softmax(-1)[:, 1:]
        above = int((scores > module.roi_heads.score_thresh).sum())
        assert capped["overflow"][i] == above - 9 > 0
        assert capped["num_detections"][i] <= 9
        best = scores.flatten().sort(descending=True)[0][:9]
        assert capped["scores"][i, 0] == best[0]
        assert capped["scores"][i, : capped["num_detections"][i]].min() >= best[-1]
    assert free["overflow"].tolist() == [0, 0]


def test_roi_index_says_where_a_detection_comes_from():
    module = tiny()
    images, sizes = canvases(SIZES)
    values = eager(module, images, sizes)
    for i, count in enumerate(values["num_detections"].tolist()):
        rows = values["roi_index"][i, :count].long()
        scores = values["class_logits"][i].softmax(-1)[rows, values["labels"][i, :count].long()]
        torch.testing.assert_close(scores, values["scores"][i, :count])


def test_fp64_is_close_to_fp32():
    module = tiny(backbone="mobilenet_v2")
    images, sizes = canvases(SIZES)
    single = eager(module, images, sizes)
    double = eager(module.double(), images, sizes)
    assert double["boxes"].dtype == torch.float64
    torch.testing.assert_close(double["features.0"].float(), single["features.0"], rtol=1e-3, atol=1e-4)


def test_modes_are_checked():
    module = tiny()
    images, sizes = canvases(SIZES)
    with pytest.raises(ValueError, match=r"module\.train"):
        losses(module, images, sizes, targets(2))
    with pytest.raises(ValueError, match=r"module\.eval"):
        eager(module.train(), images, sizes)


def test_normalise_is_torchvisions_then_zero():
    module = tiny(mean=[0.1, 0.2, 0.3], std=[0.5, 0.6, 0.7])
    images, sizes = canvases(SIZES)
    transform = module.transform
    found = normalise(images, sizes, transform.image_mean, transform.image_std)
    expected = transform(as_torchvision(images, sizes))[0].tensors
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("backbone", "stride"),
    [("squeezenet1_1", 16), ("mobilenet_v2", 16), ("mobilenet_v3_large", 32), ("resnet18", 32), ("resnet50", 32)],
)
def test_stride_is_probed_without_traces(backbone, stride):
    module = build_model("faster_rcnn", {"backbone": backbone, "representation": 8}, LABELS).train()
    module.backbone.eval()
    before = {k: v.clone() for k, v in module.state_dict().items()}
    assert stride_of(module) == stride
    assert module.training
    assert not module.backbone.training
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())


def test_canvas_of():
    module = tiny(size=[96, 64])
    canvas = canvas_of(module)
    assert (canvas.height, canvas.width, canvas.min_size, canvas.max_size, canvas.multiple) == (96, 64, 64, 96, 16)
    assert canvas_of(module, (160, 192), dynamic=True).dynamic
    del module.canvas_size  # a live module of the user's: landscape, by its own rule
    assert (canvas_of(module).height, canvas_of(module).width) == (64, 96)
    with pytest.raises(ModelError, match=r"100x200.*stride 16.*96x192 or 112x208"):
        canvas_of(module, (100, 200))
    with pytest.raises(ModelError, match="16x16"):
        canvas_of(module, (0, 16))


def test_thresholds_of():
    found = thresholds_of(tiny(score=0.3, nms=0.4, detections=9, proposal_nms=0.6))
    assert found == {
        "score": 0.3,
        "nms": 0.4,
        "detections": 9,
        "proposals": 200,
        "proposal_nms": 0.6,
        "candidates": 3840,
    }
