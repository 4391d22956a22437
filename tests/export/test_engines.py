"""The exported graphs become TensorRT for RTX engines: fixed and dynamic, with masks, in the precision asked for."""

from __future__ import annotations

import pytest
from tiny_detectors import LABELS

from regionrt.export import ExportOptions, export_bundle
from regionrt.runtime.build import build_engines
from regionrt.runtime.bundle import Manifest

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
