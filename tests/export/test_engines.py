"""The exported graphs become TensorRT for RTX engines: fixed and dynamic, with masks, in the precision asked for."""

from __future__ import annotations

import pytest
from tiny_detectors import LABELS, photos

from regionrt.export import ExportOptions, export_bundle
from regionrt.export.compress.calibration import Photo
from regionrt.runtime.build import BuildOptions, build_engines
from regionrt.runtime.bundle import Manifest
from regionrt.runtime.errors import BackendError

pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed: pip install 'regionrt[rtx]'")


@pytest.mark.parametrize("name", ["fixed", "dynamic"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_an_engine_of_each(name, precision, request, tmp_path, instant):
    """Dynamic sizes once failed in the compiler, where the sizes of the maps were used as data after a Loop."""
    exported = request.getfixturevalue(name)
    instant(of=exported)
    options = ExportOptions(
        size=exported.options.size, dynamic=exported.options.dynamic, precision=precision, ops=("portable",)
    )
    export_bundle(exported.module, tmp_path / "bundle", options, labels=LABELS)
    (engine,) = build_engines(tmp_path / "bundle")
    assert engine.engine is not None
    proof = engine.engine["proof"]
    assert proof["share"] == 1.0
    assert proof["layers"] > 5
    shapes = engine.profiles[0]["images"]
    assert (shapes["min"] == shapes["max"]) == (name == "fixed")
    Manifest.read(tmp_path / "bundle").verify_files()


@pytest.mark.parametrize("forms", [("staged",), ("portable", "staged")])
def test_an_engine_of_each_stage(forms, dynamic, tmp_path, instant):
    """With other forms beside it the box head's weights stay as they were: its engine takes RoI features channels last
    all the same. Built again, it replaces itself, and what it was built from stays."""
    instant(of=dynamic)
    options = ExportOptions(size=dynamic.options.size, dynamic=True, precision="fp16", ops=forms)
    export_bundle(dynamic.module, tmp_path / "bundle", options, labels=LABELS)
    asked = BuildOptions(ops="staged", compute_capability=("8.6",))
    told = []
    (built,) = build_engines(tmp_path / "bundle", options=asked, progress=lambda phase, done: told.append(done))
    assert told == sorted(told)
    assert told[-1] == 1
    assert (built.backend, built.form, built.precision) == ("tensorrt-rtx", "staged", "fp16")
    assert [stage["name"] for stage in built.stages] == ["dense_0", "dense_1", "dense_2"]
    assert [stage["file"] for stage in built.stages] == list(built.engine_files)
    assert built.engine["proof"]["share"] == 1.0
    assert built.engine["engine_bytes"] == sum(
        (tmp_path / "bundle" / name).stat().st_size for name in built.engine_files
    )
    for stage in built.stages:
        for name in set(stage["inputs"]) & {"roi_features", "mask_roi_features"}:
            assert name in stage["channels_last"]
            assert stage["shapes"][name][-1] == 8
    (again,) = build_engines(tmp_path / "bundle", options=asked)
    manifest = Manifest.read(tmp_path / "bundle")
    staged = [a for a in manifest.artifacts if a.form == "staged"]
    assert [a.engine is None for a in staged] == [False, True]
    assert {name for name in manifest.files if name.endswith(".engine")} == set(again.engine_files)
    assert len(list((tmp_path / "bundle" / "engines").iterdir())) == 3
    manifest.verify_files()


def test_bf16_stages_are_for_a_cpu(fixed, tmp_path, instant):
    export_bundle(fixed.module, tmp_path / "b", ExportOptions(size=(64, 96), precision="bf16"), labels=LABELS)
    with pytest.raises(BackendError, match="is built from the staged form, the bundle holds no ONNX file"):
        build_engines(tmp_path / "b", options=BuildOptions(ops="staged"))


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "capability"), [("int8", "8.6"), ("fp8", "8.9"), ("fp8", "12.0")])
def test_engines_of_8_bits_prove_their_layers(precision, capability, fixed, instant, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    seen = [Photo(name, lambda p=pixels: p) for name, pixels in photos([(64, 96)] * 6, seed=3)]
    options = ExportOptions(size=(64, 96), precision=precision, ops=("portable",), most_error=10)
    export_bundle(fixed.module, tmp_path / "bundle", options, labels=LABELS, photos=seen)
    (engine,) = build_engines(tmp_path / "bundle", options=BuildOptions(compute_capability=(capability,)))
    assert engine.engine is not None
    proof, flops = engine.engine["proof"], engine.engine["flops"]
    assert proof["of"] == "quantized"
    assert proof["layers"] == len(engine.quantized) > 5
    assert proof["share"] >= 0.9
    assert flops[precision] > 0.9 * sum(flops.values())


@pytest.mark.slow
def test_an_engine_that_is_not_in_the_precision_asked_for_is_refused(fixed, instant, tmp_path):
    """The manifest says int8, the file is fp32."""
    export_bundle(fixed.module, tmp_path / "bundle", ExportOptions(size=(64, 96), ops=("portable",)), labels=LABELS)
    manifest = tmp_path / "bundle" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"precision": "fp32"', '"precision": "int8"'))
    with pytest.raises(BackendError, match="asked for int8"):
        build_engines(tmp_path / "bundle")
