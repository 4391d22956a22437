"""What the builder is told beyond the graph: compatibility, refitting, timing cache; and the command for it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from build_nets import convolutions, fixed_point_in_functions, write_bundle

from regionrt.runtime import build_child
from regionrt.runtime.build import BuildOptions, build_engines
from regionrt.runtime.build_command import _options, _parser
from regionrt.runtime.bundle import Manifest
from regionrt.runtime.errors import BackendError
from regionrt.runtime.preflight import rebuild_command

trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed: pip install 'regionrt[rtx]'")
OPTIONS = ("version_compatible", "exclude_lean_runtime", "hardware_compatibility", "refittable")


@pytest.fixture
def config() -> Any:
    """A builder's configuration; both flavours of TensorRT have the same class."""
    builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
    return builder.create_builder_config()


class Recorded:
    """A configuration that keeps what TensorRT for RTX takes and forgets."""

    def __init__(self) -> None:
        self.flags: set[Any] = set()
        self.hardware_compatibility_level = trt.HardwareCompatibilityLevel.NONE

    def set_flag(self, flag: Any) -> None:
        self.flags.add(flag)


@pytest.mark.parametrize(
    ("option", "flag"),
    [
        ("version_compatible", "VERSION_COMPATIBLE"),
        ("exclude_lean_runtime", "EXCLUDE_LEAN_RUNTIME"),
        ("refittable", "REFIT"),
    ],
)
def test_flags(option: str, flag: str) -> None:
    config = Recorded()
    build_child._set_flags(trt, config, dict.fromkeys(OPTIONS))
    assert config.flags == set()
    build_child._set_flags(trt, config, dict.fromkeys(OPTIONS) | {option: True})
    assert config.flags == {getattr(trt.BuilderFlag, flag)}


def test_hardware_compatibility() -> None:
    config = Recorded()
    asked = dict.fromkeys(OPTIONS) | {"hardware_compatibility": "ampere_plus"}
    build_child._set_flags(trt, config, asked)
    assert config.hardware_compatibility_level == trt.HardwareCompatibilityLevel.AMPERE_PLUS
    with pytest.raises(BackendError, match=r"no hardware compatibility 'volta_plus': it knows .*ampere_plus"):
        build_child._set_flags(trt, config, asked | {"hardware_compatibility": "volta_plus"})


@pytest.mark.parametrize("before", [None, b"", b"no timing cache"])
def test_a_timing_cache_is_kept(config: Any, tmp_path: Path, before: bytes | None) -> None:
    path = tmp_path / "measured"
    if before is not None:
        path.write_bytes(before)
    config.reset()
    build_child._load_timing_cache(config, str(path))
    build_child._keep_timing_cache(config, str(path))
    kept = path.read_bytes()
    assert len(kept) > 16
    config.reset()
    build_child._load_timing_cache(config, str(path))
    assert bytes(config.get_timing_cache().serialize()) == kept


@pytest.mark.parametrize(("net", "depends"), [(convolutions, False), (fixed_point_in_functions, True)])
def test_the_certificate_says_what_depends_on_the_data(tmp_path: Path, net: Any, depends: bool) -> None:
    (artifact,) = build_engines(write_bundle(tmp_path / "b", {("portable", "fp32"): net()}))
    assert artifact.engine is not None
    assert artifact.engine["data_dependent_shapes"] is depends


def test_the_command_builds_the_same_again(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "b", {("portable", "fp32"): convolutions()})
    options = BuildOptions(compute_capability=("8.9",), optimization_level=2)
    (artifact,) = build_engines(bundle, options=options)
    assert artifact.engine is not None
    assert artifact.engine["refittable"] is False
    assert artifact.engine["host_code"] is False
    words = rebuild_command(Manifest.read(bundle), artifact).split()
    assert words[:3] == ["regionrt", "build", str(bundle)]
    parser = _parser()
    again = parser.parse_args(words[2:])
    assert again.target == "tensorrt-rtx"
    assert _options(parser, again) == BuildOptions(ops="portable", compute_capability=("8.9",), optimization_level=2)


@pytest.mark.parametrize(
    "options",
    [
        BuildOptions(
            optimization_level=1,
            workspace_mib=7,
            version_compatible=True,
            exclude_lean_runtime=True,
            hardware_compatibility="same_compute_capability",
            refittable=True,
            loader="polygraphy",
        ),
        BuildOptions(compute_capability=("12.0",)),
        BuildOptions(),
    ],
)
def test_arguments_say_the_options(options: BuildOptions) -> None:
    parser = _parser()
    assert _options(parser, parser.parse_args(["b", *options.arguments()])) == options


@pytest.mark.parametrize(
    "wrong",
    [{"exclude_lean_runtime": True}, {"hardware_compatibility": "none"}, {"hardware_compatibility": "AMPERE_PLUS"}],
)
def test_options_are_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        BuildOptions(**wrong)


def test_it_builds_without_torch_onnx_and_typer(tmp_path: Path) -> None:
    """On a device there are NumPy and TensorRT only."""
    bundle = write_bundle(tmp_path / "b", {("portable", "fp32"): convolutions()})
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    for name in ("torch", "onnx", "typer", "rich", "onnxruntime", "onnx_ir", "onnxscript", "polygraphy"):
        (hidden / f"{name}.py").write_text("raise ImportError('hidden')")
    code = (
        f"import sys; sys.path.insert(0, {str(hidden)!r}); import os; "
        "os.environ['PYTHONPATH'] = os.pathsep.join(sys.path); "
        f"from regionrt.runtime.build_command import main; sys.exit(main([{str(bundle)!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    certificate = Manifest.read(bundle).artifacts[0].engine
    assert certificate is not None
    assert certificate["loader"] == "api"
