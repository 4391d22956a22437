"""OverFeat's dense and ten-view classification against plain loops over cut-out windows; its class map; its verb."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_overfeat import LABELS, tiny
from torch.nn.functional import adaptive_avg_pool2d

from regionrt.cli.main import main
from regionrt.train.checkpoint import Checkpoint, CheckpointError, read_checkpoint, write_checkpoint
from regionrt.train.classification import Accuracy, Classes, Classifier, accuracy
from regionrt.train.data import open_data
from regionrt.train.data.sample import Sample
from regionrt.train.models.overfeat import Overfeat
from regionrt.train.models.overfeat_classes import class_map, dense_probabilities, ten_view_probabilities

H, W = 64, 96


def test_dense_classification_is_the_mean_of_the_likeliest_windows():
    module, x, sizes = tiny(), torch.randn(2, 3, H, W), [(H, W), (40, 50)]
    found = dense_probabilities(module, x, torch.tensor(sizes))
    for image, (height, width) in enumerate(sizes):
        best = []
        for mirrored in (False, True):
            view = x[image].flip(2) if mirrored else x[image]
            for number, scale in enumerate(module.layout((H, W)).scales):
                windows = module.sliding.windows((H, W), scale)
                across, down = windows[:, [0, 2]].mean(1), windows[:, [1, 3]].mean(1)
                valid = (down < height) & ((across > W - width) if mirrored else (across < width))
                logits, _ = module.of_crops(module.crops(view, number))
                best.append(logits[valid].softmax(1).max(0).values)
        torch.testing.assert_close(found[image], torch.stack(best).mean(0), atol=1e-4, rtol=1e-4)


def test_ten_views_are_corners_and_middle_of_the_photo_and_their_mirror_images():
    module, x = tiny(windows=[24, 40]), torch.randn(2, 3, H, W)
    sizes = [(H, W), (50, 60)]
    found = ten_view_probabilities(module, x, torch.tensor(sizes))
    windows = module.sliding.windows((H, W), module.layout((H, W)).scales[1])
    for image, (height, width) in enumerate(sizes):
        inside = (windows[:, 3] <= height + 0.5) & (windows[:, 2] <= width + 0.5)
        lows = windows[inside, :2]
        left, top, right, bottom = *lows.min(0).values, *lows.max(0).values
        corners = [(left, top), (right, top), (left, bottom), (right, bottom)]
        xs, ys = lows[:, 0].unique(), lows[:, 1].unique()
        corners.append((xs[(len(xs) - 1) // 2], ys[(len(ys) - 1) // 2]))
        places = [int(torch.where((windows[:, :2] == torch.stack(corner)).all(1))[0]) for corner in corners]
        crops = module.crops(x[image], 1, places)
        wanted = torch.stack([module.of_crops(each)[0].softmax(1) for each in (crops, crops.flip(3))]).mean((0, 1))
        torch.testing.assert_close(found[image], wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("size", [(H, W), (H, 50), (34, W)])
def test_the_class_map_is_linear_between_the_middles_of_windows(size):
    module, x = tiny(windows=[24, 40]), torch.randn(1, 3, H, W)
    found = class_map(module, x, torch.tensor([size]))
    assert found.shape == (1, len(LABELS), H, W)
    torch.testing.assert_close(found.sum(1), torch.ones(1, H, W))
    layout, shares = module.layout((H, W)), module(x)[0].softmax(-1)[0].detach().numpy()
    middles = ((layout.windows[:, :2] + layout.windows[:, 2:]) / 2).numpy()
    wanted, start = np.zeros((len(LABELS), H, W)), 0
    for scale in layout.scales:
        rows = slice(start, start + scale.rows * scale.columns)
        start = rows.stop
        across, down = middles[rows][: scale.columns, 0], middles[rows][:: scale.columns, 1]
        for label in range(len(LABELS)):
            valid = np.ix_(down < size[0], across < size[1])
            of_windows = shares[rows, label].reshape(scale.rows, scale.columns)[valid]
            wide = np.stack([np.interp(np.arange(W) + 0.5, across[across < size[1]], row) for row in of_windows])
            columns = [np.interp(np.arange(H) + 0.5, down[down < size[0]], column) for column in wide.T]
            wanted[label] += np.stack(columns, 1)
    np.testing.assert_allclose(found[0].numpy(), wanted / len(layout.scales), atol=1e-4)


def test_a_strip_without_a_windows_middle_is_classified_by_the_first_windows():
    module, x = tiny(), torch.randn(1, 3, H, W)
    narrow, first = torch.tensor([[3, 3]]), []
    for view, column in ((x[0], 0), (x[0].flip(2), -1)):
        for number, scale in enumerate(module.layout((H, W)).scales):
            logits, _ = module.of_crops(module.crops(view, number, [column % scale.columns]))
            first.append(logits[0].softmax(0))
    torch.testing.assert_close(
        dense_probabilities(module, x, narrow)[0], torch.stack(first).mean(0), atol=1e-4, rtol=1e-4
    )
    assert class_map(module, x, narrow).isfinite().all()


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "overfeat.pt"
    write_checkpoint(path, checkpoint_of(tiny()))
    return path


def checkpoint_of(module: Overfeat) -> Checkpoint:
    return Checkpoint("overfeat", module.config.to_json(), LABELS, module.state_dict())


def test_photos_are_classified_and_drawn(checkpoint, tmp_path, capsys):
    photo, pixels = tmp_path / "photo.png", np.random.default_rng(3).integers(0, 256, (7, 9, 3), np.uint8)
    pixels = pixels.repeat(10, 0).repeat(10, 1)
    Image.fromarray(pixels).save(photo)
    assert main(["classify", str(checkpoint), str(photo), "--out", str(tmp_path / "maps"), "--json"]) == 0
    (said,) = json.loads(capsys.readouterr().out)["photos"]
    assert said["dense"]["label"] in LABELS[1:]
    assert 0 < said["views"]["score"] <= 1
    with Image.open(tmp_path / "maps" / "photo.jpg") as drawn:
        shown = np.asarray(drawn).astype(float)
    classifier = Classifier(read_checkpoint(checkpoint))
    apart = {label: np.abs(classifier.picture(pixels, LABELS.index(label)) - shown).mean() for label in LABELS[1:]}
    assert min(apart, key=apart.__getitem__) == said["dense"]["label"]
    assert apart[said["dense"]["label"]] < 4  # by JPEG


def test_a_class_is_red_where_it_is(monkeypatch):
    """Windows tell the classes by colour: the left of the photo is of class 1, the right of class 2."""
    classifier = Classifier(checkpoint_of(tiny(windows=[12])))
    module = classifier.module
    monkeypatch.setattr(module, "features", lambda x, scale: adaptive_avg_pool2d(x, (scale.rows, scale.columns)))
    monkeypatch.setattr(module.classifier, "forward", lambda x: 20 * x[:, [1, 0, 2]])  # red is 1, blue 2
    photo = np.zeros((90, 60, 3), np.uint8)  # upright: the right of the canvas is padding
    photo[:, :30, 0], photo[:, 30:, 2] = 255, 255
    for label, here, there in ((1, slice(0, 20), slice(40, 60)), (2, slice(40, 60), slice(0, 20))):
        drawn = classifier.picture(photo, label).astype(int)
        red = drawn[..., 0] - drawn[..., 2]
        assert (red[:, here] > 150).all()
        assert (red[:, there] < 10).all()


class Knowing:
    """Says what it was told of the photo with this number in its first pixel."""

    def __init__(self, dense: list[int], views: list[int]) -> None:
        self.told = dense, views

    def __call__(self, image: np.ndarray) -> Classes:
        dense, views = (np.eye(3, dtype=np.float32)[told[image[0, 0, 0]] - 1] for told in self.told)
        return Classes(dense, views)


def sample(number: int, labels: list[int]) -> Sample:
    """A photo whose objects are smaller and smaller."""
    boxes = np.array([[0, 0, 9 - k, 9 - k] for k in range(len(labels))], np.float32).reshape(-1, 4)
    pixels, size = np.full((10, 10, 3), number, np.uint8), (10, 10)
    ignore, areas = np.zeros(len(labels), bool), boxes[:, 2] * boxes[:, 3]
    return Sample(number, str(number), boxes, np.array(labels, np.int64), None, ignore, areas, size, pixels)


def test_accuracy_is_how_often_the_largest_objects_class_is_named():
    data = [sample(0, [1, 2]), sample(1, [3]), sample(2, []), sample(3, [2, 3, 3]), sample(4, [3, 1])]
    classifier = Knowing(dense=[1, 3, 1, 2, 1], views=[2, 2, 1, 3, 3])
    assert accuracy(classifier, data) == Accuracy(4, 0.75, 0.25)
    assert accuracy(classifier, data, max_images=2) == Accuracy(2, 1.0, 0.0)
    nothing = accuracy(classifier, data[2:3])
    assert nothing.images == 0
    assert np.isnan([nothing.dense, nothing.views]).all()


def test_figures_of_a_data_set_are_said(checkpoint, capsys):
    data = "shapes:train=1,val=1,test=3,size=64x96"
    assert main(["classify", str(checkpoint), "--data", data, "--classes", ",".join(LABELS[1:]), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["data"]
    wanted = accuracy(Classifier(read_checkpoint(checkpoint)), open_data(data, "test", LABELS, LABELS[1:]))
    assert (found["images"], found["dense"], found["views"]) == (wanted.images, wanted.dense, wanted.views)
    assert 0 <= found["localisation"] <= 1


def test_what_is_refused(checkpoint, tmp_path, capsys):
    assert main(["classify", str(checkpoint)]) == 2
    assert "expected photos, or --data" in capsys.readouterr().err.replace("\n", " ")
    other = Checkpoint("faster_rcnn", {}, LABELS, {})
    with pytest.raises(CheckpointError, match="expected a checkpoint of overfeat, found one of faster_rcnn"):
        Classifier(other)
