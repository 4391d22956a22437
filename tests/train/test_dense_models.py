"""FCN, SegNet, DeconvNet, U-Net: their sizes, what they begin as, and unpooling against torch's own."""

from __future__ import annotations

import sys

import pytest
import torch
import torch.nn.functional as F
from torchvision import models

from regionrt.train.checkpoint import CheckpointError
from regionrt.train.initial import init_backbone
from regionrt.train.models import MODELS, ModelError, build_model, dense
from regionrt.train.models.dense import VOID, canvas_of, eager, losses
from regionrt.train.models.upsampling import bilinear_upsampling

LABELS = ("sky", "road", "car")
SMALL = {
    "fcn32s": {"size": [64, 96]},
    "fcn16s": {"size": [64, 96]},
    "fcn8s": {"size": [64, 96]},
    "segnet": {"width": 8, "depth": 3, "size": [48, 64]},
    "deconvnet": {"width": 8, "depth": 3, "fc": 16, "window": 3, "size": [48, 64]},
    "unet": {"width": 4, "depth": 3, "size": [48, 64]},
}


def small(name: str, **config):
    torch.manual_seed(0)
    return build_model(name, SMALL[name] | config, LABELS)


@pytest.mark.parametrize("name", SMALL)
def test_a_class_for_every_pixel_of_any_canvas(name: str) -> None:
    module = small(name)
    for cells in ((3, 4), (4, 3), (5, 5)):
        height, width = (cells_ * module.stride for cells_ in cells)
        assert module(torch.randn(2, 3, height, width)).shape == (2, 3, height, width)
    assert canvas_of(module).multiple == module.stride
    with pytest.raises(ModelError, match=r"is not a multiple of the stride"):
        canvas_of(module, (module.stride * 3, module.stride * 3 + 1))


@pytest.mark.parametrize("name", SMALL)
def test_the_loss_falls_and_void_teaches_nothing(name: str) -> None:
    module = small(name, **({"dropout": 0.0} if "dropout" in MODELS[name].defaults else {})).train()
    height, width = module.config.size
    images = torch.randint(0, 256, (2, height, width, 3), dtype=torch.uint8)
    sizes = torch.tensor([[height, width]] * 2, dtype=torch.int32)
    truth = (images.float().mean(-1) > 127).to(torch.uint8)
    optimizer = torch.optim.AdamW(module.parameters(), 1e-3)
    found = []
    for _ in range(8):
        optimizer.zero_grad()
        (loss,) = losses(module, images, sizes, truth).values()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    assert found[-1] < found[0]
    optimizer.zero_grad()
    (loss,) = losses(module, images, sizes, torch.full_like(truth, VOID)).values()
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad is None or not p.grad.any() for p in module.parameters())


def test_the_loss_is_the_weighted_mean_of_the_pixels_with_a_class() -> None:
    module = small("unet")
    module.register_buffer("class_weights", torch.tensor([1.0, 2.0, 5.0]), persistent=False)
    images = torch.randint(0, 256, (1, 48, 64, 3), dtype=torch.uint8)
    sizes = torch.tensor([[48, 64]], dtype=torch.int32)
    truth = torch.randint(0, 3, (1, 48, 64), dtype=torch.uint8)
    truth[:, :20] = VOID
    with torch.no_grad():
        (loss,) = losses(module, images, sizes, truth).values()
        logits = module(dense.normalised(module, images, sizes))
    wanted = F.cross_entropy(logits, truth.long(), torch.tensor([1.0, 2.0, 5.0]), ignore_index=VOID)
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-5)
    assert "class_weights" not in module.state_dict()


def test_upsampling_begins_bilinear() -> None:
    coarse = torch.randn(1, 3, 9, 7)
    for factor in (2, 8, 16):
        ours = bilinear_upsampling(3, factor)(coarse)
        theirs = F.interpolate(coarse, scale_factor=factor, mode="bilinear", align_corners=False)
        inner = (..., slice(factor, -factor), slice(factor, -factor))  # at the border torch repeats the edge
        torch.testing.assert_close(ours[inner], theirs[inner], atol=1e-5, rtol=1e-5)


def test_a_skip_begins_as_nothing() -> None:
    """FCN-8s starts as FCN-16s: what the finer map scores is zero at first, and doubling twice is bilinear."""
    finer, coarser = small("fcn8s"), small("fcn16s")
    shared = {k: v for k, v in coarser.state_dict().items() if k.startswith(("backbone.", "head."))}
    finer.load_state_dict(shared, strict=False)
    x = torch.randn(1, 3, 128, 160)
    inner = (..., slice(48, -48), slice(48, -48))
    torch.testing.assert_close(finer(x)[inner], coarser(x)[inner], atol=2e-2, rtol=0.1)
    torch.nn.init.ones_(finer.scores[0].weight)
    assert (finer(x) - coarser(x)).abs().max() > 1


@pytest.mark.parametrize("name", ["segnet", "deconvnet"])
def test_unpooling_is_torchs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole net with torch's max_pool2d and max_unpool2d, whose indices count in the map, in place of ours."""
    module, x = small(name), torch.randn(2, 3, 48, 64)
    ours = module(x)
    backbones, home = (sys.modules[f"regionrt.train.models.{file}"] for file in ("dense_backbones", name))

    def pooled(x, kernel, stride):
        return F.max_pool2d(x, kernel, stride, return_indices=True)

    def unpooled(x, places, like, kernel, stride):
        return F.max_unpool2d(x, places, kernel, stride, output_size=like.shape[2:])

    monkeypatch.setattr(backbones, "max_pool_argmax", pooled)
    monkeypatch.setattr(home, "max_unpool", unpooled)
    torch.testing.assert_close(module(x), ours, atol=1e-5, rtol=1e-5)


def test_the_sizes_of_the_papers() -> None:
    """VGG-16's convolutions twice are SegNet's 29.4 million weights; a U-Net of width 64 and depth 4 has 31.0."""

    def millions(name: str, labels=LABELS, **config) -> float:
        return sum(p.numel() for p in build_model(name, config, labels).parameters()) / 1e6

    assert millions("segnet", width=64, depth=5, size=[96, 128]) == pytest.approx(29.4, abs=0.1)
    assert millions("unet", width=64, depth=4, size=[96, 128]) == pytest.approx(31.0, abs=0.1)
    whole = millions("deconvnet", width=64, depth=5, fc=4096, size=[224, 224])
    assert 250 < whole < 255  # 252 M in the paper's own model
    assert millions("fcn8s", backbone="vgg16", fc=4096, kernel=7, size=[96, 128]) == pytest.approx(134.3, abs=0.2)


def test_vgg_weights_go_into_segnet(tmp_path) -> None:
    torch.manual_seed(1)
    theirs = models.vgg16_bn(weights=None).features.state_dict()
    torch.save({f"features.{key}": value for key, value in theirs.items()}, tmp_path / "vgg.pth")
    module = build_model("segnet", {"width": 64, "depth": 5, "size": [64, 64]}, LABELS)
    assert module.classifier == "vgg16_bn"
    assert init_backbone(module, module.classifier, tmp_path / "vgg.pth") == []
    assert all(torch.equal(module.backbone.body.state_dict()[key], value) for key, value in theirs.items())
    with pytest.raises((ModelError, CheckpointError), match="no backbone"):
        init_backbone(small("unet"), getattr(small("unet"), "classifier", None), tmp_path / "vgg.pth")


@pytest.mark.parametrize(
    ("name", "config", "expected"),
    [
        ("fcn32s", {"backbone": "squeezenet1_1"}, "gives maps of the strides"),
        ("fcn8s", {"backbone": "resnet7"}, "unknown backbone"),
        ("fcn8s", {"kernel": 4}, "give an odd number"),
        ("unet", {"depth": 0}, "depth 0: give 1 or more"),
        ("unet", {"depth": 9}, "give 1 to 8"),
        ("unet", {"witdh": 8}, "unknown option 'witdh'"),
        ("unet", {"dropout": 1.0}, "dropout 1.0"),
        ("segnet", {"depth": 6}, "give 1 to 5 poolings"),
        ("deconvnet", {"depth": 4, "window": 7, "size": [96, 128]}, "give at least 112 px each way"),
        ("unet", {"size": [100, 128]}, r"100x128 .* is not a multiple of the stride 16: give 96x128 or 112x128"),
    ],
)
def test_options_that_cannot_be(name: str, config: dict, expected: str) -> None:
    with pytest.raises(ModelError, match=expected):
        build_model(name, config, LABELS)


def test_labels_of_label_maps_need_no_background() -> None:
    with pytest.raises(ModelError, match="each name once"):
        build_model("unet", {}, ("a", "a"))
    with pytest.raises(ModelError, match="2 to 255 classes"):
        build_model("unet", {}, [str(i) for i in range(256)])


def test_eager_names_what_is_pooled_and_unpooled() -> None:
    module = small("segnet")
    images = torch.randint(0, 256, (1, 48, 64, 3), dtype=torch.uint8)
    values = eager(module, images, torch.tensor([[48, 64]], dtype=torch.int32))
    assert values["labels"].dtype == torch.uint8
    assert torch.equal(values["labels"], values["logits"].argmax(1).to(torch.uint8))
    assert {f"pooled.{k}" for k in range(3)} | {f"unpooled.{k}" for k in range(3)} <= values.keys()
    assert torch.equal(values["unpool_input.0"], values["pooled.2"])
    for k in range(3):
        assert torch.equal(values[f"pooled.{k}"], F.max_pool2d(values[f"pool_input.{k}"], 2))
    assert set(eager(module, images, torch.tensor([[48, 64]]), stages=False)) == {"labels"}
