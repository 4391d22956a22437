"""The registry of models: what is built, under which keys, and what is refused."""

from __future__ import annotations

import pytest
import torch
from tiny_nets import LABELS, TINY, canvases
from torch import nn
from torchvision import models
from torchvision.models import detection
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.ops.misc import FrozenBatchNorm2d

from regionrt.train.checkpoint import CheckpointError
from regionrt.train.initial import frozen_modules, init_backbone
from regionrt.train.models import MODELS, ModelError, build_model
from regionrt.train.models.backbones import BACKBONES
from regionrt.train.models.region import eager
from regionrt.train.models.torchvision_models import BUILDERS


@pytest.mark.parametrize("backbone", [name for name in BACKBONES if name != "resnet50"])  # as resnet18, but slow
def test_every_backbone_in_a_mask_rcnn(backbone):
    """The feature maps are exactly size / stride, so that anchors lie where the features come from."""
    module = build_model("mask_rcnn", {**TINY, "backbone": backbone, "detections": 5}, LABELS)
    assert isinstance(module, MaskRCNN)
    assert not module.training
    values = eager(module, *canvases([(96, 128)]))
    maps = [values[f"features.{i}"] for i in range(BACKBONES[backbone].levels)]
    coarsest = maps[0] if len(maps) == 1 else maps[-2]
    stride = BACKBONES[backbone].stride
    assert coarsest.shape[2:] == (96 // stride, 128 // stride)
    assert f"features.{len(maps)}" not in values
    assert values["masks"].shape[-2:] == (28, 28)


@pytest.mark.parametrize("backbone", ["squeezenet1_1", "mobilenet_v2"])
def test_neck_changes_the_channels_of_one_map(backbone):
    module = build_model("faster_rcnn", {**TINY, "backbone": backbone, "channels": 24}, LABELS)
    assert type(module) is FasterRCNN
    assert eager(module, *canvases([(96, 128)]))["features.0"].shape == (1, 24, 6, 8)


def test_anchors_cover_small_objects():
    """Blood cells of 30 to 250 px on a 640×480 photo are 24 to 200 px on a 512×384 canvas."""
    for name in BACKBONES:
        module = build_model("faster_rcnn", {"backbone": name, "representation": 8}, LABELS)
        sides = torch.cat([a[:, 2] - a[:, 0] for a in module.rpn.anchor_generator.cell_anchors])
        for wanted in (24, 48, 100, 200):
            assert ((sides / wanted).log2().abs() < 0.5).any(), (name, wanted)


def test_options_reach_the_module():
    config = {
        **TINY,
        "min_size": 90,
        "max_size": 120,
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
        "norm": "frozen",
        "backbone": "mobilenet_v2",
        "anchor_sizes": [20, 40],
        "aspect_ratios": [1.0],
        "score": 0.2,
        "nms": 0.4,
        "detections": 11,
        "proposals": 33,
        "proposal_nms": 0.6,
    }
    module = build_model("faster_rcnn", config, LABELS)
    assert (module.transform.min_size, module.transform.max_size) == ((90,), 120)
    assert module.transform.image_mean == module.transform.image_std == [0.5, 0.5, 0.5]
    assert any(isinstance(m, FrozenBatchNorm2d) for m in module.modules())
    assert not any(isinstance(m, nn.BatchNorm2d) for m in module.modules())
    assert module.rpn.anchor_generator.sizes == ((20, 40),)
    assert module.rpn.head.cls_logits.out_channels == 2
    heads = module.roi_heads
    assert (heads.score_thresh, heads.nms_thresh, heads.detections_per_img) == (0.2, 0.4, 11)
    assert module.rpn._post_nms_top_n["testing"] == 33
    assert module.rpn.nms_thresh == 0.6
    assert heads.box_predictor.cls_score.out_features == len(LABELS)


@pytest.mark.parametrize("builder", BUILDERS)
def test_torchvision_builders_take_their_own_state_dict(builder):
    """Every key and shape is the builder's, so that a user's file fits."""
    name = f"torchvision/{builder}"
    with torch.device("meta"):  # shapes only: the big ones have 46 million weights
        module = build_model(name, {"min_size": 96, "max_size": 128, "score": 0.5}, LABELS)
        theirs = getattr(detection, builder)(weights=None, weights_backbone=None, num_classes=len(LABELS))
    ours = module.state_dict()
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.state_dict().items()}
    assert module.transform.min_size == (96,)
    assert module.roi_heads.score_thresh == 0.5
    assert MODELS[name].task == ("instance-segmentation" if builder.startswith("mask") else "detection")


def test_every_torchvision_builder_of_the_two_families_is_there():
    found = {
        n for n in dir(detection) if n.startswith(("fasterrcnn_", "maskrcnn_")) and callable(getattr(detection, n))
    }
    assert found == set(BUILDERS)


def test_norm_eps_of_published_weights():
    with torch.device("meta"):
        module = build_model("torchvision/fasterrcnn_mobilenet_v3_large_320_fpn", {"norm_eps": 0.0}, LABELS)
    assert {m.eps for m in module.modules() if isinstance(m, nn.BatchNorm2d)} == {0.0}


@pytest.mark.parametrize(
    ("name", "config", "labels", "message"),
    [
        ("faster", {}, LABELS, "unknown model 'faster'.*faster_rcnn"),
        ("faster_rcnn", {"backbone": "vgg19"}, LABELS, "unknown backbone 'vgg19'.*squeezenet1_1"),
        ("faster_rcnn", {"colour": 1}, LABELS, "unknown option 'colour'.*backbone"),
        ("torchvision/maskrcnn_resnet50_fpn", {"backbone": "x"}, LABELS, "unknown option 'backbone'.*min_size"),
        ("faster_rcnn", {"size": [100, 200]}, LABELS, "96x192 or 112x208"),
        ("torchvision/maskrcnn_resnet50_fpn", {"size": [100, 200]}, LABELS, "96x192 or 128x224"),
        ("faster_rcnn", {"size": "big"}, LABELS, "give a list of whole numbers|height and width"),
        ("faster_rcnn", {"norm": "group"}, LABELS, '"batch" or "frozen"'),
        ("faster_rcnn", {"representation": 0}, LABELS, "representation 0"),
        ("faster_rcnn", {"score": 2}, LABELS, "score 2"),
        ("faster_rcnn", {"std": [1, 1, 0]}, LABELS, "std above 0"),
        ("faster_rcnn", {"backbone": "resnet18", "anchor_sizes": [32, 64]}, LABELS, "give 5 entries"),
        ("mask_rcnn", {"mask_layers": []}, LABELS, "mask_layers .*give the width of at least one layer"),
        ("faster_rcnn", {}, ("disc", "square"), "__background__"),
        ("faster_rcnn", {}, ("__background__",), "at least one class"),
        ("faster_rcnn", {}, ("__background__", "a", "a"), "each name once"),
        ("faster_rcnn", {"svd": {"roi_heads.box_head.fc9": 4}}, LABELS, "fc9.*lacks"),
        ("faster_rcnn", {"svd": {"rpn.head.conv.0.0": 4}}, LABELS, r"Conv2d: only .* 1×1 convolutions"),
        ("faster_rcnn", {"svd": {"rpn.head.cls_logits": {"rank": 4, "kind": "spatial"}}}, LABELS, "only k×k"),
        ("faster_rcnn", {"svd": {"rpn.head.cls_logits": {"rank": 4, "kind": "tucker"}}}, LABELS, "expected a rank or"),
        ("faster_rcnn", {"svd": {"rpn.head.cls_logits": True}}, LABELS, "expected a rank or .* found True"),
        ("faster_rcnn", {"svd": 4}, LABELS, "svd 4: give names and values"),
        ("faster_rcnn", {"svd": {"roi_heads.box_head.fc7": 4000}}, LABELS, "give 1..1024"),
    ],
)
def test_what_cannot_be_is_refused(name, config, labels, message):
    with pytest.raises(ModelError, match=message) as caught:
        build_model(name, config, labels)
    assert "\n" not in str(caught.value)


def test_canonical_scale_chooses_the_level_of_a_roi():
    module = build_model("mask_rcnn", {**TINY, "backbone": "resnet18", "canonical_scale": 56}, LABELS)
    pool = module.roi_heads.mask_roi_pool
    features = {str(i): torch.full((1, 256, 24 // 2**i, 32 // 2**i), float(i)) for i in range(4)}
    for side, index in ((20, 0), (30, 1), (60, 2)):  # floor(4 + log2(side / 56)) is 2, 3, 4; stride 4 is level 2
        found = pool(features, [torch.tensor([[0.0, 0, side, side]])], [(96, 128)])
        assert found[0, 0, 3, 3] == index
    assert module.roi_heads.box_roi_pool.canonical_scale == 56


def test_svd_pairs_take_the_place_of_layers():
    config = {**TINY, "svd": {"roi_heads.box_head.fc6": 7, "roi_heads.box_predictor.bbox_pred": 3}}
    module = build_model("faster_rcnn", config, LABELS)
    first, second = module.roi_heads.box_head.fc6
    assert first.weight.shape == (7, 512 * 49)
    assert first.bias is None
    assert second.weight.shape == (32, 7)
    assert second.bias is not None
    values = eager(module, *canvases([(96, 128)]))
    assert values["box_deltas"].shape[-1] == 4 * len(LABELS)


def test_pairs_of_convolutions_take_the_place_of_layers():
    svd = {
        "backbone.body.layer2.0.conv1": {"rank": 9, "kind": "spatial"},  # 3×3, stride 2
        "backbone.body.layer2.0.downsample.0": {"rank": 5, "bias": True},  # 1×1, stride 2, without bias
        "backbone.fpn.inner_blocks.3.0": 6,
        "rpn.head.conv.0.0": {"rank": 7, "kind": "spatial"},
    }
    whole = build_model("mask_rcnn", {**TINY, "backbone": "resnet18"}, LABELS)
    module = build_model("mask_rcnn", {**TINY, "backbone": "resnet18", "svd": svd}, LABELS)
    x = torch.randn(1, 64, 12, 10)
    for name in list(svd)[:2]:
        pair, layer = (m.get_submodule(name) for m in (module, whole))
        assert pair(x).shape == layer(x).shape
    shapes = {name: [tuple(part.weight.shape) for part in module.get_submodule(name)] for name in svd}
    assert shapes == {
        "backbone.body.layer2.0.conv1": [(9, 64, 3, 1), (128, 9, 1, 3)],
        "backbone.body.layer2.0.downsample.0": [(5, 64, 1, 1), (128, 5, 1, 1)],
        "backbone.fpn.inner_blocks.3.0": [(6, 512, 1, 1), (256, 6, 1, 1)],
        "rpn.head.conv.0.0": [(7, 256, 3, 1), (256, 7, 1, 3)],
    }
    biases = {name: [part.bias is not None for part in module.get_submodule(name)] for name in svd}
    assert list(biases.values()) == [[False, False], [False, True], [False, True], [False, True]]
    for (name, before), after in zip(eager(whole, *canvases([(96, 128)])).items(),
                                     eager(module, *canvases([(96, 128)])).values(), strict=True):  # fmt: skip
        assert before.shape == after.shape, name


@pytest.mark.parametrize(
    ("name", "norm"),
    [("squeezenet1_1", "batch"), ("mobilenet_v2", "frozen"), ("mobilenet_v3_large", "batch"), ("resnet18", "frozen")],
)
def test_init_puts_each_weight_into_its_layer(name, norm, tmp_path):
    """The body then computes what the classifier's own layers compute."""
    torch.manual_seed(3)
    classifier = getattr(models, name)(weights=None).eval()
    torch.save(classifier.state_dict(), tmp_path / "weights.pth")
    module = build_model("faster_rcnn", {**TINY, "backbone": name, "norm": norm}, LABELS)
    notes = init_backbone(module, name, tmp_path / "weights.pth")
    assert len(notes) == 1
    first_left_out = {"mobilenet_v2": "features.14.", "resnet18": "fc.weight"}.get(name, "classifier.")
    assert f"of no use here: {first_left_out}" in notes[0]
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        body = module.backbone.body
        if name == "resnet18":
            stem = classifier.maxpool(classifier.relu(classifier.bn1(classifier.conv1(x))))
            torch.testing.assert_close(body(x)["0"], classifier.layer1(stem), atol=1e-5, rtol=1e-5)
        elif name == "mobilenet_v3_large":
            torch.testing.assert_close(body(x)["2"], classifier.features(x), atol=1e-5, rtol=1e-5)
        else:
            classifier.features[0] = body[0] if name == "squeezenet1_1" else classifier.features[0]  # its padding
            torch.testing.assert_close(body(x), classifier.features[: len(body)](x), atol=1e-5, rtol=1e-5)


def test_init_that_does_not_fit_changes_nothing(tmp_path):
    good = models.squeezenet1_1(weights=None).state_dict()
    module = build_model("faster_rcnn", TINY, LABELS)
    before = {k: v.clone() for k, v in module.state_dict().items()}
    conv = "features.0.weight"
    for broken, message in (
        ({k: v for k, v in good.items() if k != conv}, "1 keys are missing: backbone.body.0.weight"),
        (good | {"features.99.weight": torch.zeros(1)}, "1 keys are unexpected: features.99.weight"),
        (good | {conv: torch.zeros(64, 3, 5, 5)}, r"another shape: .*\[64, 3, 5, 5\] instead of \[64, 3, 3, 3\]"),
        ({"format": "regionrt/1"}, "RegionRT checkpoint"),
        ({"epoch": 3, "state_dict": {}}, "found 2 other entries"),
    ):
        torch.save(broken, tmp_path / "weights.pth")
        with pytest.raises(CheckpointError, match=message) as caught:
            init_backbone(module, "squeezenet1_1", tmp_path / "weights.pth")
        assert "\n" not in str(caught.value)
        assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())


def test_frozen_modules():
    module = build_model("faster_rcnn", {**TINY, "backbone": "resnet18"}, LABELS)
    held = frozen_modules(module, ["backbone.body.layer1", "rpn.head.conv.0"])
    still = {name for name, p in module.named_parameters() if not p.requires_grad}
    assert still == {
        n for n, _ in module.named_parameters() if n.startswith(("backbone.body.layer1.", "rpn.head.conv.0."))
    }
    assert module.backbone.body.layer1[0].bn1 in held
    with pytest.raises(ModelError, match=r"'backbon' names no layer.*backbone, rpn, roi_heads|transform"):
        frozen_modules(module, ["backbon"])
    with pytest.raises(ModelError, match="nothing to train"):
        frozen_modules(module, ["backbone", "rpn", "roi_heads"])
