"""Builds that fail: each is one BackendError that says why, and the bundle stays as it was."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from build_nets import convolutions, non_max_suppression, unknown_operator, write_bundle

from regionrt.runtime import build_process
from regionrt.runtime.build import BuildOptions, build_engines
from regionrt.runtime.bundle import sha256_of
from regionrt.runtime.child import module_command
from regionrt.runtime.errors import BackendError, BundleError, RegionRTError

needs_rtx = pytest.mark.skipif(
    find_spec("tensorrt_rtx") is None, reason="tensorrt-rtx is not installed: pip install 'regionrt[rtx]'"
)


@pytest.fixture
def bundle(tmp_path: Path) -> Iterator[Path]:
    """A bundle that must be the same, byte for byte, after the test."""
    folder = write_bundle(tmp_path / "b", {("portable", "fp32"): convolutions()})
    before = contents(folder)
    yield folder
    assert contents(folder) == before


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def fails(folder: Path, *patterns: str, **options: Any) -> str:
    """Builds, expects a BackendError of one line in which every pattern occurs, and that nothing changed."""
    before = contents(folder)
    with pytest.raises(BackendError) as caught:
        build_engines(folder, options=BuildOptions(**options))
    message = str(caught.value)
    assert "\n" not in message
    for pattern in patterns:
        assert pattern in message
    assert contents(folder) == before
    assert not (folder / "engines").exists()
    return message


def replace_graph(folder: Path, data: bytes) -> None:
    """Puts other bytes in the place of the ONNX file, with a manifest that agrees."""
    path = folder / "portable-fp32.onnx"
    path.write_bytes(data)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"][path.name] = {"bytes": len(data), "sha256": sha256_of(path)}
    (folder / "manifest.json").write_text(json.dumps(manifest))


@needs_rtx
def test_a_precision_that_was_not_built_is_an_error(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "b", {("portable", "fp32"): convolutions(), ("portable", "fp16"): convolutions()})
    fails(folder, "asked for fp16", "0 of 3 convolutions", "stem (fp32)", "--precision fp16")


@needs_rtx
def test_an_operator_without_implementation_is_named(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "b", {("native", "fp32"): non_max_suppression()})
    fails(folder, "NonMaxSuppression", "has no runners that implement it", ops="native")


@needs_rtx
def test_an_operator_that_the_parser_does_not_know_is_named(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "b", {("portable", "fp32"): unknown_operator()})
    fails(folder, "portable-fp32.onnx", "RegionNms (node 'nms')", "Plugin not found")


@needs_rtx
@pytest.mark.parametrize("kept", [0, 40, 400])
def test_a_corrupted_graph_is_refused_by_the_parser(tmp_path: Path, kept: int) -> None:
    folder = write_bundle(tmp_path / "b", {("portable", "fp32"): convolutions()})
    replace_graph(folder, (folder / "portable-fp32.onnx").read_bytes()[:kept])
    fails(folder, "TensorRT's parser refuses portable-fp32.onnx")


@pytest.mark.parametrize("name", ["portable-fp32.onnx", "weights-portable-fp32.bin"])
def test_changed_files_are_not_built_from(tmp_path: Path, name: str) -> None:
    folder = write_bundle(tmp_path / "b", {("portable", "fp32"): convolutions()})
    data = bytearray((folder / name).read_bytes())
    data[-1] ^= 1
    (folder / name).write_bytes(data)
    with pytest.raises(BundleError, match=name):
        build_engines(folder)


@needs_rtx
def test_an_unknown_compute_capability_lists_those_known(bundle: Path) -> None:
    message = fails(bundle, "compute capability 9.0", "it knows 7.5, 8.0, 8.6", compute_capability=("8.6", "9.0"))
    assert "8.6, 9.0:" not in message


@needs_rtx
def test_a_profile_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    wrong = {"images": {"min": [1, 8, 8, 3], "opt": [1, 8, 8, 3], "max": [1, 8, 8, 3]}}
    folder = write_bundle(tmp_path / "b", {("portable", "fp32"): convolutions()}, [wrong])
    fails(folder, "expected a profile for the inputs ['image_sizes', 'images']")
    sizes = {"image_sizes": {"min": [1, 2], "opt": [1, 2], "max": [1, 2]}}
    folder = write_bundle(tmp_path / "c", {("portable", "fp32"): convolutions()}, [wrong | sizes])
    fails(folder, "could not build the engine", "images")


def test_a_dynamic_size_without_profile_is_refused(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "b", {("portable", "fp32"): convolutions()}, profiles=[])
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["artifacts"][0]["inputs"][0]["shape"] = ["N", "H", "W", 3]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    fails(folder, "input images", "['N', 'H', 'W', 3]", "no profile")


def test_a_form_that_the_bundle_does_not_hold_is_named(bundle: Path) -> None:
    fails(bundle, "built from the native form, the bundle holds portable", "--ops native", ops="native")


def test_a_missing_library_says_how_to_get_it(bundle: Path) -> None:
    if find_spec("tensorrt") is not None:
        pytest.skip("full TensorRT is installed here")
    with pytest.raises(BackendError, match=r"tensorrt cannot be loaded .*pip install .regionrt\[tensorrt\]"):
        build_engines(bundle, "tensorrt")


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("raise ImportError('libcudart.so.13: cannot open shared object file')", "libcudart.so.13: cannot open"),
        ("raise OSError('libtensorrt_rtx.so.1: file too short')", "file too short"),
        ("__version__ = '1.0'", "has no attribute 'Builder'"),
    ],
    ids=["library missing", "library broken", "stub"],
)
def test_a_library_that_does_not_load(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, told: str
) -> None:
    (tmp_path / "libraries").mkdir()
    (tmp_path / "libraries" / "tensorrt_rtx.py").write_text(source)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "libraries"))
    fails(bundle, "tensorrt-rtx cannot be loaded", told, "regionrt[rtx]")


@needs_rtx
def test_a_broken_library_path_does_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The wheel loads its libraries by full path, before anything looks for them on LD_LIBRARY_PATH."""
    (tmp_path / "broken").mkdir()
    for name in ("libtensorrt_rtx.so", "libtensorrt_rtx.so.1", "libtensorrt_onnxparser_rtx.so.1"):
        (tmp_path / "broken" / name).write_bytes(b"no library")
    monkeypatch.setenv("LD_LIBRARY_PATH", f"/nowhere:{tmp_path / 'broken'}")
    folder = write_bundle(tmp_path / "b", {("portable", "fp32"): convolutions()})
    (artifact,) = build_engines(folder)
    assert (folder / artifact.files[0]).is_file()


@needs_rtx
def test_a_child_that_is_killed_is_an_error(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    children = recorded_children(monkeypatch)
    with pytest.raises(BackendError, match=r"was ended by SIGKILL .*memory runs out"):
        build_engines(bundle, progress=lambda phase, fraction: children[-1].kill())


def test_a_child_that_aborts_is_quoted(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    died = (
        'import os, sys; print(\'{"log": ["ERROR", "no tactic"]}\', flush=True);'
        "print('terminate called', file=sys.stderr, flush=True); os.abort()"
    )
    monkeypatch.setattr(build_process, "module_command", lambda name: ([sys.executable, "-c", died], dict(os.environ)))
    fails(bundle, "was ended by SIGABRT", "no tactic", "terminate called")


@needs_rtx
def test_a_build_that_takes_too_long_is_stopped(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    children = recorded_children(monkeypatch)
    fails(bundle, "took longer than 0.05 s", "--timeout", timeout_s=0.05)
    assert children[-1].poll() == -signal.SIGKILL


@needs_rtx
def test_an_interrupted_build_ends_its_child(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    children = recorded_children(monkeypatch)

    def interrupt(phase: str, fraction: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_engines(bundle, progress=interrupt)
    assert children[-1].poll() == -signal.SIGKILL


def test_a_child_ends_with_its_parent(tmp_path: Path) -> None:
    """The library stands still inside the build; the parent's end of the pipe closes, as it does when it is killed."""
    (tmp_path / "slow_library.py").write_text("import time\ntime.sleep(60)\n")
    engine = tmp_path / "half.engine"
    engine.write_bytes(b"half")
    command, environment = module_command("build_child")
    environment["PYTHONPATH"] += os.pathsep + str(tmp_path)
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, env=environment)
    assert child.stdin is not None
    child.stdin.write(json.dumps({"module": "slow_library", "engine": str(engine), "target": "x", "get": "x"}).encode())
    child.stdin.write(b"\n")
    child.stdin.flush()
    time.sleep(0.5)
    assert child.poll() is None
    child.stdin.close()
    assert child.wait(timeout=60) == 1
    assert not engine.exists()


@needs_rtx
@pytest.mark.parametrize("name", ["portable-fp32.onnx", "weights-portable-fp32.bin"])
def test_a_bundle_exported_anew_during_the_build_gets_no_engine(tmp_path: Path, name: str) -> None:
    """Trained further, a net has the same graph and other weights."""
    folder = write_bundle(tmp_path / "b", {("portable", "fp32"): convolutions()})

    def export_again(phase: str, fraction: float) -> None:
        manifest = json.loads((folder / "manifest.json").read_text())
        manifest["files"][name]["sha256"] = "0" * 64
        (folder / "manifest.json").write_text(json.dumps(manifest))

    with pytest.raises(BundleError, match=f"{name} was exported anew during the build"):
        build_engines(folder, progress=export_again)
    assert not (folder / "engines").exists()


@needs_rtx
def test_a_failure_leaves_the_engines_that_were_there(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "b", {("portable", "fp32"): convolutions()})
    build_engines(folder)
    before = contents(folder)
    with pytest.raises(RegionRTError):
        build_engines(folder, options=BuildOptions(compute_capability=("9.0",)))
    assert contents(folder) == before


def recorded_children(monkeypatch: pytest.MonkeyPatch) -> list[subprocess.Popen[bytes]]:
    """The child processes that a build starts."""
    children: list[subprocess.Popen[bytes]] = []
    start = subprocess.Popen

    def record(*arguments: Any, **options: Any) -> subprocess.Popen[bytes]:
        children.append(start(*arguments, **options))
        return children[-1]

    monkeypatch.setattr(build_process.subprocess, "Popen", record)
    return children
