"""Segmentation and localisation by the command line, at toy size: train, eval, deploy, infer, and one-line errors."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from regionrt.cli import run
from regionrt.runtime.bundle import Manifest
from regionrt.train.data import write_images

DATA = "shapes:train=8,val=2,test=4,size=65x97,turn=30,most=2"
NETS = {
    "segnet": ["--set", "width=8", "--set", "depth=2", "--size", "64x96", "--balance"],
    "localiser": ["--set", "representation=16", "--size", "64x96", "--freeze", "backbone"],
}


@pytest.mark.parametrize("name", NETS)
def test_the_road(name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    metric = "localisation" if name == "localiser" else "mIoU"
    out, bundle = str(tmp_path / "run"), tmp_path / "bundle"
    arguments = ["train", name, "--data", DATA, "--out", out, "--epochs", "1", "--evaluate-every", "0", "--backbone-lr"]
    assert run([*arguments, "0.001", *NETS[name]]) == 0
    shown = capfd.readouterr()
    assert "what learns" in shown.err
    assert ("backbone: frozen" in shown.err) == (name == "localiser")
    best = f"{out}/best.pt"

    assert run(["eval", best, "--data", DATA, "--json"]) == 0
    of_checkpoint = json.loads(capfd.readouterr().out)["metrics"]
    assert metric in of_checkpoint

    deploy = ["deploy", best, "--data", DATA, "--out", str(bundle), "--seconds", "1", "--compile-seconds", "0"]
    assert run([*deploy, "--target", "none", "--verify-images", "2", "--max-drop", "0.1"]) == 0
    capfd.readouterr()
    manifest = Manifest.read(bundle)
    assert manifest.task == ("localisation" if name == "localiser" else "segmentation")
    report = json.loads((bundle / "report.json").read_text())
    assert report["task"] == manifest.task
    judged = [row for row in report["candidates"] if row["accuracy"]]
    assert len(judged) >= 5
    assert all(abs(row["accuracy"]["metrics"][metric] - of_checkpoint[metric]) < 1e-3 for row in judged)
    page = (bundle / "report.html").read_text()
    assert ("mIoU" if name == "segnet" else "right class and IoU") in page

    assert run(["eval", str(bundle), "--data", DATA, "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["metrics"][metric] == pytest.approx(of_checkpoint[metric], abs=1e-3)
    assert run(["verify", str(bundle), "--checkpoint", best, "--data", DATA, "--images", "2", "--batch", "2"]) == 0

    photos = [str(path) for path in write_images(tmp_path / "photos", 2, spec=DATA)]
    for form in ("image", "json", "coco"):
        assert run(["infer", str(bundle), *photos, "--out", str(tmp_path / form), "--format", form]) == 0
    told = json.loads((tmp_path / "json" / "shapes_test_0000.json").read_text())
    assert ("classes" in told) == (name == "segnet")
    code = run(["infer", str(bundle), *photos, "--out", str(tmp_path / "palette"), "--format", "palette"])
    assert code == (0 if name == "segnet" else 1)
    if name == "segnet":
        labels = np.array(Image.open(tmp_path / "palette" / "shapes_test_0000.png"))
        assert labels.shape == (65, 97)
        assert {int(label) for label in np.unique(labels)} == {entry["label"] for entry in told["classes"]}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["train", "unet", "--set", "depth=12"], "depth 12: give 1 to 8"),
        (["train", "unet", "--size", "60x96"], "is not a multiple of the stride 16"),
        (["train", "unet", "--classes", "circle"], "classes cannot be chosen of label maps"),
        (["train", "localiser", "--balance"], "balance weighs the classes of pixels"),
        (["train", "unet", "--freeze", "encoder"], "freeze 'encoder' names no layer"),
    ],
)
def test_errors_are_one_line(
    arguments: list[str], expected: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run([*arguments, "--data", DATA, "--out", str(tmp_path / "run"), "--epochs", "1"]) == 1
    (line,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert expected in line
    assert not (tmp_path / "run").exists()
