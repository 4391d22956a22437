"""A compressed checkpoint: what stands in its config, that it is rebuilt from it, trains on, and what is reported."""

from __future__ import annotations

import pytest
import torch

from regionrt.export import ExportError
from regionrt.export.compress import TruncatedSVD
from regionrt.export.compress.any_rank import AnyRank
from regionrt.export.compress.calibration import Photo, calibration_and_held_out
from regionrt.export.compress.checkpoint import CompressOptions, compress_checkpoint
from regionrt.train.checkpoint import (
    Checkpoint,
    module_from_checkpoint,
    read_checkpoint,
    write_checkpoint,
)
from regionrt.train.data import open_data
from regionrt.train.models import build_model
from regionrt.train.models.region import canvas_of, eager
from regionrt.train.options import TrainOptions
from regionrt.train.trainer import train

CONFIG = {"backbone": "squeezenet1_1", "size": [64, 64], "channels": 16, "representation": 48, "proposals": 40}
FC6, FC7 = "roi_heads.box_head.fc6", "roi_heads.box_head.fc7"
DATA = "shapes:train=6,val=2,test=2,size=64x64"
LABELS = open_data(DATA, "train").labels


@pytest.fixture(scope="module")
def whole() -> Checkpoint:
    torch.manual_seed(0)
    return Checkpoint("faster_rcnn", CONFIG, LABELS, build_model("faster_rcnn", CONFIG, LABELS).state_dict())


@pytest.fixture(scope="module")
def photos() -> list[Photo]:
    data = open_data(DATA, "train")
    return [Photo(data[i].name, data[i].image) for i in range(6)]


def outputs(checkpoint: Checkpoint, photo: Photo) -> dict[str, torch.Tensor]:
    module = module_from_checkpoint(checkpoint)
    images, sizes, _ = canvas_of(module).place([photo.pixels()])
    return eager(module, torch.from_numpy(images), torch.from_numpy(sizes))


def test_ranks_by_layer(whole):
    small, layers = compress_checkpoint(whole, CompressOptions({"fc6": 12, "fc7": 8}))
    assert [(layer.name, layer.rank) for layer in layers] == [(FC6, 12), (FC7, 8)]
    assert small.config["svd"] == {FC6: 12, FC7: 8}, "plain numbers, which older versions read"
    module, before = module_from_checkpoint(small), module_from_checkpoint(whole)
    fc6 = module.roi_heads.box_head.fc6
    assert [tuple(part.weight.shape) for part in fc6] == [(12, 16 * 49), (48, 12)]
    nearest = TruncatedSVD(12)(before.roi_heads.box_head.fc6)
    torch.testing.assert_close(fc6[1].weight @ fc6[0].weight, nearest[1].weight @ nearest[0].weight)
    assert all(0 < layer.energy < 1 and layer.weights_after < layer.weights_before for layer in layers)
    assert isinstance(before.roi_heads.box_head.fc6, torch.nn.Linear), "the original is whole"


def test_every_kind_of_split_is_rebuilt_from_the_file(whole, photos, tmp_path):
    layers = ("fc6", "neck", "rpn.head.conv.0.0", "backbone.body.*.squeeze")
    options = CompressOptions(ratio=0.4, layers=layers, spatial=True, multiple=4)
    small, report = compress_checkpoint(whole, options, photos)
    assert {x.method for x in report} == {"data-aware", "spatial"}
    assert all(x.left_alone is None and x.output_error > 0 for x in report)
    assert all((x.svd_error is None) == (x.method == "spatial") for x in report)
    assert small.config["svd"]["rpn.head.conv.0.0"] == {"rank": 12, "kind": "spatial"}
    write_checkpoint(tmp_path / "small.pt", small)
    read = read_checkpoint(tmp_path / "small.pt")
    assert dict(read.config) == dict(small.config)
    one, other = outputs(small, photos[0]), outputs(read, photos[0])
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_data_keeps_more_of_the_outputs_than_plain_svd(whole, photos):
    _, plain = compress_checkpoint(whole, CompressOptions({"fc6": 4, "fc7": 4}))
    _, aware = compress_checkpoint(whole, CompressOptions({"fc6": 4, "fc7": 4}), photos)
    assert [x.method for x in plain + aware] == ["svd", "svd", "data-aware", "data-aware"]
    assert all(x.output_error is None for x in plain)
    assert all(x.output_error < x.svd_error for x in aware)


def test_a_layer_in_which_nothing_is_gained_is_reported(whole, photos):
    for given in (None, photos):
        small, report = compress_checkpoint(whole, CompressOptions(ratio=0.5, multiple=16), given)
        alone = {x.name.rpartition(".")[2]: x.left_alone for x in report if x.left_alone}
        assert sorted(alone) == ["bbox_pred", "cls_score"]
        assert "adds weights" in alone["cls_score"]
        assert list(small.config["svd"]) == [FC6, FC7]
        assert all(x.output_error is None for x in report if x.left_alone)


def test_what_is_split_stays_split(whole):
    once, _ = compress_checkpoint(whole, CompressOptions({"fc6": 12}))
    twice, report = compress_checkpoint(once, CompressOptions(ratio=0.5, multiple=8))
    assert FC6 not in {x.name for x in report}
    assert twice.config["svd"] == {FC6: 12, FC7: 16, "roi_heads.box_predictor.bbox_pred": 8}
    module_from_checkpoint(twice)
    with pytest.raises(ExportError, match=r"fc6 is split already: compress the checkpoint that it was made from"):
        compress_checkpoint(once, CompressOptions({"fc6": 6}))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "by one of --rank, --energy and --ratio"),
        ({"energy": 0.9, "ratio": 0.5}, "by one of --rank, --energy and --ratio"),
        ({"ranks": {"fc6": 3}, "layers": ("fc7",)}, "leave out --layers"),
        ({"energy": 90}, "energy 90: give a share"),
        ({"ranks": {"fc6": 3, "box_head.fc6": 4}}, "names the layer roi_heads.box_head.fc6 twice"),
        ({"ranks": {"fc8": 3}}, "'fc8' names no layer.*fc6"),
        ({"ranks": {"fc6": 46}}, r"layer roi_heads.box_head.fc6: rank 46 for a 784→48 layer: give 1\.\.45"),
        ({"ratio": 0.5, "layers": ("rpn.head.conv.0.0",)}, "k×k convolution: split only spatially, with --spatial"),
    ],
)
def test_options_that_cannot_be(whole, options, message):
    with pytest.raises(ExportError, match=message) as caught:
        compress_checkpoint(whole, CompressOptions(**options))
    assert "\n" not in str(caught.value)


def test_too_few_images(whole, photos):
    with pytest.raises(ExportError, match="3 images to calibrate on: give 5 or more"):
        compress_checkpoint(whole, CompressOptions({"fc6": 3}), photos[:3])


def test_training_goes_on_from_a_compressed_checkpoint(whole, photos, tmp_path):
    options = CompressOptions(ratio=0.4, layers=("fc6", "rpn.head.conv.0.0"), spatial=True, multiple=4)
    small, _ = compress_checkpoint(whole, options, photos)
    path = tmp_path / "small.pt"
    write_checkpoint(path, small)
    quick = {"batch": 2, "accelerator": "cpu", "devices": 1, "evaluate_every": 0, "start": path, "lr": 1e-4}
    best = train("faster_rcnn", DATA, tmp_path / "run", TrainOptions(epochs=1, **quick))
    tuned = read_checkpoint(best)
    assert tuned.config["svd"] == small.config["svd"]
    assert tuned.labels == LABELS
    moved = {key: (value - small.state_dict[key]).abs().max().item() for key, value in tuned.state_dict.items()}
    halves = [key for key in moved if key.startswith((f"{FC6}.", "rpn.head.conv.0.0."))]
    assert len(halves) == 6
    assert all(0 < moved[key] < 0.1 for key in halves), "they learn, from where the compression left them"
    one = outputs(tuned, photos[0])["boxes"]
    assert one.shape[-1] == 4

    rows: list[dict] = []
    train("faster_rcnn", DATA, tmp_path / "again", TrainOptions(epochs=1, **quick))
    again = TrainOptions(epochs=1, **quick, resume=True)
    train("faster_rcnn", DATA, tmp_path / "again", again, report=rows.append)
    assert not [row for row in rows if "epoch" in row], "a finished run that goes on has nothing left to do"


def test_any_rank_gives_the_same_checkpoint_again_and_again(whole, photos):
    """What a search splits is what `compress` would split, at whatever rank it asks for first."""
    calibration, _ = calibration_and_held_out(photos)
    pairs = AnyRank(whole, [FC6, FC7], calibration)
    assert (pairs.largest(FC6), pairs.describe(FC6)) == (45, "784→48")
    pairs.at({FC6: 30})
    for ranks in ({FC6: 12, FC7: 8}, {FC7: 20}):
        wanted, _ = compress_checkpoint(whole, CompressOptions(ranks), photos)
        found = pairs.at(ranks)
        assert found.config == wanted.config
        assert found.state_dict.keys() == wanted.state_dict.keys()
        for key, value in wanted.state_dict.items():
            torch.testing.assert_close(found.state_dict[key], value, atol=1e-6, rtol=1e-5)
        module_from_checkpoint(found)
    assert pairs.at({}).config == dict(whole.config)
    plain, _ = compress_checkpoint(whole, CompressOptions({FC6: 12}))
    assert torch.equal(AnyRank(whole, [FC6]).at({FC6: 12}).state_dict[f"{FC6}.0.weight"],
                       plain.state_dict[f"{FC6}.0.weight"])  # fmt: skip
    with pytest.raises(ExportError, match=r"layer roi_heads\.box_head\.fc6: \d+ samples of its outputs|give 1\.\.45"):
        pairs.at({FC6: 46})
