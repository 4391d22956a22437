"""The command: python runtime/infer.py, its outputs, its exit codes, and one clear line for each error."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from fake_detector import fake_artifact, fake_manifest, photo_with, write_manifest
from PIL import Image

from regionrt.runtime import infer
from regionrt.runtime.infer import main
from regionrt.runtime.masks import rle_area

pytest.importorskip("onnxruntime")
SCRIPT = Path(infer.__file__).resolve()


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for index in range(3):
        area = {"red": (10, 10, 60 + 10 * index, 70), "blue": (100, 20, 150, 90)}
        Image.fromarray(photo_with(100, 160, **area)).save(folder / f"p{index}.png")
    (folder / "notes.txt").write_text("no photo")
    return folder


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def test_json_lines_on_standard_output(shared_bundle: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(shared_bundle, photos) == 0
    out, err = capsys.readouterr()
    lines = [json.loads(line) for line in out.splitlines()]
    assert [line["file"] for line in lines] == [str(photos / f"p{index}.png") for index in range(3)]
    assert [[found["name"] for found in line["detections"]] for line in lines] == [["red", "blue"]] * 3
    assert lines[0]["image_size"] == [100, 160]
    assert "onnxruntime native fp32" in err
    assert "3 photos, 6 objects" in err
    assert "\r" not in err  # no bar where standard error is no terminal


def test_json_files(mask_bundle: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "deep" / "out"
    assert run(mask_bundle, photos / "p1.png", "--out", out) == 0
    assert os.listdir(out) == ["p1.json"]
    data = json.loads((out / "p1.json").read_text())
    assert rle_area(data["detections"][0]["mask"]) > 100
    assert capsys.readouterr().out == ""


def test_coco(shared_bundle: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(shared_bundle, photos, "--format", "coco", "--out", tmp_path / "out") == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    key = json.loads((tmp_path / "out" / "images.json").read_text())
    assert [result["image_id"] for result in results] == [1, 1, 2, 2, 3, 3]
    assert {result["category_id"] for result in results} == {1, 3}
    assert [(image["id"], Path(image["file_name"]).name) for image in key["images"]] == [
        (1, "p0.png"),
        (2, "p1.png"),
        (3, "p2.png"),
    ]
    assert key["categories"][0] == {"id": 1, "name": "red"}
    capsys.readouterr()
    assert run(shared_bundle, photos, "--format", "coco") == 0
    assert json.loads(capsys.readouterr().out) == results


def test_coco_ids_from_numbered_files(shared_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = []
    for name in ("000000000139", "000000000724"):
        paths.append(tmp_path / f"{name}.png")
        Image.fromarray(photo_with(50, 50, red=(0, 0, 30, 30))).save(paths[-1])
    assert run(shared_bundle, *paths, "--format", "coco") == 0
    assert [result["image_id"] for result in json.loads(capsys.readouterr().out)] == [139, 724]


def test_pictures(shared_bundle: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run(shared_bundle, photos / "p0.png", "--format", "image", "--out", out) == 0
    assert os.listdir(out) == ["p0.jpg"]
    before = np.asarray(Image.open(photos / "p0.png")).astype(int)
    after = np.asarray(Image.open(out / "p0.jpg")).astype(int)
    assert after.shape == before.shape
    changed = (np.abs(after - before) > 60).any(axis=2)
    assert changed.mean() > 0.02
    assert run(shared_bundle, photos / "p0.png", "--format", "image", "--out", out, "--score", 0.99) == 0
    after = np.asarray(Image.open(out / "p0.jpg")).astype(int)
    assert (np.abs(after - before) > 60).mean() < 0.001


def test_globs_folders_and_repeats(shared_bundle: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (photos / "deeper").mkdir()
    Image.fromarray(photo_with(40, 40)).save(photos / "deeper" / "p9.JPG")
    assert run(shared_bundle, photos, photos / "p?.png", photos / "**" / "*", photos / "p0.png") == 0
    names = [Path(json.loads(line)["file"]).name for line in capsys.readouterr().out.splitlines()]
    assert sorted(names) == ["p0.png", "p1.png", "p2.png", "p9.JPG"]


def test_photos_of_the_same_name_keep_apart(shared_bundle: Path, photos: Path, tmp_path: Path) -> None:
    paths = [photos / "p0.png", tmp_path / "p0.bmp", tmp_path / "p0-2.png"]
    for path in paths[1:]:
        Image.fromarray(photo_with(30, 30)).save(path)
    assert run(shared_bundle, *paths, "--out", tmp_path / "out") == 0
    files = {json.loads(path.read_text())["file"]: path.name for path in (tmp_path / "out").iterdir()}
    assert files == {str(paths[0]): "p0.json", str(paths[1]): "p0-3.json", str(paths[2]): "p0-2.json"}


def test_one_bad_image_among_many(shared_bundle: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = (photos / "p1.png").read_bytes()
    (photos / "p1.png").write_bytes(data[: len(data) // 2])
    (photos / "p3.png").touch()
    assert run(shared_bundle, photos, photos / "none.png", photos / "*.webp") == 1
    out, err = capsys.readouterr()
    assert [Path(json.loads(line)["file"]).name for line in out.splitlines()] == ["p0.png", "p2.png"]
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 4
    for part in (
        "*.webp: no image matches",
        "p1.png: cannot be decoded",
        "p3.png: expected an image",
        "none.png: cannot",
    ):
        assert any(part in line for line in errors), part
    assert "2 photos, 4 objects" in err
    assert "4 failed" in err
    assert "Traceback" not in err


def test_no_image_at_all(shared_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    assert run(shared_bundle, tmp_path / "empty") == 1
    assert "empty: the folder holds no images" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [[], ["bundle"], ["b", "i", "--format", "xml"], ["b", "i", "--score", "2"], ["b", "i", "--score", "x"],
     ["b", "i", "--threads", "0"], ["b", "i", "--format", "image"], ["b", "i", "--nonsense"]],
)  # fmt: skip
def test_wrong_use_is_exit_code_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert "usage:" in capsys.readouterr().err


def test_help_is_exit_code_0(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert "IMAGE" in capsys.readouterr().out


@pytest.mark.parametrize("debug", [False, True])
def test_errors_are_one_line_and_a_traceback_only_under_debug(
    tmp_path: Path, photos: Path, debug: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path / "none", photos, *(["--debug"] if debug else [])) == 1
    err = capsys.readouterr().err
    assert "error: " in err
    assert "expected a bundle" in err
    assert ("Traceback" in err) is debug
    assert debug or err.count("\n") == 1


def test_a_score_below_the_bundles(shared_bundle: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(shared_bundle, photos, "--score", 0.01) == 1
    assert "regionrt export --score 0.01" in capsys.readouterr().err


@pytest.mark.usefixtures("no_gpu")
def test_an_engine_by_name(bundle: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    engine = fake_artifact("tensorrt-rtx", "portable", ["native.onnx"], engine={})
    write_manifest(bundle, fake_manifest(bundle, artifacts=[engine]))
    assert run(bundle, photos, "--backend", "tensorrt-rtx") == 1
    assert "no NVIDIA GPU driver" in capsys.readouterr().err


def test_warnings_are_one_line(shared_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photo = photo_with(96, 128)
    photo[0, 0] = (0, 77, 0)
    Image.fromarray(photo).save(tmp_path / "many.png")
    assert run(shared_bundle, tmp_path / "many.png") == 0
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if line.startswith("warning: 5 candidate boxes")]
    assert not [line for line in lines if "warnings.warn" in line]


def test_the_photos_are_never_overwritten(
    shared_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.jpg"
    Image.fromarray(photo_with(60, 60, red=(0, 0, 40, 40))).save(path)
    before = path.read_bytes()
    assert run(shared_bundle, path, "--format", "image", "--out", tmp_path) == 1
    assert "would overwrite the photo itself" in capsys.readouterr().err
    assert path.read_bytes() == before


def test_a_full_disk(
    shared_bundle: Path,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    assert run(shared_bundle, photos, "--out", tmp_path / "out") == 1
    err = capsys.readouterr().err
    assert "the disk is full" in err
    assert "Traceback" not in err
    assert os.listdir(tmp_path / "out") == []


def test_the_bar_on_a_terminal(
    shared_bundle: Path, photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert run(shared_bundle, photos) == 0
    err = capsys.readouterr().err
    assert "2/3" in err
    assert "photos/s" in err
    assert err.rstrip("\n").split("\x1b[K")[-1].startswith("3 photos, 6 objects")  # the bar is gone at the end


@pytest.mark.parametrize("installed", [True, False])
def test_as_a_script_from_anywhere(installed: bool, shared_bundle: Path, photos: Path, tmp_path: Path) -> None:
    """Also where the package is not installed: -S leaves out site-packages; NumPy and the others come by PYTHONPATH."""
    code = [
        sys.executable,
        *([] if installed else ["-S"]),
        str(SCRIPT),
        str(shared_bundle),
        str(photos),
        "--threads",
        "1",
    ]
    paths = "" if installed else os.pathsep.join(entry for entry in sys.path if "packages" in entry)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"PYTHONPATH": paths}
    done = subprocess.run(code, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 3


def test_the_scripts_own_folder_is_not_on_the_path() -> None:
    code = (
        "import runpy, sys\nsys.argv = ['infer.py', '--help']\n"
        f"sys.path.insert(0, {str(SCRIPT.parent)!r})\n"
        f"try:\n    runpy.run_path({str(SCRIPT)!r}, run_name='__main__')\n"
        "except SystemExit as stop:\n    print(stop.code)\n"
        f"print({str(SCRIPT.parent)!r} in sys.path, 'regionrt.runtime' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-2:] == ["0", "False True"]


def test_a_closed_pipe_is_quiet(shared_bundle: Path, photos: Path) -> None:
    command = f"'{sys.executable}' '{SCRIPT}' '{shared_bundle}' '{photos}' | true"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=120, check=False)
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
