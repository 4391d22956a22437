"""The command line as a user meets it: exit codes, one-line errors, JSON on standard output."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from regionrt.cli import run
from regionrt.runtime import load
from regionrt.runtime.bundle import Manifest


def one_line(text: str) -> str:
    """The single line of an error, or a failure that shows what was printed instead."""
    lines = [line for line in text.splitlines() if line.strip()]
    assert len(lines) == 1, text
    assert "Traceback" not in text
    return lines[0]


def test_the_road_step_by_step(checkpoint: Path, data: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    small, bundle = tmp_path / "small.pt", tmp_path / "bundle"
    assert run(["compress", str(checkpoint), "--rank", "fc6=24,fc7=16", "--out", str(small), "--json"]) == 0
    layers = json.loads(capfd.readouterr().out)["layers"]
    assert [layer["name"] for layer in layers] == ["roi_heads.box_head.fc6", "roi_heads.box_head.fc7"]
    assert all(layer["weights_after"] < layer["weights_before"] for layer in layers)

    assert run(["export", str(small), "--out", str(bundle), "--score", "0.1", "--proposals", "40", "--json"]) == 0
    manifest = json.loads(capfd.readouterr().out)
    assert manifest["thresholds"]["score"] == 0.1
    assert manifest["thresholds"]["proposals"] == 40

    arguments = ["verify", str(bundle), "--checkpoint", str(small), "--data", data, "--images", "4", "--batch", "1,3"]
    assert run([*arguments, "--json"]) == 0
    verdicts = json.loads(capfd.readouterr().out)
    assert [v["form"] for v in verdicts] == ["staged", "staged", "staged", "native", "portable"]
    assert all(v["passed"] and v["images"] == 4 for v in verdicts)
    assert [e["batch"] for e in verdicts[0]["end_to_end"]] == [1, 3]

    assert run(["verify", str(bundle), "--checkpoint", str(checkpoint), "--data", data, "--images", "2"]) == 1
    shown = capfd.readouterr()
    assert "first difference: head outputs (classes)" in shown.err

    assert run(["eval", str(bundle), "--data", data, "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert found["images"] == 12
    assert (found["about"]["backend"], found["about"]["form"]) == ("openvino", "staged")

    assert run(["eval", str(small), "--data", data, "--against", str(checkpoint), "--json"]) == 0
    (change,) = [d for d in json.loads(capfd.readouterr().out)["differences"] if d["metric"] == "AP"]
    assert change["low"] <= change["points"] <= change["high"] < 0  # the data is what `checkpoint` finds
    assert run(["eval", str(checkpoint), "--data", data, "--against", str(checkpoint)]) == 0
    assert "0.00 [0.00, 0.00]" in capfd.readouterr().out


def test_compress_by_energy_on_data_and_train_from_there(
    checkpoint: Path, data: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    small = str(tmp_path / "small.pt")
    arguments = ["compress", str(checkpoint), "--out", small, "--energy", "0.9", "--data", data, "--split", "test"]
    assert run([*arguments, "--images", "10", "--multiple", "8", "--layers", "fc6,cls_score", "--json"]) == 0
    fc6, cls_score = json.loads(capfd.readouterr().out)["layers"]
    assert fc6["method"] == "data-aware"
    assert fc6["rank"] % 8 == 0
    assert fc6["energy"] >= 0.9
    assert 0 < fc6["output_error"] < fc6["svd_error"]
    assert "adds weights" in cls_score["left_alone"]

    assert run([*arguments, "--multiple", "8", "--layers", "fc6,cls_score"]) == 0
    shown = capfd.readouterr()
    assert all(word in shown.out for word in ("data-aware on 12 images", "box_head.fc6", "error", "of svd"))
    assert "cls_score is left alone: " in shown.err

    training = ["train", "faster_rcnn", "--data", "shapes:train=2,val=2,size=128x128", "--out", str(tmp_path / "run")]
    assert run([*training, "--from", small, "--epochs", "1"]) == 1
    assert "unknown to the checkpoint" in one_line(capfd.readouterr().err)
    assert run([*training, "--from", str(tmp_path / "absent.pt")]) == 1
    assert "no such file" in one_line(capfd.readouterr().err)


def test_bench_writes_a_report(
    checkpoint: Path, native_bundle: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = ["bench", str(native_bundle), "--checkpoint", str(checkpoint), "--out", str(tmp_path / "report")]
    assert run([*arguments, "--seconds", "0.5", "--compile-seconds", "0", "--batch", "1", "--no-fresh"]) == 0
    assert {"report.json", "report.md", "report.html"} <= {p.name for p in (tmp_path / "report").iterdir()}
    assert "PyTorch" in capfd.readouterr().out


def test_some_classes_of_the_data(
    checkpoint: Path, native_bundle: Path, data: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """As for a net that was trained on some classes of a data set with more: all verbs that take data can be told."""
    bundle, chosen = str(native_bundle), ["--classes", "bolt,nut"]
    assert run(["eval", bundle, "--data", data, *chosen, "--json"]) == 0
    per_class = json.loads(capfd.readouterr().out)["per_class"]
    assert run(["eval", bundle, "--data", data, "--json"]) == 0
    everything = json.loads(capfd.readouterr().out)["per_class"]
    left_out = everything.pop("washer")
    assert left_out["objects"] > 0
    assert per_class["washer"]["objects"] == 0
    assert {name: row["objects"] for name, row in everything.items()} == {
        name: per_class[name]["objects"] for name in everything
    }
    assert run(["verify", bundle, "--checkpoint", str(checkpoint), "--data", data, *chosen, "--images", "2"]) == 0
    capfd.readouterr()
    assert run(["eval", bundle, "--data", data, "--classes", "screw"]) == 1
    assert "screw" in one_line(capfd.readouterr().err)


def test_autotune_keeps_the_order_of_this_machine(
    checkpoint: Path, tmp_path: Path, monkeypatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    bundle = tmp_path / "bundle"
    assert run(["export", str(checkpoint), "--out", str(bundle)]) == 0
    capfd.readouterr()
    assert run(["bench", str(bundle), "--autotune", "--seconds", "0.5", "--json"]) == 0
    rows = json.loads(capfd.readouterr().out)[str(bundle)]
    medians = [row["p50_ms"] for row in rows]
    assert medians == sorted(medians)
    with load(bundle) as predict:
        assert (predict.about["backend"], predict.about["form"]) == (rows[0]["backend"], rows[0]["form"])
        assert predict.about["order"] == "autotune's"
    assert run(["bench", str(bundle)]) == 2, "neither a report nor autotune is asked for"


def test_the_shown_command_reproduces_training(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = [
        "train",
        "faster_rcnn",
        "--data",
        "shapes:train=4,val=2,test=2,size=64x64",
        "--out",
        str(tmp_path / "run"),
    ]
    small = ["--size", "64x64", "--set", "representation=16", "--set", "channels=16", "--set", "proposals=20"]
    assert run([*arguments, *small, "--epochs", "1", "--batch", "2", "--json"]) == 0
    result = json.loads(capfd.readouterr().out)
    assert Path(result["best"]).is_file()
    assert len(result["epochs"]) == 1
    assert run([*arguments, *small, "--epochs", "1", "--batch", "2"]) == 1  # the folder is taken
    assert "--resume" in one_line(capfd.readouterr().err)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["export", "absent.pt", "--out", "x"], 1, ["absent.pt", "no such file"]),
        (["eval", "absent", "--data", "shapes"], 1, ["absent"]),
        (["build", "absent"], 1, ["absent", "bundle"]),
        (["infer", "absent", "photo.jpg"], 1, ["absent", "bundle"]),
        (["bench", "--out", "x"], 1, ["nothing to measure"]),
        (["train", "no_such_net", "--data", "shapes", "--out", "x"], 1, ["no_such_net", "faster_rcnn"]),
        (["train", "faster_rcnn", "--data", "absent", "--out", "x"], 1, ["absent", "does not exist"]),
        (["train", "faster_rcnn", "--data", "shapes", "--out", "x", "--size", "100x128"], 1, ["100x128", "stride"]),
    ],
)
def test_errors_are_one_line(
    arguments: list[str], code: int, words: list[str], tmp_path: Path, monkeypatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(arguments) == code
    line = one_line(capfd.readouterr().err)
    assert all(word in line for word in words), line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["export"],
        ["no-such-verb"],
        ["compress", "a.pt", "--out", "b.pt", "--rank", "fc6"],
        ["compress", "a.pt", "--out", "b.pt"],
        ["compress", "a.pt", "--out", "b.pt", "--rank", "fc6=3", "--energy", "0.9"],
        ["export", "a.pt", "--out", "b", "--size", "480"],
        ["build", "b", "--target", "toaster"],
        *(
            ["verify", "b", "--checkpoint", "c", "--data", "d", "--batch", sizes]
            for sizes in ("1,x", "0,4", "-1", "²", ",")
        ),
        ["verify", "b", "--checkpoint", "c", "--data", "d", "--images", "0"],
    ],
)
def test_wrong_use_is_2(arguments: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    try:
        code = run(arguments)
    except SystemExit as stop:
        code = int(stop.code or 0)
    assert code == 2
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("verb", ["export", "deploy"])
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--window-score", "0.4", "--merge", "0.6"], "window_score, merge: a FasterRCNN has no such threshold"),
        (["--candidates", "5000"], "expected candidates between 1 and 3840"),
        (["--nms", "1.5"], "expected nms between 0 and 1, found 1.5"),
    ],
)
def test_thresholds_that_cannot_be(
    verb: str, options: list[str], words: str, checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rest = ["--data", "shapes"] if verb == "deploy" else []
    assert run([verb, str(checkpoint), "--out", str(tmp_path / "bundle"), *rest, *options]) == 1
    assert words in one_line(capfd.readouterr().err)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_export_leaves_the_old_bundle(
    checkpoint: Path, native_bundle: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "bundle"
    shutil.copytree(native_bundle, out)
    assert run(["export", str(checkpoint), "--out", str(out), "--size", "100x100"]) == 1
    assert "multiple of the stride" in capfd.readouterr().err
    Manifest.read(out).verify_files()


def test_the_base_installation_says_what_is_missing(tmp_path: Path) -> None:
    """Without typer and rich three verbs work, and the others say how to get them."""
    code = (
        "import sys, importlib.util as u; real = u.find_spec\n"
        "u.find_spec = lambda n, *a: None if n in ('typer', 'rich') else real(n, *a)\n"
        "sys.modules['typer'] = sys.modules['rich'] = None\n"
        "from regionrt.cli import run\n"
        "print(run(['export', 'x']), run(['doctor', '--json']) in (0, 1), run(['build', 'absent']))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "2 True 1"
    assert 'pip install "regionrt[cli' in done.stderr


def test_version(capfd: pytest.CaptureFixture[str]) -> None:
    import regionrt

    assert run(["--version"]) == 0
    assert capfd.readouterr().out.strip() == regionrt.__version__


def test_help_lists_every_verb(capfd: pytest.CaptureFixture[str]) -> None:
    from regionrt.cli import main  # noqa: F401  (importing it registers the verbs)
    from regionrt.cli.app import VERBS, app

    names = [command.name or getattr(command.callback, "__name__", "") for command in app.registered_commands]
    assert sorted(VERBS) == sorted(names)
    assert run(["--help"]) == 0
    shown = capfd.readouterr().out
    assert all(f" {name} " in shown for name in VERBS)


def test_models_are_listed(capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["models", "--json"]) == 0
    assert {"faster_rcnn", "mask_rcnn", "torchvision/maskrcnn_resnet50_fpn"} <= set(json.loads(capfd.readouterr().out))


def test_doctor_names_what_runs_here(capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    usable = {info["name"] for info in found["backends"] if info["why_not"] is None}
    assert {"onnxruntime", "openvino", "torch"} <= usable
    assert found["native_ops"]["variant"] in ("avx512", "avx2", "baseline", "numpy")
    assert found["runs_bundles"] is True
    assert run(["doctor"]) == 0
    told = capfd.readouterr().out
    assert "does not run bundles" not in told
    assert found["native_ops"]["variant"] in told
