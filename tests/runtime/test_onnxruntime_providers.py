"""ONNX Runtime's providers for NVIDIA GPUs, with the library's own CPU sessions behind a face that claims them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from fake_detector import fake_artifact, photo_with, with_artifacts
from gpu_onnxruntime import CPU, CUDA, TRT, GpuLibrary

import regionrt.runtime as rt
from regionrt.runtime import devices
from regionrt.runtime.backends import onnxruntime as backend


@pytest.fixture
def library(monkeypatch) -> GpuLibrary:
    """On a machine with a driver."""
    made = GpuLibrary()
    monkeypatch.setitem(sys.modules, "onnxruntime", made)
    monkeypatch.setattr(backend, "why_no_driver", lambda: None)
    return made


def test_without_a_wish_it_is_the_cpu(shared_bundle: Path, library) -> None:
    with rt.load(shared_bundle) as predict:
        assert predict.about["provider"] == "cpu"
    assert library.asked == [[CPU]]
    assert library.preloaded == 0


@pytest.mark.parametrize(
    ("provider", "wanted"),
    [
        ("cuda", [(CUDA, {"use_tf32": "0"}), CPU]),
        ("auto", [(CUDA, {"use_tf32": "0"}), CPU]),
        ("tensorrt", [(TRT, {}), (CUDA, {"use_tf32": "0"}), CPU]),
    ],
)
def test_what_is_asked_for_is_taken_and_told(shared_bundle: Path, library, provider, wanted) -> None:
    with rt.load(shared_bundle, provider=provider) as predict:
        about = predict.about
        assert len(predict(photo_with(96, 128, red=(0, 0, 50, 50)))) == 1
    assert library.asked == [wanted]
    assert about["provider"] == ("cuda" if provider == "auto" else provider)
    ((name, count),) = about["nodes"].items()
    assert name == backend.PROVIDERS[about["provider"]]
    assert count > 10
    assert library.preloaded == 1
    assert not library.fallback


@pytest.mark.parametrize("tells_nodes", [True, False])
def test_a_provider_that_does_not_load_is_an_error_and_not_the_cpu(shared_bundle: Path, library, tells_nodes) -> None:
    library.loaded, library.tells_nodes = [CPU], tells_nodes
    for provider in ("cuda", "tensorrt", "auto"):
        with pytest.raises(rt.BackendError, match=rf"would compute with {CPU} alone.*onnxruntime-gpu\[cuda,cudnn\]"):
            rt.load(shared_bundle, provider=provider)
    with rt.load(shared_bundle, provider="cpu") as predict:
        assert predict.about["provider"] == "cpu"


def test_a_provider_that_computes_nothing_is_an_error_too(shared_bundle: Path, library) -> None:
    library.computes = CPU
    with pytest.raises(rt.BackendError, match=f"asked for {CUDA}, .* with {CPU} alone"):
        rt.load(shared_bundle, provider="cuda")


def test_what_the_library_or_the_machine_has_not(shared_bundle: Path, library, monkeypatch) -> None:
    with pytest.raises(rt.BackendError, match="expected cpu, cuda, tensorrt or auto"):
        rt.load(shared_bundle, provider="rocm")
    monkeypatch.setattr(backend, "why_no_driver", lambda: "no NVIDIA GPU driver")
    with pytest.raises(rt.BackendError, match=f"{CUDA}: no NVIDIA GPU driver"):
        rt.load(shared_bundle, provider="cuda")
    with rt.load(shared_bundle, provider="auto") as predict:
        assert predict.about["provider"] == "cpu"
    library.available = [CPU]
    with pytest.raises(rt.BackendError, match=f"has no {CUDA}, it has {CPU}: .*ort-gpu"):
        rt.load(shared_bundle, provider="cuda")


def test_only_artefacts_for_onnx_runtime_have_providers(bundle: Path, library) -> None:
    half = {**fake_artifact("onnxruntime", "native", ["native.onnx", "weights.bin"]), "precision": "fp16"}
    with_artifacts(bundle, fake_artifact("openvino", "staged", ["native.onnx"]), half)
    with rt.load(bundle, provider="cuda") as predict:
        assert (predict.about["backend"], predict.about["skipped"]) == ("onnxruntime", [])
    with pytest.raises(rt.BackendError, match=r"asked for auto, tensorrt.*precision is a flag.*regionrt build"):
        rt.load(bundle, provider="tensorrt")
    with pytest.raises(rt.BackendError, match="asked for openvino, cuda, the bundle holds openvino"):
        rt.load(bundle, backend="openvino", provider="cuda")


def test_doctor_names_them_and_says_why_they_do_not_work(library, monkeypatch) -> None:
    monkeypatch.setattr(devices, "why_no_driver", lambda: None)
    assert devices._onnxruntime(library) == {"devices": [TRT, CUDA, CPU], "why_not": None}
    monkeypatch.setattr(devices, "why_no_driver", lambda: "no driver")
    assert devices._onnxruntime(library)["devices"] == [f"{TRT} (no driver)", f"{CUDA} (no driver)", CPU]
