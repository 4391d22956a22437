"""The loop of training: what a run folder holds, what is resumed, what is frozen, what is refused."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import warnings
from dataclasses import replace

import pytest
import torch
from tiny_nets import TINY
from torchvision import models

from regionrt.runtime.errors import RegionRTError
from regionrt.train.checkpoint import CheckpointError, module_from_checkpoint, read_checkpoint
from regionrt.train.tasks import TASKS
from regionrt.train.torch_runner import torch_predictor
from regionrt.train.trainer import TrainError, TrainOptions, train

DATA = "shapes:train=4,val=2,test=1,size=64x64"
CONFIG = TINY | {"size": [64, 64], "proposals": 50}
QUICK = {"epochs": 1, "batch": 2, "accelerator": "cpu", "devices": 1}


def epochs_into(rows):
    """A report that keeps the rows of epochs, not the notes nor the table of what learns."""
    return lambda row: rows.append(row) if "epoch" in row else None


def weights_of(path):
    return read_checkpoint(path).state_dict


def test_a_run_folder(tmp_path, capfd):
    rows = []
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        best = train(
            "mask_rcnn",
            DATA,
            tmp_path / "run",
            TrainOptions(**QUICK | {"epochs": 2}),
            config=CONFIG,
            report=epochs_into(rows),
        )
    assert best == tmp_path / "run" / "best.pt"
    assert {p.name for p in best.parent.iterdir()} == {
        "run.json",
        "log.json",
        "log.csv",
        "best.pt",
        "last.pt",
        "last.ckpt",
    }
    assert json.loads((tmp_path / "run" / "log.json").read_text()) == rows
    with open(tmp_path / "run" / "log.csv") as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["1", "2"]
    for name in ("loss", "loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg", "loss_mask"):
        assert all(row[name] > 0 for row in rows), name
    assert rows[0]["loss"] == pytest.approx(sum(v for k, v in rows[0].items() if k.startswith("loss_")), rel=1e-4)
    assert {"AP", "AP50", "mask_AP", "seconds", "lr"} <= rows[0].keys()
    checkpoint = read_checkpoint(best)
    assert checkpoint.labels[0] == "__background__"
    assert checkpoint.config["norm"] == "batch"
    predictor = torch_predictor(best)
    assert (predictor.canvas.height, predictor.canvas.width) == (64, 64)
    printed = capfd.readouterr()
    assert printed.out == printed.err == ""


KILLED = """
import dataclasses, json, os, signal, sys, torch
torch.set_num_threads(1)
from regionrt.train import trainer
steps = 0
def counting(module, *batch, losses=trainer.TASKS["detection"].losses):
    global steps
    steps += 1
    if steps == 6:  # in the middle of the third epoch of two steps each
        os.kill(os.getpid(), signal.SIGKILL)
    return losses(module, *batch)
trainer.TASKS["detection"] = dataclasses.replace(trainer.TASKS["detection"], losses=counting)
arguments = json.loads(sys.argv[1])
trainer.train(
    "faster_rcnn", arguments["data"], arguments["out"], trainer.TrainOptions(**arguments["options"]),
    config=arguments["config"],
)
"""


def test_resume_after_a_kill_loses_nothing(tmp_path):
    """Three epochs in one go, and the same with a kill -9 in the third: the same weights and the same log."""
    torch.set_num_threads(1)  # as in the child: sums are then the same to the last bit
    options = QUICK | {"epochs": 3, "colour": 0.1, "scale": (0.8, 1.2)}
    whole = train("faster_rcnn", DATA, tmp_path / "whole", TrainOptions(**options), config=CONFIG)
    cut = tmp_path / "cut"
    arguments = json.dumps({"data": DATA, "out": str(cut), "options": options, "config": CONFIG})
    child = subprocess.run([sys.executable, "-c", KILLED, arguments], check=False, capture_output=True, timeout=300)
    assert child.returncode == -signal.SIGKILL, child.stderr.decode()[-2000:]
    assert len(json.loads((cut / "log.json").read_text())) == 2
    with pytest.raises(TrainError, match=r"other options: lr 0.01 then, 0.5 now"):
        train("faster_rcnn", DATA, cut, TrainOptions(**options | {"lr": 0.5, "resume": True}), config=CONFIG)
    rows = []
    train("faster_rcnn", DATA, cut, TrainOptions(**options, resume=True), config=CONFIG, report=epochs_into(rows))
    assert [row["epoch"] for row in rows] == [3]
    first, second = weights_of(whole.parent / "last.pt"), weights_of(cut / "last.pt")
    for key, value in first.items():
        torch.testing.assert_close(second[key], value, rtol=1e-5, atol=1e-7)
    logs = [json.loads((folder / "log.json").read_text()) for folder in (whole.parent, cut)]
    for one, other in zip(*logs, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)
        assert one["lr"] == other["lr"]
    stamp = os.stat(cut / "last.ckpt").st_mtime_ns
    train("faster_rcnn", DATA, cut, TrainOptions(**options, resume=True), config=CONFIG, report=epochs_into(rows))
    assert len(rows) == 1  # nothing was left to do
    assert os.stat(cut / "last.ckpt").st_mtime_ns == stamp


@pytest.fixture
def usual_handlers():
    """Those of a program that was started by hand: a process that tests are distributed to ignores Ctrl-C."""
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("usual_handlers")
@pytest.mark.parametrize(("number", "stop"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_signals_stop_as_usual_and_the_run_goes_on(number, stop, tmp_path):
    """Ctrl-C stays what it is and works afterwards; SIGTERM is no success; the finished epoch is kept."""
    handler = signal.getsignal(number)
    options = QUICK | {"epochs": 2, "evaluate_every": 0}

    def kill(row):
        if "epoch" not in row:
            return
        os.kill(os.getpid(), number)

    with pytest.raises(stop) as caught:
        train("faster_rcnn", DATA, tmp_path / "run", TrainOptions(**options), config=CONFIG, report=kill)
    if number == signal.SIGTERM:
        assert caught.value.code == 128 + signal.SIGTERM
    assert signal.getsignal(number) == handler
    rows = []
    train(
        "faster_rcnn",
        DATA,
        tmp_path / "run",
        TrainOptions(**options, resume=True),
        config=CONFIG,
        report=epochs_into(rows),
    )
    assert [row["epoch"] for row in rows] == [2]


def test_frozen_layers_and_their_statistics_stay(tmp_path):
    torch.manual_seed(0)
    classifier = models.mobilenet_v2(weights=None)
    torch.save(classifier.state_dict(), tmp_path / "weights.pth")
    config = CONFIG | {"backbone": "mobilenet_v2", "norm": "batch"}
    options = TrainOptions(
        **QUICK, init=tmp_path / "weights.pth", freeze=("backbone.body.1", "rpn.head.conv"), evaluate_every=0
    )
    notes = []
    best = train("faster_rcnn", DATA, tmp_path / "run", options, config=config, report=notes.append)
    assert "left out" in notes[0]["note"]
    trained = weights_of(best)
    for key, value in classifier.features[1].state_dict().items():
        assert torch.equal(trained[f"backbone.body.1.{key}"], value), key
    learnt = classifier.features[2].state_dict()
    assert any(not torch.equal(trained[f"backbone.body.2.{key}"], value) for key, value in learnt.items())
    assert not torch.equal(trained["backbone.body.2.conv.0.1.running_mean"], learnt["conv.0.1.running_mean"])


def test_init_without_norm_freezes_batch_norm(tmp_path):
    classifier = models.mobilenet_v2(weights=None)
    torch.save(classifier.state_dict(), tmp_path / "weights.pth")
    options = TrainOptions(**QUICK, init=tmp_path / "weights.pth", evaluate_every=0)
    config = CONFIG | {"backbone": "mobilenet_v2"}
    best = read_checkpoint(train("faster_rcnn", DATA, tmp_path / "run", options, config=config))
    assert best.config["norm"] == "frozen"
    mean = classifier.state_dict()["features.0.1.running_mean"]
    assert torch.equal(best.state_dict["backbone.body.0.1.running_mean"], mean)
    module_from_checkpoint(best)


def test_training_goes_on_from_a_checkpoint(tmp_path):
    """Its options, but for those that are changed, its labels and its weights; what does not fit is refused."""
    first = train("faster_rcnn", DATA, tmp_path / "first", TrainOptions(**QUICK, evaluate_every=0), config=CONFIG)
    gently = QUICK | {"start": first, "lr": 1e-7, "evaluate_every": 0}
    options = TrainOptions(**gently, size=(64, 96))
    second = read_checkpoint(train("faster_rcnn", DATA, tmp_path / "second", options, config={"rois_per_image": 16}))
    before = read_checkpoint(first)
    assert second.config == before.config | {"size": [64, 96], "rois_per_image": 16}
    assert second.labels == before.labels
    for key, value in second.state_dict.items():
        torch.testing.assert_close(value, before.state_dict[key], atol=1e-4, rtol=0)

    with pytest.raises(CheckpointError, match=r"best\.pt is a faster_rcnn: train that, not mask_rcnn"):
        train("mask_rcnn", DATA, tmp_path / "other", TrainOptions(**gently))
    with pytest.raises(CheckpointError, match="have other shapes"):
        train("faster_rcnn", DATA, tmp_path / "other", TrainOptions(**gently), config={"representation": 24})
    with pytest.raises(TrainError, match="not both"):
        TrainOptions(start=first, init=first)
    assert not (tmp_path / "other").exists()


def test_bf16_adamw_and_a_size_of_its_own(tmp_path):
    options = TrainOptions(**QUICK, precision="bf16", size=(64, 96), optimizer="adamw", lr=1e-3, max_eval_images=1)
    best = read_checkpoint(train("faster_rcnn", DATA, tmp_path / "run", options, config=CONFIG))
    assert best.config["size"] == [64, 96]
    assert {v.dtype for v in best.state_dict.values()} == {torch.float32}


def test_best_is_the_best_and_early_stop_stops(tmp_path, monkeypatch):
    """AP by epoch: 0.1, 0.3, 0.2, 0.2, then it must be over."""
    scores = iter([0.1, 0.3, 0.2, 0.2, 0.9])

    def fake(predictor, data, **_):
        assert data.split == "val"
        assert not predictor.runner.module.training
        return type("Evaluation", (), {"metrics": {"AP": next(scores), "mask_AP": 0.7, "AP50": float("nan")}})

    monkeypatch.setitem(TASKS, "detection", replace(TASKS["detection"], evaluate=fake))
    seen = {}

    def report(row):
        if "epoch" not in row:
            return
        seen[row["epoch"]] = weights_of(tmp_path / "run" / "last.pt")
        assert row["AP50"] is None

    options = TrainOptions(**QUICK | {"epochs": 9}, early_stop=2)
    best = weights_of(train("faster_rcnn", DATA, tmp_path / "run", options, config=CONFIG, report=report))
    assert list(seen) == [1, 2, 3, 4]
    fc = "roi_heads.box_head.fc7.weight"
    assert torch.equal(best[fc], seen[2][fc])
    assert not torch.equal(best[fc], seen[3][fc])


def test_a_loss_that_is_no_number_is_told(tmp_path):
    with pytest.raises(TrainError, match=r"no number at step \d+ .*lower --lr"):
        train(
            "faster_rcnn",
            DATA,
            tmp_path / "run",
            TrainOptions(**QUICK | {"epochs": 5}, lr=1e18, schedule="constant", grad_clip=0),
            config=CONFIG,
        )


def test_run_folders_that_are_taken(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "holiday.jpg").touch()
    with pytest.raises(TrainError, match="holds other files"):
        train("faster_rcnn", DATA, run, TrainOptions(**QUICK), config=CONFIG)
    (run / "holiday.jpg").unlink()
    (run / "run.json").write_text("{}")
    with pytest.raises(TrainError, match=r"holds a run of training.*--resume"):
        train("faster_rcnn", DATA, run, TrainOptions(**QUICK), config=CONFIG)
    with pytest.raises(TrainError, match=r"run\.json is damaged"):
        train("faster_rcnn", DATA, run, TrainOptions(**QUICK, resume=True), config=CONFIG)
    with pytest.raises(TrainError, match="found a file"):
        train("faster_rcnn", DATA, run / "run.json", TrainOptions(**QUICK), config=CONFIG)


@pytest.mark.parametrize(
    ("model", "config", "options", "message"),
    [
        ("yolo", {}, {}, "unknown model 'yolo'"),
        ("faster_rcnn", {"size": [70, 64]}, {}, "64x64 or 80x64"),
        ("faster_rcnn", {}, {"freeze": ("neck",)}, "'neck' names no layer"),
        ("faster_rcnn", {}, {"init": "nothing.pth"}, "no such file"),
        ("faster_rcnn", {}, {"train_split": "trian"}, "trian"),
        ("faster_rcnn", {}, {"sizes": ((64, 64), (70, 64))}, "size 70x64 .* 64x64 or 80x64"),
    ],
)
def test_refused_before_anything_is_written(model, config, options, message, tmp_path):
    with pytest.raises(RegionRTError, match=message) as caught:
        train(model, DATA, tmp_path / "run", TrainOptions(**QUICK | options), config=CONFIG | config)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs 0"),
        ({"lr": 0}, "lr 0"),
        ({"precision": "fp16"}, '"fp32" or "bf16"'),
        ({"schedule": "step"}, '"one-cycle"'),
        ({"optimizer": "lion"}, '"sgd" or "adamw"'),
        ({"flip": "up"}, '"horizontal"'),
        ({"early_stop": 3, "evaluate_every": 0}, "needs evaluation"),
        ({"momentum": 1.0}, "between 0 and 1"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(TrainError, match=message):
        TrainOptions(**options)
