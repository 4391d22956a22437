"""Building real engines with TensorRT for RTX: what enters the bundle, and that it is what was asked for."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest
from build_nets import convolutions, fixed_point_in_functions, fixed_profile, profile, write_bundle

from regionrt.runtime.build import LOADERS, BuildOptions, build_engines
from regionrt.runtime.bundle import Manifest, sha256_of
from regionrt.runtime.polygraphy_build import polygraphy_version

pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed: pip install 'regionrt[rtx]'")


def test_each_precision_becomes_an_engine_with_its_certificate(tmp_path: Path) -> None:
    bundle = write_bundle(
        tmp_path / "b", {("portable", "fp32"): convolutions(), ("portable", "fp16"): convolutions("fp16")}
    )
    told: list[tuple[str, float]] = []
    artifacts = build_engines(bundle, progress=lambda phase, fraction: told.append((phase, fraction)))

    assert [(a.backend, a.form, a.precision) for a in artifacts] == [
        ("tensorrt-rtx", "portable", "fp32"),
        ("tensorrt-rtx", "portable", "fp16"),
    ]
    manifest = Manifest.read(bundle)
    manifest.verify_files()
    assert manifest.artifacts[:2] == tuple(artifacts)
    assert [a.backend for a in manifest.artifacts[2:]] == ["onnxruntime", "onnxruntime"]
    for artifact in artifacts:
        certificate = artifact.engine
        assert certificate is not None
        assert certificate["flavour"] == "tensorrt-rtx"
        assert re.fullmatch(r"\d+\.\d+\..*", certificate["version"])
        assert certificate["compute_capabilities"][0] == "8.0"  # without a choice: Ampere and newer
        assert certificate["layer_types"]["conv"] == {artifact.precision: 3}
        assert certificate["proof"] == {"of": "conv", "layers": 3, "in_precision": 3, "share": 1.0}
        assert certificate["tf32"] is False
        assert certificate["onnx_sha256"] == sha256_of(bundle / f"portable-{artifact.precision}.onnx")
        assert certificate["built_from"] == {
            file: sha256_of(bundle / file) for file in source_files(artifact.precision)
        }
        assert certificate["engine_bytes"] == (bundle / artifact.files[0]).stat().st_size > 100_000
        assert certificate["profiles"] == [fixed_profile()]
        assert {"os", "machine", "build_seconds", "devices"} <= certificate.keys()
    fractions = [fraction for _, fraction in told]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    assert {phase.split(":")[0] for phase, _ in told} == {"tensorrt-rtx fp32", "tensorrt-rtx fp16"}
    assert any(0.5 < fraction < 1 for fraction in fractions)


def source_files(precision: str) -> tuple[str, str]:
    """The graph and its weights."""
    return f"portable-{precision}.onnx", f"weights-portable-{precision}.bin"


def test_the_same_graph_gives_the_same_bytes_and_leaves_the_bundle_as_it_is(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "b", {("portable", "fp32"): convolutions()})
    moved = Path(shutil.copytree(bundle, tmp_path / "elsewhere" / "c"))
    (first,), (elsewhere,) = build_engines(bundle), build_engines(moved)
    assert (bundle / first.files[0]).read_bytes() == (moved / elsewhere.files[0]).read_bytes()
    listing = sorted(path.name for path in bundle.rglob("*"))
    (again,) = build_engines(bundle)
    assert again.files == first.files
    assert sorted(path.name for path in bundle.rglob("*")) == listing


def test_functions_with_loops_and_weights_in_a_file_beside_are_parsed(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "b", {("portable", "fp32"): fixed_point_in_functions()})
    (artifact,) = build_engines(bundle)
    assert artifact.engine is not None
    assert artifact.engine["proof"]["share"] == 1.0


@pytest.mark.parametrize("profiles", [[profile(1, 2, 4)], [profile(1, 1, 1), profile(1, 4, 8)]], ids=["one", "two"])
def test_profiles_of_the_manifest_are_built(tmp_path: Path, profiles: list[dict[str, dict[str, list[int]]]]) -> None:
    bundle = write_bundle(tmp_path / "b", {("portable", "fp32"): convolutions()}, profiles)
    (artifact,) = build_engines(bundle)
    assert artifact.engine is not None
    assert list(artifact.profiles) == artifact.engine["profiles"] == profiles
    assert artifact.engine["layer_types"]["conv"]["fp32"] == 3 * len(profiles)  # every profile compiles its own


def test_without_profiles_one_image_at_a_time(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "b", {("portable", "fp32"): convolutions()}, profiles=[])
    (artifact,) = build_engines(bundle)
    assert list(artifact.profiles) == [fixed_profile()]


def test_engines_for_other_compute_capabilities_stand_beside_each_other(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "b", {("portable", "fp32"): convolutions()})
    (everywhere,) = build_engines(bundle)
    (two,) = build_engines(bundle, options=BuildOptions(compute_capability=("8.6", "8.9")))
    assert two.engine is not None
    assert two.engine["compute_capabilities"] == ["8.6", "8.9"]
    assert "-sm86-sm89-" in two.files[0]
    assert [a.files[0] for a in Manifest.read(bundle).artifacts] == [
        two.files[0],
        everywhere.files[0],
        "portable-fp32.onnx",
    ]


def test_a_new_engine_takes_the_place_of_the_old_one(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "b", {("portable", "fp32"): convolutions()})
    (old,) = build_engines(bundle)
    (new,) = build_engines(bundle, options=BuildOptions(optimization_level=5, workspace_mib=64))
    assert new.files != old.files
    assert [path.name for path in (bundle / "engines").iterdir()] == [Path(new.files[0]).name]
    manifest = Manifest.read(bundle)
    manifest.verify_files()
    assert old.files[0] not in manifest.files
    assert [a.backend for a in manifest.artifacts] == ["tensorrt-rtx", "onnxruntime"]


def test_fields_of_the_manifest_that_this_version_does_not_know_are_kept(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "b", {("portable", "fp32"): convolutions()})
    manifest = json.loads((bundle / "manifest.json").read_text())
    (bundle / "manifest.json").write_text(json.dumps(manifest | {"licence": "of the weights"}))
    build_engines(bundle)
    assert json.loads((bundle / "manifest.json").read_text())["licence"] == "of the weights"


@pytest.mark.parametrize("loader", LOADERS)
def test_full_tensorrt_goes_through_the_same_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loader: str) -> None:
    """Full TensorRT cannot be installed everywhere: here the RTX library answers to its name."""
    (tmp_path / "libraries").mkdir()
    (tmp_path / "libraries" / "tensorrt.py").write_text("from tensorrt_rtx import *\n__version__ = '10.3.0'\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "libraries"), prepend=os.pathsep)
    if loader == "polygraphy" and polygraphy_version() is None:
        pytest.skip("polygraphy is not installed: pip install polygraphy")
    bundle = write_bundle(tmp_path / "b", {("native", "fp32"): convolutions(), ("portable", "fp32"): convolutions()})
    (native,) = build_engines(bundle, "tensorrt", BuildOptions(loader=loader))
    (portable,) = build_engines(bundle, "tensorrt", BuildOptions(ops="portable", loader=loader))
    assert (native.backend, native.form, portable.form) == ("tensorrt", "native", "portable")
    assert native.engine is not None
    assert native.engine["loader"].split()[0] == loader


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("ops", "nonsense"),
        ("compute_capability", "8.6"),
        ("compute_capability", ("86",)),
        ("compute_capability", ("8.6", "8.6")),
        ("optimization_level", 6),
        ("workspace_mib", 0),
        ("timeout_s", 0),
    ],
)
def test_options_out_of_range_are_refused(option: str, value: object) -> None:
    with pytest.raises(ValueError, match=r"expected|once"):
        BuildOptions(**{option: value})  # type: ignore[arg-type]


def test_an_unknown_target_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected tensorrt-rtx or tensorrt"):
        build_engines(tmp_path, "tensorrt-lite")
