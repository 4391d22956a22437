"""Checkpoints: what is written comes back; whatever else a file holds is refused in one line, without running it."""

from __future__ import annotations

import os
import pickle

import pytest
import torch
from tiny_nets import LABELS, TINY, tiny
from torchvision.models import detection

from regionrt.train.checkpoint import (
    Checkpoint,
    CheckpointError,
    module_from_checkpoint,
    read_checkpoint,
    write_checkpoint,
)


@pytest.fixture(scope="module")
def weights():
    return tiny().state_dict()


def checkpoint(weights, **changes) -> Checkpoint:
    return Checkpoint(**({"model": "faster_rcnn", "config": TINY, "labels": LABELS, "state_dict": weights} | changes))


def test_round_trip(tmp_path, weights):
    path = tmp_path / "new" / "net.pt"
    channels_last = {k: v.to(memory_format=torch.channels_last) if v.ndim == 4 else v for k, v in weights.items()}
    write_checkpoint(path, checkpoint(channels_last))
    found = read_checkpoint(path)
    assert (found.model, found.config, found.labels, found.path) == ("faster_rcnn", TINY, LABELS, path)
    module = module_from_checkpoint(found)
    assert not module.training
    for key, value in module.state_dict().items():
        assert torch.equal(value, weights[key])
        assert found.state_dict[key].is_contiguous()
    assert [p.name for p in path.parent.iterdir()] == ["net.pt"]


def test_config_with_svd_pairs(tmp_path):
    config = TINY | {"svd": {"roi_heads.box_head.fc6": 5}}
    weights = tiny(svd=config["svd"]).state_dict()
    write_checkpoint(tmp_path / "net.pt", checkpoint(weights, config=config))
    module = module_from_checkpoint(read_checkpoint(tmp_path / "net.pt"))
    assert torch.equal(module.roi_heads.box_head.fc6[0].weight, weights["roi_heads.box_head.fc6.0.weight"])


def test_plain_state_dict_of_torchvision(tmp_path):
    builder = "fasterrcnn_mobilenet_v3_large_320_fpn"
    weights = getattr(detection, builder)(weights=None, weights_backbone=None, num_classes=3).state_dict()
    # Files made with frozen BatchNorm (torchvision's published ones) lack the counters.
    weights = {k: v for k, v in weights.items() if not k.endswith("num_batches_tracked")}
    path = tmp_path / "plain.pth"
    torch.save(weights, path)
    found = read_checkpoint(path, model=f"torchvision/{builder}", labels=LABELS, config={"min_size": 96})
    module = module_from_checkpoint(found)
    assert module.transform.min_size == (96,)
    key = "roi_heads.box_head.fc6.weight"
    assert torch.equal(module.state_dict()[key], weights[key])
    for arguments in ({}, {"model": f"torchvision/{builder}"}, {"labels": LABELS}):
        with pytest.raises(CheckpointError, match=r"plain state_dict .*--model.*--labels"):
            read_checkpoint(path, **arguments)
    with pytest.raises(CheckpointError, match="unknown model 'resnet'"):
        read_checkpoint(path, model="resnet", labels=LABELS)
    with pytest.raises(CheckpointError, match="__background__"):
        read_checkpoint(path, model=f"torchvision/{builder}", labels=("disc", "square"))
    four = (*LABELS, "star")
    with pytest.raises(CheckpointError, match=r"cls_score.weight \[3, 1024\] instead of \[4, 1024\].*labels fit"):
        module_from_checkpoint(read_checkpoint(path, model=f"torchvision/{builder}", labels=four))


class Payload:
    """What a malicious file holds: unpickling it would create a file."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("where", ["alone", "in the dictionary", "in the weights", "old format"])
def test_pickled_code_is_never_run(tmp_path, weights, where):
    marker = tmp_path / "ran"
    path = tmp_path / "evil.pt"
    payload = Payload(marker)
    content = {"format": "regionrt/1", "model": "faster_rcnn", "config": {}, "labels": list(LABELS)}
    if where == "old format":
        path.write_bytes(pickle.dumps(payload))
    elif where == "alone":
        torch.save(payload, path)
    elif where == "in the weights":
        torch.save({**content, "state_dict": {**weights, "x": payload}}, path)
    else:
        torch.save({**content, "state_dict": weights, "extra": payload}, path)
    with pytest.raises(CheckpointError, match="not executed") as caught:
        read_checkpoint(path)
    assert "\n" not in str(caught.value)
    assert not marker.exists()


def test_files_that_are_no_checkpoints(tmp_path, weights):
    path = tmp_path / "file.pt"
    write_checkpoint(path, checkpoint(weights))
    whole = path.read_bytes()
    cases = {
        b"": "could not read|damaged",
        b"hello, I am a text file\n" * 50: "could not read|damaged",
        os.urandom(5000): "could not read|damaged",
        whole[: len(whole) // 2]: "could not read|damaged",
    }
    for content, message in cases.items():
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=message) as caught:
            read_checkpoint(path)
        assert "\n" not in str(caught.value)
        assert str(path) in str(caught.value)
    with pytest.raises(CheckpointError, match="no such file"):
        read_checkpoint(tmp_path / "nothing.pt")
    with pytest.raises(CheckpointError, match="could not read"):
        read_checkpoint(tmp_path)
    for content, message in (
        ([1, 2], r"expected a dictionary, found list \['1', '2'\]"),
        ({"epoch": 1}, "found a dictionary with epoch"),
        ({}, "nothing in it"),
        ({"format": "regionrt/2"}, "format 'regionrt/2', this version reads 'regionrt/1'"),
        ({"format": "regionrt/1", "model": "faster_rcnn"}, "config, labels, state_dict missing"),
    ):
        torch.save(content, path)
        with pytest.raises(CheckpointError, match=message) as caught:
            read_checkpoint(path, model="torchvision/maskrcnn_resnet50_fpn", labels=LABELS)
        assert "\n" not in str(caught.value)


def test_checkpoints_that_do_not_fit_themselves(tmp_path, weights):
    path = tmp_path / "net.pt"
    fc = "roi_heads.box_head.fc7.weight"
    more = {f"extra.{i}": torch.zeros(2, 3) for i in range(9)}
    for changes, message in (
        ({"labels": (*LABELS, "star")}, r"cls_score.weight \[3, 32\] instead of \[4, 32\]"),
        ({"labels": ("disc", "square")}, "__background__"),
        ({"model": "yolo"}, "unknown model 'yolo'"),
        ({"config": TINY | {"size": [100, 100]}}, "96x96 or 112x112"),
        ({"config": TINY | {"hue": 1}}, "unknown option 'hue'"),
        ({"state_dict": {k: v for k, v in weights.items() if k != fc}}, rf"1 keys are missing: {fc} \[32, 32\]"),
        ({"state_dict": {**weights, **more}}, r"9 keys are unexpected: extra.0 \[2, 3\].* and 3 more"),
        ({"state_dict": {**weights, fc: torch.zeros(5, 5)}}, rf"{fc} \[5, 5\] instead of \[32, 32\]"),
        ({"state_dict": {**weights, "note": "text"}}, "1 entries that are no tensors: note"),
    ):
        torch_content = checkpoint(weights, **changes)
        content = {k: getattr(torch_content, k) for k in ("model", "config", "state_dict")}
        torch.save({"format": "regionrt/1", **content, "labels": list(torch_content.labels)}, path)
        with pytest.raises(CheckpointError, match=message) as caught:
            module_from_checkpoint(read_checkpoint(path))
        assert "\n" not in str(caught.value)
    write_checkpoint(path, checkpoint(weights))
    with pytest.raises(CheckpointError, match="leave out --model and --labels"):
        read_checkpoint(path, model="torchvision/maskrcnn_resnet50_fpn", labels=LABELS)


def test_a_failed_write_leaves_the_old_file(tmp_path, weights, monkeypatch):
    path = tmp_path / "net.pt"
    write_checkpoint(path, checkpoint(weights))
    before = path.read_bytes()

    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(Exception, match="full"):
        write_checkpoint(path, checkpoint(weights))
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["net.pt"]
