"""tune and compress --max-drop: artefacts are built, run and judged; only the clock and the points are made up."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import regionrt.bench.search.workbench as workbench
from regionrt.bench.schema import Ratio
from regionrt.bench.search.settings import Setting
from regionrt.cli import run
from regionrt.runtime import load
from regionrt.runtime.bundle import Manifest
from regionrt.train.checkpoint import Checkpoint, module_from_checkpoint, read_checkpoint, write_checkpoint
from regionrt.train.data import open_semantic
from regionrt.train.models import build_model

DATA = "shapes:train=6,val=4,test=4,size=64x64"
CONFIG = {"width": 16, "depth": 2, "size": [64, 64]}
LAYER = "joined.0.0"
QUICK = [
    "--data",
    DATA,
    "--seconds",
    "0.02",
    "--points",
    "1",
    "--threads",
    "1",
    "--spatial",
    "--calibration-images",
    "5",
]


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small U-Net with random weights: exported in a second or two."""
    torch.manual_seed(0)
    labels = tuple(open_semantic(DATA, "train", None, None).labels)
    path = tmp_path_factory.mktemp("net") / "unet.pt"
    write_checkpoint(path, Checkpoint("unet", CONFIG, labels, build_model("unet", CONFIG, labels).state_dict()))
    return path


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Setting]:
    """How much faster a setting is, and that each loses one point; the settings that are built are listed."""
    built: list[Setting] = []
    build = workbench.Workbench.build

    def counted(self, setting: Setting, folder: Path, final: bool = False) -> Path:
        built.append(setting)
        return build(self, setting, folder, final)

    def ratio(*_, **__) -> Ratio:
        faster = (1.2 if built[-1].ranks else 1.0) * (1.5 if built[-1].size else 1.0)
        return Ratio(faster, faster - 0.01, faster + 0.01)

    monkeypatch.setattr(workbench.Workbench, "build", counted)
    monkeypatch.setattr(workbench, "speedup", ratio)
    monkeypatch.setattr(workbench, "points_lost", lambda wanted, found: 1.0)
    return built


def one_line(text: str) -> str:
    return " ".join(text.split())


def test_tune_writes_a_bundle_goes_on_and_refuses(net: Path, tmp_path: Path, made, capfd) -> None:
    out = tmp_path / "tuned"
    command = [
        "tune",
        str(net),
        "--out",
        str(out),
        *QUICK,
        "--layers",
        LAYER,
        "--precision",
        "none",
        "--sizes",
        "32x32",
    ]
    assert run([*command, "--max-drop", "90", "--json"]) == 0
    result = json.loads(capfd.readouterr().out)
    chosen = Setting.from_json(result["chosen"])
    assert chosen.size == (32, 32)
    assert list(chosen.ranks) == [LAYER]
    assert Setting.from_json(result["by_hand"]) == Setting(size=(32, 32))
    assert len(result["trials"]) == 3
    assert result["final"]["rows"][-1]["name"] == "found"
    assert result["final"]["over_hand"]["ratio"] > 0
    assert [knob["why_not"] for knob in result["knobs"] if knob["name"] == "proposals"] == [
        "a net for segmentation has none"
    ]
    manifest = Manifest.read(out / "bundle")
    manifest.verify_files()
    assert (manifest.canvas.height, manifest.canvas.width) == (32, 32)
    with load(out / "bundle", "onnxruntime") as predict:
        assert predict(open_semantic(DATA, "test", None, None)[0].image()).labels.shape == (64, 64)
    whole = {"report.json", "report.md", "report.html", "journal.json", "bundle"}
    assert {path.name for path in out.iterdir()} == whole

    made.clear()
    before = (out / "report.json").read_bytes()
    assert run([*command, "--max-drop", "0.5"]) == 1
    shown = one_line(capfd.readouterr().err)
    assert "no setting is faster within 0.5 points on val: nothing was written" in shown
    assert "closest" in shown
    assert made == [Setting()], "another budget goes on from what was measured"
    assert (out / "report.json").read_bytes() == before

    assert run([*command, "--max-drop", "90", "--max-images", "2"]) == 1
    assert "is of another search: its split is 'val, 4 images', asked for is 'val, 2" in one_line(
        capfd.readouterr().err
    )


def test_compress_searches_ranks_and_the_checkpoint_is_whole(net: Path, tmp_path: Path, made, capfd) -> None:
    small = tmp_path / "small.pt"
    options = [part if part != "--calibration-images" else "--images" for part in QUICK]
    command = ["compress", str(net), "--out", str(small), *options, "--layers", f"{LAYER},score"]
    assert run([*command, "--max-drop", "90"]) == 0
    shown = capfd.readouterr()
    assert "score is left alone: no multiple of 16 makes it smaller" in one_line(shown.err)
    module_from_checkpoint(read_checkpoint(small))
    assert read_checkpoint(small).config["svd"] == {LAYER: {"rank": 32, "kind": "spatial"}}
    assert (tmp_path / "small.pt.search" / "report.html").is_file()

    none = str(tmp_path / "none.pt")
    for wrong, code, message in (
        (["--max-drop", "1"], 2, "--max-drop needs --data"),
        (["--max-drop", "1", "--data", DATA, "--rank", "score=3"], 2, "by one of --rank, --energy, --ratio"),
        (["--max-drop", "1", "--data", DATA, "--backend", "tensorrt"], 1, "expected onnxruntime or openvino"),
        (["--max-drop", "1", "--data", DATA, "--layers", "scor"], 1, "nearest are score"),
    ):
        assert run(["compress", str(net), "--out", none, *wrong]) == code
        assert message in one_line(capfd.readouterr().err)
    assert not Path(none).exists()
