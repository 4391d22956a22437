"""OverFeat's dense and ten-view classification against plain loops over cut-out windows; its class map; its verb."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_overfeat import LABELS, tiny

from regionrt.cli.main import main
from regionrt.train.checkpoint import Checkpoint, CheckpointError, write_checkpoint
from regionrt.train.classification import Classifier
from regionrt.train.models.overfeat_classes import class_map, dense_probabilities, ten_view_probabilities

H, W = 64, 96


def test_dense_classification_is_the_mean_of_the_likeliest_windows():
    module, x, sizes = tiny(windows=[24, 40]), torch.randn(3, 3, H, W), [(H, W), (H, 50), (34, W)]
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
    module = tiny()
    path = tmp_path / "overfeat.pt"
    write_checkpoint(path, Checkpoint("overfeat", module.config.to_json(), LABELS, module.state_dict()))
    return path


def test_photos_are_classified_and_drawn(checkpoint, tmp_path, capsys):
    photo = tmp_path / "photo.png"
    Image.fromarray(np.full((70, 90, 3), 128, np.uint8)).save(photo)
    assert main(["classify", str(checkpoint), str(photo), "--out", str(tmp_path / "maps"), "--json"]) == 0
    (said,) = json.loads(capsys.readouterr().out)["photos"]
    assert said["dense"]["label"] in LABELS[1:]
    assert 0 < said["views"]["score"] <= 1
    with Image.open(tmp_path / "maps" / "photo.jpg") as drawn:
        assert drawn.size == (90, 70)
        pixels = np.asarray(drawn).astype(int)
    assert (pixels[..., 0] > pixels[..., 2]).mean() > 0.9  # reddened by what is likely


def test_accuracy_on_a_data_set(checkpoint, capsys):
    data = "shapes:train=1,val=1,test=3,size=64x96"
    assert main(["classify", str(checkpoint), "--data", data, "--classes", ",".join(LABELS[1:]), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["data"]
    assert found["images"] <= 3
    assert all(0 <= found[name] <= 1 for name in ("dense", "views", "localisation"))


def test_what_is_refused(checkpoint, tmp_path, capsys):
    assert main(["classify", str(checkpoint)]) == 2
    assert "expected photos, or --data" in capsys.readouterr().err.replace("\n", " ")
    other = Checkpoint("faster_rcnn", {}, LABELS, {})
    with pytest.raises(CheckpointError, match="expected a checkpoint of overfeat, found one of faster_rcnn"):
        Classifier(other)
