"""autotune: measured here, kept here, and `load` goes by it; never a reason not to load."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from fake_detector import fake_artifact, with_artifacts

import regionrt.runtime as rt
from regionrt.runtime import tuning as module
from regionrt.runtime.bundle import Manifest


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "regionrt" / "autotune"


def two_forms(bundle: Path) -> Path:
    """The same file twice, as two forms; what is measured decides, not what is inside."""
    with_artifacts(
        bundle,
        fake_artifact("onnxruntime", "native", ["native.onnx"]),
        fake_artifact("onnxruntime", "portable", ["native.onnx"]),
    )
    return bundle


def timed(monkeypatch: pytest.MonkeyPatch, milliseconds: dict[str, float]) -> None:
    """Clocks that say this, after each callable has really run once."""

    def measure(calls, options, **_):
        for call in calls.values():
            call()
        return SimpleNamespace(timings={n: SimpleNamespace(p50_ms=milliseconds[n.split()[1]]) for n in calls})

    monkeypatch.setattr(module, "measure", measure)


def test_the_fastest_is_taken_from_then_on(bundle: Path, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    two_forms(bundle)
    with rt.load(bundle) as predict:
        assert (predict.about["form"], predict.about["order"]) == ("native", "the bundle's")
    timed(monkeypatch, {"native": 9.0, "portable": 4.0})
    rows = rt.autotune(bundle)
    assert [(row.form, row.p50_ms) for row in rows] == [("portable", 4.0), ("native", 9.0)]
    with rt.load(bundle) as predict:
        assert (predict.about["form"], predict.about["order"]) == ("portable", "autotune's")
    with rt.load(bundle, form="native") as predict:
        assert predict.about["form"] == "native", "what is asked for by name is what is taken"
    assert len(list(cache.iterdir())) == 1


def test_real_clocks(bundle: Path) -> None:
    rows = rt.autotune(two_forms(bundle), seconds=0.1)
    assert all(row.p50_ms is not None and row.p50_ms > 0 for row in rows)
    assert rows[0].p50_ms <= rows[1].p50_ms


def test_what_does_not_run_here_comes_last_with_its_reason(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_artifacts(
        bundle,
        fake_artifact("nonesuch", "native", ["native.onnx"]),
        fake_artifact("onnxruntime", "native", ["native.onnx"]),
    )
    rows = rt.autotune(bundle, seconds=0.1)
    assert [row.backend for row in rows] == ["onnxruntime", "nonesuch"]
    assert "nonesuch" in str(rows[1].why_not)


def test_nothing_runs_here(bundle: Path) -> None:
    with_artifacts(bundle, fake_artifact("nonesuch", "native", ["native.onnx"]))
    with pytest.raises(rt.BackendError, match="nothing of it can run here: nonesuch native fp32"):
        rt.autotune(bundle)


def test_another_bundle_or_machine_is_not_concerned(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    two_forms(bundle)
    timed(monkeypatch, {"native": 9.0, "portable": 4.0})
    rt.autotune(bundle)
    real = module.describe_machine
    monkeypatch.setattr(module, "describe_machine", lambda: {**real(), "processor": "another"})
    with rt.load(bundle) as predict:
        assert predict.about["order"] == "the bundle's"
    monkeypatch.undo()
    data = json.loads((bundle / "manifest.json").read_text())
    (bundle / "manifest.json").write_text(json.dumps(data | {"created": "2027-01-01T00:00:00+00:00"}))
    assert module.in_measured_order(Manifest.read(bundle)) is None


@pytest.mark.parametrize("content", ["", "{", "[]", '{"order": 3}', '{"order": [["a"]]}'])
def test_a_broken_cache_is_passed_over_aloud(bundle: Path, cache: Path, content: str) -> None:
    two_forms(bundle)
    rt.autotune(bundle, seconds=0.05)
    (kept,) = cache.iterdir()
    kept.write_text(content)
    with pytest.warns(UserWarning, match="is passed over"), rt.load(bundle) as predict:
        assert predict.about["order"] == "the bundle's"


def test_loading_alone_writes_nothing(bundle: Path, cache: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rt.load(bundle).close()
    assert not cache.exists()


def test_photos_may_be_given(bundle: Path) -> None:
    rows = rt.autotune(bundle, [np.zeros((30, 50, 3), np.uint8)], seconds=0.05)
    assert rows[0].p50_ms is not None
