"""Reading bundles: what a good manifest says, and every way in which a bundle can be damaged or hostile."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from fake_detector import LABELS, fake_artifact, fake_manifest, write_manifest

from regionrt.runtime import preflight
from regionrt.runtime.bundle import MAX_TEXT_BYTES, Artifact, Manifest, is_bundle
from regionrt.runtime.errors import BundleError
from regionrt.runtime.image import Canvas


def change(folder: Path, **fields: Any) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    write_manifest(folder, manifest | fields)


def one_line(error: BaseException) -> str:
    assert "\n" not in str(error)
    return str(error)


def test_a_whole_bundle(shared_bundle: Path) -> None:
    manifest = Manifest.read(shared_bundle)
    assert manifest.labels == LABELS
    assert manifest.canvas == Canvas(96, 128, 96, 128)
    assert manifest.thresholds["score"] == 0.05
    assert set(manifest.files) == {"native.onnx", "weights.bin", "labels.txt"}
    assert [str(artifact) for artifact in manifest.artifacts] == ["onnxruntime native fp32"]
    assert manifest.path("native.onnx").is_file()
    manifest.verify_files()


def test_to_json_writes_what_read_reads(bundle: Path) -> None:
    engine = {"compute_capabilities": ["8.6"], "precision": "fp32"}
    (bundle / "engines").mkdir()
    (bundle / "engines" / "a.engine").write_bytes(b"engine")
    artifacts = [
        fake_artifact("tensorrt-rtx", "portable", ["engines/a.engine"], engine=engine, profiles=[{"images": {}}]),
        fake_artifact("onnxruntime", "native", ["native.onnx", "weights.bin"]),
    ]
    given = fake_manifest(bundle, artifacts=artifacts, max_batch=2)
    write_manifest(bundle, given)
    assert Manifest.read(bundle).to_json() == given


@pytest.mark.parametrize("name", ["native.onnx", "weights.bin", "labels.txt", "manifest.json"])
def test_a_missing_file(bundle: Path, name: str) -> None:
    (bundle / name).unlink()
    with pytest.raises(BundleError, match=f"{name}: (missing|not found)") as caught:
        Manifest.read(bundle)
    one_line(caught.value)


def test_a_truncated_file(bundle: Path) -> None:
    path = bundle / "native.onnx"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(
        BundleError, match=r"native\.onnx: cut short: expected [\d,]+ bytes, found [\d,]+; copy"
    ) as caught:
        Manifest.read(bundle)
    one_line(caught.value)


def test_a_changed_file_of_the_same_size(bundle: Path) -> None:
    path = bundle / "weights.bin"
    data = bytearray(path.read_bytes())
    data[0] ^= 1
    path.write_bytes(data)
    manifest = Manifest.read(bundle)  # sizes are right
    manifest.verify_files(["native.onnx"])
    with pytest.raises(BundleError, match=r"weights\.bin: changed since the export: expected sha256 \w{12}…, found"):
        manifest.verify_files(["native.onnx", "weights.bin"])


def test_a_file_that_disappears_after_reading(bundle: Path) -> None:
    manifest = Manifest.read(bundle)
    (bundle / "native.onnx").unlink()
    with pytest.raises(BundleError, match="missing"):
        manifest.verify_files()
    with pytest.raises(BundleError, match="not listed"):
        manifest.verify_files(["other.onnx"])


def test_changed_labels(bundle: Path) -> None:
    (bundle / "labels.txt").write_text("\n".join(LABELS).replace("red", "rad") + "\n")
    with pytest.raises(BundleError, match=r"labels\.txt: changed"):
        Manifest.read(bundle)


@pytest.mark.parametrize("text", ["person\ncar\n", "__background__\n", ""])
def test_labels_start_with_the_background(bundle: Path, text: str) -> None:
    (bundle / "labels.txt").write_text(text)
    write_manifest(bundle, fake_manifest(bundle))
    with pytest.raises(BundleError, match="__background__ and at least one name"):
        Manifest.read(bundle)


@pytest.mark.parametrize(
    "name",
    ["../secret.bin", "/etc/hostname", "engines/../../secret.bin", "C:/secret", "..\\secret.bin", "", ".", "a\0b"],
)
def test_a_path_that_leaves_the_folder(bundle: Path, name: str) -> None:
    (bundle.parent / "secret.bin").write_bytes(b"x")
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["files"][name] = {"bytes": 1, "sha256": "0" * 64}
    write_manifest(bundle, manifest)
    with pytest.raises(BundleError, match="leaves the bundle") as caught:
        Manifest.read(bundle)
    one_line(caught.value)


def test_a_link_that_leaves_the_folder(bundle: Path) -> None:
    outside = bundle.parent / "outside.bin"
    (bundle / "weights.bin").rename(outside)
    (bundle / "weights.bin").symlink_to(outside)
    with pytest.raises(BundleError, match=r"weights\.bin: is a link that leaves the bundle"):
        Manifest.read(bundle)


def test_a_folder_link_that_leaves_and_a_loop(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a.engine").write_bytes(b"x")
    (bundle / "engines").symlink_to(tmp_path / "elsewhere")
    (bundle / "loop.bin").symlink_to(bundle / "loop.bin")
    manifest = Manifest.read(bundle)
    with pytest.raises(BundleError, match="leaves the bundle"):
        manifest.path("engines/a.engine")
    change(bundle, files=dict(manifest.files) | {"loop.bin": {"bytes": 1, "sha256": "0" * 64}})
    with pytest.raises(BundleError, match=r"loop\.bin"):
        Manifest.read(bundle)


def test_links_inside_the_folder_are_fine(bundle: Path) -> None:
    (bundle / "weights.bin").rename(bundle / "blob")
    (bundle / "weights.bin").symlink_to("blob")
    Manifest.read(bundle).verify_files()


def test_a_bundle_reached_through_a_link(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "current").symlink_to(bundle)
    Manifest.read(tmp_path / "current").verify_files()


def test_a_newer_schema(bundle: Path) -> None:
    change(bundle, format="regionrt-bundle/2")
    with pytest.raises(
        BundleError, match="regionrt-bundle/2, but this regionrt reads regionrt-bundle/1; update regionrt"
    ):
        Manifest.read(bundle)


@pytest.mark.parametrize("form", [None, 3, "regionrt/1", "regionrt-bundle/x", "regionrt-bundle/1 "])
def test_another_format(bundle: Path, form: object) -> None:
    change(bundle, format=form)
    with pytest.raises(BundleError, match="this is no bundle of ours"):
        Manifest.read(bundle)


@pytest.mark.parametrize(
    "text", ["", "{", "not json", '{"format": ', "[" * 100_000, b"\xff\xfe\0", "[]", "null", '"x"']
)
def test_a_manifest_that_is_no_json(bundle: Path, text: str | bytes) -> None:
    (bundle / "manifest.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(BundleError, match=r"manifest\.json: (expected|cannot)") as caught:
        Manifest.read(bundle)
    assert len(one_line(caught.value)) < 500


def test_a_manifest_of_absurd_size_is_not_read(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open(bundle / "manifest.json", "r+b") as file:
        file.truncate(50 * 1024**3)  # sparse: takes no disk
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: pytest.fail("was read"))
    with pytest.raises(BundleError, match=f"expected at most {MAX_TEXT_BYTES:,}"):
        Manifest.read(bundle)


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"expected a bundle, the folder .* found nothing"):
        Manifest.read(tmp_path / "none")
    (tmp_path / "file").touch()
    with pytest.raises(BundleError, match="found a file"):
        Manifest.read(tmp_path / "file")
    with pytest.raises(BundleError, match=r"manifest\.json: not found"):
        Manifest.read(tmp_path)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("task", "classification"),
        ("model", 7),
        ("files", []),
        ("files", {"native.onnx": {"bytes": -1, "sha256": "0" * 64}}),
        ("files", {"native.onnx": {"bytes": True, "sha256": "0" * 64}}),
        ("files", {"native.onnx": {"bytes": 1, "sha256": "../x"}}),
        ("files", {"native.onnx": 5}),
        ("artifacts", {}),
        ("artifacts", ["x"]),
        ("artifacts", [{"backend": "onnxruntime"}]),
        ("artifacts", [fake_artifact("onnxruntime", "native", [])]),
        ("artifacts", [fake_artifact("onnxruntime", "native", ["other.onnx"])]),
        ("artifacts", [fake_artifact("onnxruntime", "native", ["native.onnx"], engine=3)]),
        ("artifacts", [fake_artifact("onnxruntime", "native", ["native.onnx"], profiles={})]),
        ("labels_file", "other.txt"),
        ("labels_file", ["labels.txt"]),
        ("canvas", {"height": 96}),
        ("canvas", None),
        ("thresholds", {"score": 0.05}),
        ("thresholds", []),
        ("max_batch", 0),
        ("max_batch", "4"),
    ],
)
def test_a_field_of_the_wrong_kind(bundle: Path, field: str, value: object) -> None:
    change(bundle, **{field: value})
    with pytest.raises(BundleError) as caught:
        Manifest.read(bundle)
    assert len(one_line(caught.value)) < 500


@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf"), "0.05", None, True])
def test_a_threshold_that_is_no_number(bundle: Path, value: object) -> None:
    thresholds = json.loads((bundle / "manifest.json").read_text())["thresholds"]
    change(bundle, thresholds=thresholds | {"score": value})
    with pytest.raises(BundleError, match="thresholds: score"):
        Manifest.read(bundle)


@pytest.mark.parametrize("field", ["task", "model", "labels_file", "canvas", "thresholds", "files", "artifacts"])
def test_a_missing_field_is_named(bundle: Path, field: str) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    del manifest[field]
    write_manifest(bundle, manifest)
    with pytest.raises(BundleError, match=f"none of {field}"):
        Manifest.read(bundle)


def test_preflight_of_what_can_run(shared_bundle: Path) -> None:
    manifest = Manifest.read(shared_bundle)
    assert manifest.preflight(manifest.artifacts[0]) is None
    assert manifest.preflight(Artifact("onnxruntime", "portable", "fp16", ("x.onnx",))) is None


def test_preflight_says_what_is_missing(shared_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = Manifest.read(shared_bundle)
    engine = Artifact("tensorrt-rtx", "portable", "fp16", ("engines/a.engine",))
    libraries: set[str] = set()
    monkeypatch.setattr(preflight, "find_spec", lambda name: name if name in libraries else None)
    monkeypatch.setattr(preflight, "why_no_driver", lambda: "no NVIDIA GPU driver")
    assert "onnxruntime is not installed (pip install" in str(manifest.preflight(manifest.artifacts[0]))
    why = str(manifest.preflight(engine))
    assert why.split("; ") == [
        "the library tensorrt_rtx is not installed (pip install 'regionrt[rtx]')",
        "neither cuda-python nor pycuda is installed (pip install cuda-python)",
        "no NVIDIA GPU driver",
    ]
    libraries |= {"tensorrt_rtx", "pycuda"}
    assert manifest.preflight(engine) == "no NVIDIA GPU driver"
    monkeypatch.setattr(preflight, "why_no_driver", lambda: None)
    assert manifest.preflight(engine) is None
    assert "tensorrt is not installed" in str(manifest.preflight(Artifact("tensorrt", "native", "fp32", ("a",))))


def test_preflight_of_what_this_version_does_not_know(shared_bundle: Path) -> None:
    manifest = Manifest.read(shared_bundle)
    assert "'plugin'" in str(manifest.preflight(Artifact("onnxruntime", "plugin", "fp32", ("a",))))
    assert "'coreml'" in str(manifest.preflight(Artifact("coreml", "native", "fp32", ("a",))))


def test_is_bundle(bundle: Path, tmp_path: Path) -> None:
    assert is_bundle(bundle)
    change(bundle, format="regionrt-bundle/9")
    assert is_bundle(bundle)
    (bundle / "manifest.json").write_text("{")
    assert not is_bundle(bundle)
    assert not is_bundle(tmp_path)
    os.mkdir(tmp_path / "other")
    write_manifest(tmp_path / "other", {"manifest_version": 3})
    assert not is_bundle(tmp_path / "other")
