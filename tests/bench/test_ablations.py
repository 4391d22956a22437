"""The table of Mask R-CNN's ablations: trained once, gone on with, told."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from regionrt.bench.schema import Accuracy, Difference
from regionrt.bench.suites.ablations import VARIANTS, AblationOptions, AblationReport, run_ablations, write
from regionrt.cli import run
from regionrt.train.models import MODELS
from regionrt.train.options import TrainError

TINY = AblationOptions(
    rows=("max",), data="shapes:train=3,val=1,test=3,size=64x64", epochs=1, threads=1,
    config=(("size", [64, 64]), ("channels", 8), ("representation", 8), ("mask_layers", [4]), ("proposals", 10)),
)  # fmt: skip


def test_variants_are_trained_judged_and_not_trained_again(tmp_path: Path) -> None:
    told: list[str] = []
    report = run_ablations(TINY, tmp_path, progress=told.append)
    assert [line for line in told if "epoch" in line] == [
        line for line in told if line.startswith(("align, seed 0: epoch 1 of 1", "max, seed 0: epoch 1 of 1"))
    ]
    assert list(report.accuracy) == ["align", "max"]
    assert {d.metric for d in report.accuracy["max"][0].differences} == {"AP", "mask_AP"}
    assert report.accuracy["align"][0].differences == ()
    stored = json.loads((tmp_path / "runs" / "max-0" / "run.json").read_text())
    assert (stored["config"]["pool"], stored["config"]["channels"], stored["options"]["seed"]) == ("max", 8, 0)

    again: list[str] = []
    assert run_ablations(TINY, tmp_path, progress=again.append).accuracy == report.accuracy
    assert not [line for line in again if "epoch" in line]
    with pytest.raises(TrainError, match=r"lr 0\.01 then, 0\.02 now"):
        run_ablations(replace(TINY, lr=0.02), tmp_path)


def test_every_variant_is_one_of_the_models_options() -> None:
    for variant in VARIANTS.values():
        full = MODELS["mask_rcnn"].full_config(AblationOptions().config_of(variant))
        assert {key: full[key] for key in variant.config} == variant.config


def accuracy(points: float, differences: tuple[Difference, ...] = ()) -> Accuracy:
    return Accuracy(9, {"AP": points / 100, "mask_AP": points / 100, "mask_AP50": None}, {}, differences)


def test_the_table_has_each_seed_and_the_papers_difference(tmp_path: Path) -> None:
    lost = Difference("mask_AP", -3.0, -4.0, -2.0, 0.95, 1000, 0)
    found = {
        "align": [accuracy(30), accuracy(32)],
        "max": [accuracy(27, (lost,)), accuracy(31, (replace(lost, points=-1.0, high=0.5),))],
    }
    facts = {"machine": {"CPU": "a CPU"}, "software": {"torch": "2", "torchvision": "0"}}
    files = write(AblationReport(facts, "regionrt …", {"seeds": [0, 1]}, found), tmp_path)
    assert json.loads(files[0].read_text())["accuracy"]["max"][0]["differences"][0]["low"] == -4.0
    rows = [line for line in files[1].read_text().splitlines() if line.startswith("| Ro")]
    assert rows == [
        "| RoIAlign (average), sigmoid masks, FCN | 31.0 (30.0, 32.0) | – | 31.0 (30.0, 32.0) | –; – | –; – |  |",
        "| RoIPool (maximum) | 29.0 (27.0, 31.0) | – | 29.0 (27.0, 31.0) | −3.00 [−4.00, −2.00]; −1.00 [−4.00, +0.50] "
        "| –; – | −3.40 |",
    ]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--rows", "max,mean"], "rows mean: choose of align, align_max, max, softmax, mlp"),
        (["--nets", "x"], "--nets: not with --suite ablations"),
        (["--threads", "0"], "threads 0: give 1 or more"),
    ],
)
def test_what_the_command_refuses(given: list[str], message: str, tmp_path: Path, capsys) -> None:
    assert run(["bench", "--suite", "ablations", "--out", str(tmp_path / "out"), *given]) == 2
    assert message in " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert not list(tmp_path.iterdir())
