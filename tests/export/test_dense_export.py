"""Label maps and the localiser through export, verify and load, at toy size; engines of TensorRT for RTX."""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from regionrt.export import ExportError, ExportOptions, export_bundle, verify
from regionrt.runtime import BundleError, load
from regionrt.runtime.build import BuildOptions, build_engines
from regionrt.runtime.bundle import Manifest
from regionrt.train.models import build_model
from regionrt.train.tasks import task_of
from regionrt.train.torch_runner import torch_predictor

NAMES = ("sky", "road", "car", "tree")
LABELS = ("__background__", *NAMES)
NETS = {
    "unet": {"width": 4, "depth": 2, "size": [32, 48]},
    "fcn8s": {"fc": 16, "size": [64, 96]},
    "segnet": {"width": 8, "depth": 3, "size": [32, 48]},
    "deconvnet": {"width": 8, "depth": 2, "fc": 16, "window": 5, "size": [32, 48]},
    "localiser": {"representation": 16, "size": [64, 96]},
}


def net(name: str, seed: int = 0) -> torch.nn.Module:
    """Random weights, and statistics of BatchNorm that are not those it begins with."""
    torch.manual_seed(seed)
    module = build_model(name, NETS[name], LABELS if name == "localiser" else NAMES)
    for layer in module.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.running_mean.normal_(0, 0.2)
            layer.running_var.uniform_(0.5, 1.5)
    return module


def labels_of(name: str) -> tuple[str, ...]:
    return LABELS if name == "localiser" else NAMES


PHOTOS = [
    (f"photo {k}", np.random.default_rng(k).integers(0, 256, size, np.uint8))
    for k, size in enumerate([(31, 47, 3), (32, 48, 3), (90, 60, 3)])
]


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bundles")
    return {name: export_bundle(net(name), folder / name, labels=labels_of(name)) for name in NETS}


@pytest.mark.parametrize("name", NETS)
def test_every_artefact_is_eager(name: str, bundles: dict[str, Path]) -> None:
    verdicts = verify(bundles[name], net(name), PHOTOS, batches=(1, 3))
    cut = ["staged"] * (name not in ("segnet", "deconvnet"))  # for ncnn; their decoders begin by unpooling
    assert [v.form for v in verdicts] == ["staged", "staged", *cut, "native", "portable"]
    for verdict in verdicts:
        assert verdict.passed, verdict.first_difference
        for found in verdict.agreements:
            assert found.share >= 0.999
            assert found.eager == (len(PHOTOS) if name == "localiser" else sum(_pixels(name)))
    values = {check.value for check in verdicts[-2].checks}
    assert values >= ({"boxes"} if name == "localiser" else {"logits", "labels"})
    if name in ("segnet", "deconvnet"):
        assert values >= {"pool_input.0", "places.1", "unpooled.1"}


def _pixels(name: str) -> list[int]:
    canvas = torch_predictor(net(name), NAMES).canvas
    return [int(np.prod(canvas.resized_size(*photo.shape[:2]))) for _, photo in PHOTOS]


@pytest.mark.parametrize("name", NETS)
def test_predictors_agree_in_the_photos_own_pixels(name: str, bundles: dict[str, Path]) -> None:
    eager = torch_predictor(net(name), labels_of(name))
    manifest = Manifest.read(bundles[name])
    assert manifest.task == ("localisation" if name == "localiser" else "segmentation")
    for artifact in manifest.artifacts:
        with load(bundles[name], artifact.backend, form=artifact.form) as predict:
            for wanted, found in zip(
                eager.batch([p for _, p in PHOTOS]), predict.batch([p for _, p in PHOTOS]), strict=True
            ):
                if name == "localiser":
                    assert found.labels.tolist() == wanted.labels.tolist()
                    np.testing.assert_allclose(found.boxes_xyxy, wanted.boxes_xyxy, atol=1e-3)
                else:
                    assert (found.labels == wanted.labels).mean() >= 0.999


def test_a_difference_is_found_where_it_arises(bundles: dict[str, Path]) -> None:
    """The same net with one decoder layer changed: what is before it agrees, the first that does not is named."""
    other = net("segnet")
    with torch.no_grad():
        other.decoder[1][0].weight.mul_(1.5)
    (verdict,) = verify(bundles["segnet"], other, PHOTOS[:1], batches=(1,), forms=("native",))
    assert not verdict.passed
    failed = {check.value for check in verdict.checks if not check.passed}
    assert failed == {"unpool_input.2"}
    assert verdict.first_difference.startswith("decoder features (unpool_input.2): error")


def test_labels_alone_decide_where_no_stage_is_seen(bundles: dict[str, Path]) -> None:
    (verdict, *_) = verify(bundles["unet"], net("unet", seed=5), PHOTOS, batches=(1,), forms=("staged",))
    assert not verdict.passed
    assert verdict.first_difference.startswith("label map (labels)")


@pytest.mark.parametrize("name", ["unet", "segnet", "deconvnet", "localiser"])
def test_fp16(name: str, tmp_path: Path) -> None:
    bundle = export_bundle(net(name), tmp_path / "half", ExportOptions(precision="fp16"), labels=labels_of(name))
    for verdict in verify(bundle, net(name), PHOTOS, batches=(1,)):
        assert verdict.passed, verdict.first_difference


@pytest.mark.skipif(find_spec("tensorrt_rtx") is None, reason="needs tensorrt-rtx")
@pytest.mark.parametrize("name", NETS)
def test_engines_build(name: str, bundles: dict[str, Path], tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(bundles[name], tmp_path / "bundle"))
    build_engines(bundle, "tensorrt-rtx", BuildOptions(compute_capability=("8.6",)))
    engine = next(a for a in Manifest.read(bundle).artifacts if a.engine is not None)
    assert engine.form == "portable"
    assert {"name": "labels", "dtype": "int32" if name == "localiser" else "uint8"}.items() <= dict(
        next(o for o in engine.outputs if o["name"] == "labels")
    ).items()


def test_probabilities_by_option(tmp_path: Path) -> None:
    bundle = export_bundle(net("unet"), tmp_path / "b", ExportOptions(probabilities=True), labels=NAMES)
    for verdict in verify(bundle, net("unet"), PHOTOS[:2], batches=(1,)):
        assert verdict.passed, verdict.first_difference
        assert "probabilities" in {check.value for check in verdict.checks}
    with load(bundle) as predict:
        found = predict(PHOTOS[0][1])
    assert found.probabilities.shape == (4, 31, 47)
    np.testing.assert_allclose(found.probabilities.sum(0), 1, atol=1e-5)
    assert np.array_equal(found.probabilities.argmax(0), found.labels)


def test_a_dynamic_canvas(tmp_path: Path) -> None:
    """Any size in steps of the stride, unpooling included."""
    bundle = export_bundle(net("segnet"), tmp_path / "b", ExportOptions(size=(48, 64), dynamic=True), labels=NAMES)
    photos = [("a", PHOTOS[0][1]), ("b", np.random.default_rng(9).integers(0, 256, (17, 41, 3), np.uint8))]
    for verdict in verify(bundle, net("segnet"), photos, batches=(1, 2)):
        assert verdict.passed, verdict.first_difference
    with load(bundle) as predict:
        assert [found.image_size for found in predict.batch([photo for _, photo in photos])] == [(31, 47), (17, 41)]


@pytest.mark.skipif(find_spec("tensorrt_rtx") is None, reason="needs tensorrt-rtx")
def test_a_localiser_with_a_pyramid_takes_any_size(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = build_model("localiser", NETS["localiser"] | {"pyramid": [3, 2, 1], "enlarge": False}, LABELS).eval()
    bundle = export_bundle(module, tmp_path / "b", ExportOptions(size=(64, 96), dynamic=True), labels=LABELS)
    sizes = {task_of(module).canvas_of(module, (64, 96), True).place([photo])[0].shape for _, photo in PHOTOS}
    assert len(sizes) > 1
    for verdict in verify(bundle, module, PHOTOS, batches=(1, 3)):
        assert verdict.passed, verdict.first_difference
        assert all(found.matched == len(PHOTOS) for found in verdict.agreements)
    values = {check.value for check in verdict.checks}
    assert values >= {"features.0", "roi_features.0", "boxes"}
    build_engines(bundle, "tensorrt-rtx", BuildOptions(compute_capability=("8.6",)))


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("unet", {"score": 0.5, "proposals": 10}, "score, proposals: a net for segmentation has no such threshold"),
        ("unet", {"candidates": 10}, r"candidates: a net for segmentation .* leave it out \(it has none\)"),
        ("localiser", {"nms": 0.5, "merge": 0.5}, "nms, merge: a net for localisation has no such threshold"),
        ("unet", {"precision": "fp16", "ops": ("staged",)}, "a net without regions is one stage"),
        ("localiser", {"probabilities": True}, "probabilities are of segmentation nets"),
    ],
)
def test_options_of_other_nets(name: str, options: dict, expected: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=expected):
        export_bundle(net(name), tmp_path / "b", ExportOptions(**options), labels=labels_of(name))
    assert not (tmp_path / "b").exists()


def test_modules_and_labels_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="expected 4 labels"):
        export_bundle(net("unet"), tmp_path / "b", labels=NAMES[:3])
    with pytest.raises(ExportError, match=r"call module.eval\(\) first"):
        export_bundle(net("unet").train(), tmp_path / "b", labels=NAMES)
    with pytest.raises(ExportError, match="expected torchvision's FasterRCNN or MaskRCNN, found Conv2d"):
        export_bundle(torch.nn.Conv2d(3, 4, 1).eval(), tmp_path / "b", labels=NAMES)


def test_label_maps_have_no_scores(bundles: dict[str, Path]) -> None:
    with pytest.raises(BundleError, match=r"score threshold 0.5: label maps have no scores"):
        load(bundles["unet"], score_threshold=0.5)


def test_a_manifest_of_label_maps(bundles: dict[str, Path], tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(bundles["unet"], tmp_path / "bundle"))
    content = json.loads((bundle / "manifest.json").read_text())
    assert content["thresholds"] == {}
    assert content["canvas"]["enlarge"] is False
    assert content["artifacts"][0]["outputs"] == [{"name": "labels", "dtype": "uint8", "shape": ["batch", 32, 48]}]
    assert Manifest.read(bundle).labels == NAMES
