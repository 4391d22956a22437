"""Builds through Polygraphy's loaders, executed for real with TensorRT for RTX.

They give the same engine as TensorRT's own calls and the same errors, and keep a timing cache.
"""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from build_nets import convolutions, fixed_profile, non_max_suppression, profile, unknown_operator, write_bundle

from regionrt.runtime import build_settings
from regionrt.runtime.build import DEFAULT_OPTIONS, BuildOptions, _job, build_engines
from regionrt.runtime.build_parts import parts_of
from regionrt.runtime.build_process import run_build
from regionrt.runtime.bundle import Manifest
from regionrt.runtime.errors import BackendError
from regionrt.runtime.polygraphy_build import build_through_polygraphy, polygraphy_version

trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed: pip install 'regionrt[rtx]'")
pytestmark = pytest.mark.skipif(
    polygraphy_version() is None, reason="polygraphy is not installed: pip install polygraphy"
)


def job_of(manifest: Manifest, target: str, options: BuildOptions, engine: Path) -> dict[str, Any]:
    """The build job of the bundle's only graph."""
    (source,) = manifest.artifacts
    (part,) = parts_of(source)
    return _job(manifest, source, part, target, options, engine)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize(
    "options",
    [{}, {"compute_capability": ("8.9",), "optimization_level": 2, "workspace_mib": 256}],
    ids=["plain", "with options"],
)
def test_the_engine_is_the_same(tmp_path: Path, precision: str, options: dict[str, Any]) -> None:
    bundle = write_bundle(tmp_path / "b", {("portable", precision): convolutions(precision)})
    (by_api,) = build_engines(bundle, options=BuildOptions(**options))
    engine = (bundle / by_api.files[0]).read_bytes()
    (artifact,) = build_engines(bundle, options=BuildOptions(loader="polygraphy", **options))
    assert (bundle / artifact.files[0]).read_bytes() == engine
    assert artifact.engine is not None
    assert by_api.engine is not None
    assert by_api.engine["loader"] == "api"
    assert artifact.engine["loader"] == f"polygraphy {importlib.metadata.version('polygraphy')}"
    told = {"loader", "build_seconds", "options"}
    assert {k: v for k, v in artifact.engine.items() if k not in told} == {
        k: v for k, v in by_api.engine.items() if k not in told
    }
    assert artifact.engine["options"] == [*by_api.engine["options"], "--loader", "polygraphy"]
    assert artifact.engine["proof"]["share"] == 1.0


def test_profiles_are_all_there(tmp_path: Path) -> None:
    profiles = [profile(1, 1, 1), profile(1, 4, 8)]
    bundle = write_bundle(tmp_path / "b", {("portable", "fp32"): convolutions()}, profiles)
    (by_api,) = build_engines(bundle)
    size = (bundle / by_api.files[0]).stat().st_size
    told: list[float] = []
    (artifact,) = build_engines(
        bundle, options=BuildOptions(loader="polygraphy"), progress=lambda _, fraction: told.append(fraction)
    )
    assert artifact.profiles == tuple(profiles)
    found = (bundle / artifact.files[0]).stat().st_size
    assert abs(found - size) < size / 100  # dynamic sizes: a few bytes differ from build to build
    assert any(0.3 < fraction < 1 for fraction in told)  # its progress monitor is heard


@pytest.mark.parametrize(
    ("net", "told"),
    [
        (unknown_operator, "TensorRT's parser refuses portable-fp32.onnx: RegionNms .node 'nms'"),
        (non_max_suppression, "NonMaxSupp"),
    ],
)
def test_what_cannot_be_built_is_one_error(tmp_path: Path, net: Any, told: str) -> None:
    bundle = write_bundle(tmp_path / "b", {("portable", "fp32"): net()})
    with pytest.raises(BackendError, match=told) as caught:
        build_engines(bundle, options=BuildOptions(loader="polygraphy"))
    assert "\n" not in str(caught.value)
    assert not (bundle / "engines").exists()


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"images": fixed_profile()["images"]}, "expected a profile for the inputs"),
        (profile(4, 2, 1), "Polygraphy refuses the configuration|TensorRT refuses the profile"),
    ],
)
def test_a_profile_that_does_not_fit(tmp_path: Path, wrong: Any, told: str) -> None:
    bundle = write_bundle(tmp_path / "b", {("portable", "fp32"): convolutions()}, [wrong])
    with pytest.raises(BackendError, match=told):
        build_engines(bundle, options=BuildOptions(loader="polygraphy"))


@pytest.mark.parametrize("before", [None, b"", b"no timing cache"])
def test_a_timing_cache_is_kept(tmp_path: Path, before: bytes | None) -> None:
    bundle = write_bundle(tmp_path / "b", {("portable", "fp32"): convolutions()})
    manifest = Manifest.read(bundle)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    cache = tmp_path / "cache" / "measured"
    cache.parent.mkdir()
    if before is not None:
        cache.write_bytes(before)
    job = job_of(manifest, "tensorrt-rtx", DEFAULT_OPTIONS, scratch / "engine")
    job |= {"loader": "polygraphy", "timing_cache": str(cache)}
    run_build(job, 300)
    assert len(cache.read_bytes()) > 16
    assert [path.name for path in cache.parent.iterdir()] == ["measured"]


def test_every_setting_arrives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to the build itself, which full TensorRT alone can do with them."""
    monkeypatch.setenv("POLYGRAPHY_USE_TENSORRT_RTX", "1")
    from polygraphy.backend import trt as loaders
    from polygraphy.exception import PolygraphyException

    class NoBuild:
        def __init__(self, network: Any, config: Any, save_timing_cache: Any) -> None:
            pass

        def __call__(self) -> None:
            raise PolygraphyException("no build")

    class Log(trt.ILogger):
        def __init__(self) -> None:
            super().__init__()

        def log(self, severity: Any, text: str) -> None:
            pass

        def last_errors(self) -> str:
            return "nothing"

    given: dict[str, Any] = {}

    class Recorded(loaders.CreateConfig):  # type: ignore[name-defined]
        def __init__(self, **settings: Any) -> None:
            given.update(settings)
            super().__init__(**settings)

    monkeypatch.setattr(loaders, "EngineBytesFromNetwork", NoBuild)
    monkeypatch.setattr(loaders, "CreateConfig", Recorded)
    bundle = write_bundle(tmp_path / "b", {("portable", "fp32"): convolutions()}, [profile(1, 1, 1), profile(1, 4, 8)])
    manifest = Manifest.read(bundle)
    options = BuildOptions(optimization_level=4, workspace_mib=7, refittable=True)
    job = job_of(manifest, "tensorrt-rtx", options, tmp_path / "engine")
    built = build_through_polygraphy(trt, job | {"hardware_compatibility": "ampere_plus"}, Log(), None)
    config = built.config
    assert built.engine is None
    assert config.builder_optimization_level == 4
    assert config.get_memory_pool_limit(trt.MemoryPoolType.WORKSPACE) == 7 << 20
    assert config.get_flag(trt.BuilderFlag.REFIT)
    assert not config.get_flag(trt.BuilderFlag.TF32)
    assert config.profiling_verbosity == trt.ProfilingVerbosity.DETAILED
    # What TensorRT for RTX forgets:
    assert given["hardware_compatibility_level"] == trt.HardwareCompatibilityLevel.AMPERE_PLUS
    assert given["version_compatible"] is given["exclude_lean_runtime"] is False
    assert config.num_optimization_profiles == 2
    assert built.network.get_flag(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)


def test_full_tensorrt_takes_it_where_it_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = write_bundle(tmp_path / "b", {("native", "fp32"): convolutions()})
    manifest = Manifest.read(bundle)

    def loader(target: str, options: BuildOptions = DEFAULT_OPTIONS) -> str:
        return job_of(manifest, target, options, tmp_path / "engine")["loader"]

    assert loader("tensorrt") == "polygraphy"
    assert loader("tensorrt", BuildOptions(loader="api")) == "api"
    assert loader("tensorrt-rtx") == "api"
    monkeypatch.setattr("regionrt.runtime.build.polygraphy_version", lambda: None)
    assert loader("tensorrt") == "api"


def test_without_polygraphy_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hidden = tmp_path / "hidden"
    (hidden / "polygraphy").mkdir(parents=True)
    (hidden / "polygraphy" / "__init__.py").write_text("raise ImportError('hidden')")
    monkeypatch.setenv("PYTHONPATH", str(hidden))
    bundle = write_bundle(tmp_path / "b", {("portable", "fp32"): convolutions()})
    with pytest.raises(BackendError, match=r"Polygraphy cannot be imported \(hidden\).*--loader api"):
        build_engines(bundle, options=BuildOptions(loader="polygraphy"))


def test_strong_typing_is_never_left_out() -> None:
    library: Any = SimpleNamespace(
        __name__="tensorrt",
        __version__="10.3.0",
        NetworkDefinitionCreationFlag=SimpleNamespace(STRONGLY_TYPED=1),
    )
    assert build_settings.strong_typing(library) == 1
    library.NetworkDefinitionCreationFlag = SimpleNamespace()
    with pytest.raises(BackendError, match=r"tensorrt 10\.3\.0 has no strongly typed networks"):
        build_settings.strong_typing(library)
    library.__version__ = "11.1.0"
    assert build_settings.strong_typing(library) is None


def test_the_option_is_checked() -> None:
    with pytest.raises(ValueError, match="loader 'onnx': expected polygraphy or api"):
        BuildOptions(loader="onnx")
    assert json.dumps(BuildOptions(loader="api").arguments()) == '["--loader", "api"]'
