"""The build command of the runtime alone: arguments, output and exit status."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
from build_nets import convolutions, write_bundle

from regionrt.runtime import build_command
from regionrt.runtime.build import BuildOptions
from regionrt.runtime.bundle import Manifest

needs_rtx = pytest.mark.skipif(
    find_spec("tensorrt_rtx") is None, reason="tensorrt-rtx is not installed: pip install 'regionrt[rtx]'"
)


@needs_rtx
def test_it_builds_and_says_what(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = write_bundle(tmp_path / "b", {("portable", "fp16"): convolutions("fp16")})
    assert build_command.main([str(bundle), "--compute-capability", "8.6, 8.9"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("engines/tensorrt-rtx-portable-fp16-sm86-sm89-")
    assert line.endswith("compute capability 8.6, 8.9, 3 of 3 conv layers in fp16")


@needs_rtx
def test_json_is_the_manifests_entry(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = write_bundle(tmp_path / "b", {("portable", "fp32"): convolutions()})
    assert build_command.main([str(bundle), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == [Manifest.read(bundle).artifacts[0].to_json()]


def test_options_arrive(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[object] = []
    monkeypatch.setattr(build_command, "build_engines", lambda *given: seen.extend(given) or [])
    words = "b --target tensorrt --ops portable --optimization-level 4 --workspace 512 --timeout 9 --verbose --json"
    words += " --version-compatible --exclude-lean-runtime --hardware-compatibility ampere_plus --refittable"
    words += " --timing-cache measured"
    assert build_command.main(words.split()) == 0
    assert seen == [
        Path("b"),
        "tensorrt",
        BuildOptions(
            ops="portable",
            optimization_level=4,
            workspace_mib=512,
            version_compatible=True,
            exclude_lean_runtime=True,
            hardware_compatibility="ampere_plus",
            refittable=True,
            timing_cache=Path("measured"),
            timeout_s=9.0,
            verbose=True,
        ),
        None,
    ]


@pytest.mark.parametrize(
    "words",
    [
        "b --ops nonsense",
        "b --target cuda",
        "b --compute-capability 86",
        "b --optimization-level 9",
        "",
        "b --exclude-lean-runtime",
        "b --version-compatible",
        "b --hardware-compatibility ampere_plus",
        "b --timing-cache x",
    ],
)
def test_wrong_use_ends_with_two(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert build_command.main(words.split()) == 2
    assert "regionrt build: error:" in capsys.readouterr().err


def test_a_failure_is_one_line_and_ends_with_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert build_command.main([str(tmp_path / "nothing")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert "expected a bundle" in line
    assert build_command.main([str(tmp_path / "nothing"), "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_ctrl_c_is_told_and_no_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*given: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(build_command, "build_engines", interrupted)
    assert build_command.main([str(tmp_path)]) == 130
    assert capsys.readouterr().err == "interrupted, the bundle is as it was\n"
