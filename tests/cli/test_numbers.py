"""Numbers that make no sense are the caller's mistake: one line that says so, and never called a defect."""

from dataclasses import replace
from pathlib import Path

import pytest

from regionrt.bench.suites import ablations
from regionrt.cli import run
from regionrt.train.checkpoint import read_checkpoint, write_checkpoint

HUGE = "9" * 30
REFUSED = {  # before any file is read
    "deploy a.pt --data absent --out b": {
        "--max-drop": ["-1", "nan"], "--verify-images": ["0", "-1"], "--seconds": ["-1", "nan", "inf"],
        "--compile-seconds": ["-1", "nan"], "--most-error": ["0", "-1", "nan"],
    },
    "bench --out x": {
        "--batch": ["0", "-1"], "--seconds": ["-1", "nan", "inf"], "--threads": ["0", "-1"],
        "--max-images": ["0", "-1"], "--compile-seconds": ["-1", "nan"],
    },
    "classify a.pt --data absent": {"--max-images": ["0", "-1"]},
    "proposals absent": {name: ["0", "-1"] for name in ("--k", "--width", "--most", "--max-images", "--workers")},
    "train fast_rcnn --data absent --out x": {
        "--epochs": ["0", "-1"], "--batch": ["0"], "--lr": ["0", "-1", "nan", "inf"], "--weight-decay": ["-1", "nan"],
        "--backbone-lr": ["0", "nan"], "--warmup": ["0", "nan"], "--scale": ["0", "nan"], "--colour": ["-1", "nan"],
        "--seed": ["-1", HUGE], "--workers": ["-1"], "--devices": ["0"],
    },
    "tune a.pt --data absent --out b": {"--max-drop": ["-1", "nan", HUGE]},
    "verify b --checkpoint a.pt --data absent": {"--images": ["0", "-1"], "--batch": ["0", "-1", "nan"]},
    "bench --out x --suite seeds": {"--seconds": ["-1", "nan"], "--proposals": ["0", "-1"]},
    "bench --out x --suite peers": {"--seconds": ["-1"], "--compile-seconds": ["-1"], "--threads": ["0"]},
    "bench --out x --suite ablations": {"--threads": ["0"]},
    "bench absent --out x --suite soak": {"--threads": ["0"], "--requests": ["79", "-1"]},
}  # fmt: skip
CASES = [(line, name, value) for line, of in REFUSED.items() for name, values in of.items() for value in values]


@pytest.mark.parametrize(("line", "name", "value"), CASES)
def test_numbers_out_of_range(
    line: str, name: str, value: str, tmp_path: Path, monkeypatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run([*line.split(), name, value]) in (1, 2)
    shown = capfd.readouterr().err
    words = " ".join(shown.replace("│", " ").split())
    named = name.lstrip("-").replace("-", "_") in words.replace("-", "_")
    assert named or "largest error of a layer" in words or f"found {value!r}" in words, shown
    assert "defect" not in shown
    assert "Traceback" not in shown
    assert list(tmp_path.iterdir()) == []


def test_eval_of_no_images(checkpoint: Path, data: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["eval", str(checkpoint), "--data", data, "--max-images", "0"]) == 1
    assert "max_images: expected at least 1, found 0\n" in capfd.readouterr().err


def test_eval_against_another_net(
    checkpoint: Path, data: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """One that finds other things cannot be compared, which is said before anything is evaluated."""
    other = tmp_path / "other.pt"
    known = read_checkpoint(checkpoint)
    write_checkpoint(other, replace(known, labels=(*known.labels[:-1], "screw")))
    assert run(["eval", str(checkpoint), "--data", data, "--against", str(other)]) == 2
    words = " ".join(capfd.readouterr().err.replace("│", " ").split())
    assert "expected a net for detection with the labels __background__, bolt, nut, washer, found one for" in words
    assert "screw" in words


def test_ablations_of_unknown_rows(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        ablations.main(["--out", str(tmp_path), "--rows", "foo"])
    assert "error: rows foo: choose of " in capfd.readouterr().err
