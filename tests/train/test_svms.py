"""SVMs and ridge regressors as the last layers: against scikit-learn, on what they must separate, after training."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from tiny_proposal_nets import LABELS, TINY, boxes_in, instead_of_searching, tiny

from regionrt.runtime.selective_search import SelectiveSearch
from regionrt.train import svm_regions
from regionrt.train.checkpoint import module_from_checkpoint, read_checkpoint
from regionrt.train.data import open_data
from regionrt.train.models import ModelError
from regionrt.train.models.svd_pairs import with_svd_pairs
from regionrt.train.options import TrainOptions
from regionrt.train.svm_regions import Near, Regions, _Kept, regions_of, regions_of_all
from regionrt.train.svms import RIDGE, _regressors, _slope, _svms, fit_svms, without_regressors
from regionrt.train.torch_runner import torch_predictor
from regionrt.train.trainer import train

DATA = "shapes:train=10,val=3,test=3,size=64x96"


@pytest.fixture(autouse=True)
def _no_search(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    instead_of_searching(monkeypatch)


def regions(seed: int, labels=(1, 2)) -> Regions:
    """An image of two objects and 40 proposals; classes and background are clusters in 8 dimensions, 4 apart."""
    rng = np.random.default_rng(seed)
    labels = np.array(labels, np.int64)
    centres = 4 * np.eye(8)[:3]
    near = rng.integers(0, len(labels), 10) if len(labels) else np.zeros(0, np.int64)
    of_row = np.concatenate([labels, labels[near], np.zeros(30, np.int64)])
    overlap = np.zeros((len(of_row), len(labels)))
    overlap[np.arange(len(labels)), np.arange(len(labels))] = 1
    overlap[len(labels) + np.arange(len(near)), near] = 0.7
    fc7 = (centres[of_row] + rng.normal(0, 0.5, (len(of_row), 8))).astype(np.float32)
    return Regions(fc7, overlap, labels, len(near))


def near(seed: int) -> Near:
    """An image's ten proposals near objects of classes 1 and 2, whose targets are another linear map of 5 features."""
    rng = np.random.default_rng(seed)
    pooled, labels = rng.normal(0, 1, (10, 5)), rng.integers(1, 3, 10)
    return Near(pooled, labels, pooled @ (np.arange(20).reshape(5, 4) / 10) * labels[:, None] + 0.5)


def test_svms_separate_what_can_be_separated():
    images = [regions(seed) for seed in range(12)]
    weights, biases = _svms(images, 3, np.random.default_rng(0), 0)
    assert np.abs(weights[0]).max() == biases[0] == 0
    for image in map(regions, range(50, 60)):
        margins = image.fc7 @ weights.T + biases
        for row, label in enumerate(image.labels):
            assert margins[row, label] > 0 > margins[row, 3 - label]
        assert (margins[-30:, 1:] < 0).all()
    assert _slope(images, weights, biases) > 1  # separated, so the surest slope is among the largest


def test_a_class_without_positives_warns_and_is_never_found():
    images = [regions(seed, labels=(1, 1)) for seed in range(4)]
    with pytest.warns(UserWarning, match="no object of class 2"):
        weights, biases = _svms(images, 3, np.random.default_rng(0), 0)
    logits = images[0].fc7 @ weights.T + biases
    assert torch.from_numpy(logits).softmax(1)[:, 2].max() < 1e-6


def test_regressors_are_ridge_regressions_of_each_class():
    images = [near(seed) for seed in range(100)]
    weights, biases = _regressors(images, 4)
    for label in (1, 2):
        x = np.concatenate([i.pooled[i.labels == label] for i in images])
        y = np.concatenate([i.targets[i.labels == label] for i in images])
        centred = x - x.mean(0)
        wanted = np.linalg.solve(centred.T @ centred + RIDGE * np.eye(5), centred.T @ (y - y.mean(0))).T
        np.testing.assert_allclose(weights[4 * label : 4 * label + 4], wanted, rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(biases[4 * label : 4 * label + 4], y.mean(0) - wanted @ x.mean(0), rtol=1e-6)
    assert not weights[:4].any()  # the background
    assert not weights[12:].any()  # a class that nothing was near


@pytest.mark.parametrize("name", ["sppnet", "rcnn"])
def test_features_are_those_that_the_layers_will_read(name):
    module = tiny(name, crop=64, context=4) if name == "rcnn" else tiny(name)
    sample = open_data(DATA, "train")[0]
    found, _ = regions_of(module, sample, 20, np.random.default_rng(0))
    seen = []
    module.head.cls_score.register_forward_hook(lambda layer, inputs, output: seen.append(inputs[0]))
    with torch_predictor(module, LABELS) as predict:
        predict(sample.image(), sample.boxes)
    np.testing.assert_allclose(found.fc7[: len(sample.boxes)], seen[-1].numpy(), atol=1e-4)


def test_less_of_an_image_is_the_first_of_more():
    module, sample = tiny("sppnet"), open_data(DATA, "train")[0]
    wider, near = regions_of(module, sample, 9, np.random.default_rng(5))
    narrow, nearer = regions_of(module, sample, 4, np.random.default_rng(5))
    first = wider.first(4)
    assert len(first.fc7) == len(sample.boxes) + first.near + 4 < len(wider.fc7)
    for name in ("fc7", "overlap", "labels", "near"):
        np.testing.assert_allclose(getattr(first, name), getattr(narrow, name), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(near.first(4).pooled, nearer.pooled, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("budget", "most", "every"), [(10**6, 100, 1), (50_000, 25, 1), (20_000, 6, 1), (9_000, 6, 2)])
def test_features_stay_within_their_budget_with_the_same_share_of_each_image(budget, most, every, monkeypatch):
    monkeypatch.setattr(svm_regions, "BUDGET", budget)
    images = [regions(seed) for seed in range(40)]  # of 42 rows of 32 bytes
    kept = _Kept(100)
    for image in images:
        kept.add(image)
        assert sum(part.fc7.nbytes for part in kept.parts) <= budget
    assert (kept.most, kept.every) == (most, every)
    assert len(kept.parts) == len(images[::every])
    for part, image in zip(kept.parts, images[::every], strict=True):
        expected = np.concatenate([image.fc7[:2], image.fc7[2:12][:most], image.fc7[12:][:most]])
        np.testing.assert_array_equal(part.fc7, expected)
        assert len(part.overlap) == len(expected)
        assert part.near == min(10, most)


def test_what_is_left_out_for_the_budget_is_told(monkeypatch):
    module, data = tiny("sppnet"), open_data(DATA, "train")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        whole, _ = regions_of_all(module, data, 40, np.random.default_rng(0), lambda *_: None)
    monkeypatch.setattr(svm_regions, "BUDGET", sum(image.nbytes for image in whole) // 2)
    with pytest.warns(
        UserWarning, match="SVMs have more than .* GiB of features: .* at most 10 proposals an image are kept, not 40"
    ):
        kept, near = regions_of_all(module, data, 40, np.random.default_rng(0), lambda *_: None)
    assert len(kept) == len(near) == len(data)


def test_data_without_objects_is_refused():
    class Empty:
        def __len__(self):
            return 1

        def __getitem__(self, index):
            sample = open_data(DATA, "train")[0]
            sample.ignore[:] = True
            return sample

    with pytest.raises(ModelError, match="the training split has none"):
        fit_svms(tiny("sppnet"), Empty())


def test_training_ends_with_svms_in_the_place_of_the_softmax(tmp_path, monkeypatch):
    data = open_data(DATA, "train")
    known = {image.tobytes(): boxes for image, boxes in ((data[i].image(), data[i].boxes) for i in range(len(data)))}

    def search(self, image):
        """The objects, moved a little, among boxes anywhere."""
        own = known.get(image.tobytes(), np.zeros((0, 4), np.float32))
        return np.concatenate([own + 2, own - 2, boxes_in(image, 30)]).clip(0, [96, 64] * 2).astype(np.float32)

    monkeypatch.setattr(SelectiveSearch, "__call__", search)
    config = {**TINY, "representation": 64, "channels": 16, "dropout": 0.0, "proposals": 60, "rois_per_image": 24}
    # DDP, in one process: it refuses a step in which a layer that is to learn gets no gradient.
    options = TrainOptions(epochs=4, batch=2, lr=0.002, optimizer="adamw", evaluate_every=4,
                           accelerator="cpu", devices=1, strategy="ddp")  # fmt: skip
    told = []
    best = train("sppnet", DATA, tmp_path / "run", options, config=config, report=told.append)
    assert any("SVMs and ridge regressors" in row.get("note", "") for row in told)
    ours, softmax = read_checkpoint(best), read_checkpoint(tmp_path / "run" / "last.pt")
    (groups,) = (row["groups"] for row in told if "groups" in row)
    regressors = [softmax.state_dict[f"head.bbox_pred.{what}"] for what in ("weight", "bias")]
    assert [g["parameters"] for g in groups if g["frozen"]] == [sum(value.numel() for value in regressors)]
    before = module_from_checkpoint(softmax)
    for index in range(3):  # what validation judged
        image = data[index].image()
        boxes = np.concatenate([boxes_in(image, 20) + 10, data[index].boxes])
        clipped = boxes.clip(0, [96, 64] * 2)
        found = torch_predictor(before, ours.labels)(image, boxes).boxes_xyxy
        assert len(found)
        assert np.abs(found[:, None] - clipped).max(2).min(1).max() < 1e-3
    changed = {k for k, v in ours.state_dict.items() if not torch.equal(v, softmax.state_dict[k])}
    assert changed == {f"head.{layer}.{what}" for layer in ("cls_score", "bbox_pred") for what in ("weight", "bias")}
    module = module_from_checkpoint(ours)
    assert not module.head.cls_score.weight[0].any()
    rng = np.random.default_rng(options.seed)  # the same once more, from the features, which are as they were
    images, near_objects = zip(*(regions_of(module, data[index], 200, rng) for index in range(len(data))), strict=True)
    weights, biases = _svms(images, module.num_classes, rng, options.seed)
    slope = _slope(images, weights, biases)
    np.testing.assert_allclose(module.head.cls_score.weight.detach(), weights * slope, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(module.head.cls_score.bias.detach(), biases * slope, rtol=1e-3, atol=1e-5)
    ridges, _ = _regressors(near_objects, module.num_classes)
    assert ridges.any()
    np.testing.assert_allclose(module.head.bbox_pred.weight.detach(), ridges, rtol=1e-3, atol=1e-5)


def test_going_on_from_fitted_regressors_starts_without_them_and_needs_whole_layers():
    module = tiny("sppnet")
    assert without_regressors(module) == ("head.bbox_pred",)
    assert not module.head.bbox_pred.weight.any()
    assert not module.head.bbox_pred.bias.any()
    boxes = tiny("fast_rcnn").head.bbox_pred.weight
    assert without_regressors(module := tiny("fast_rcnn")) == ()
    assert torch.equal(module.head.bbox_pred.weight, boxes)
    with pytest.raises(ModelError, match=r"head.bbox_pred is split by SVD.*--layers fc6,fc7"):
        without_regressors(with_svd_pairs(tiny("sppnet"), {"head.bbox_pred": 4}))
