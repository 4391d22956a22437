"""OverFeat as a bundle: every form equals eager, on every CPU backend, and says what it cannot be."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from block_photos import photos
from tiny_overfeat import LABELS, TINY, tiny

import regionrt.runtime as rt
from regionrt.export import ExportOptions, export_bundle
from regionrt.export.bundle import Prepared
from regionrt.export.errors import ExportError
from regionrt.export.units import units_of
from regionrt.export.verify import verify
from regionrt.runtime import build
from regionrt.runtime.backends.staged_cuda import StagedCudaRunner
from regionrt.runtime.bundle import Manifest
from regionrt.runtime.errors import BackendError
from regionrt.train.models.errors import ModelError
from regionrt.train.torch_runner import torch_predictor

CHOSEN = {name: TINY[name] for name in ("score", "window_score", "merge", "detections", "candidates")}
OTHERS = {"score": 0.5, "window_score": 0.1, "merge": 0.9, "detections": 3, "candidates": 20}


@dataclass(frozen=True)
class Made:
    """A module, a bundle of its weights, and its graph, for bundles of other forms. Tests leave them as they are.

    The bundle is of a net with other thresholds, and has the module's by options: what equals the module obeys them.
    """

    module: torch.nn.Module
    bundle: Path
    prepared: Prepared


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    module = tiny(class_agnostic=False)
    bundle = tmp_path_factory.mktemp("overfeat") / "bundle"
    prepared = Prepared()
    source = tiny(class_agnostic=False, **OTHERS)
    options = ExportOptions(**CHOSEN)  # type: ignore[arg-type]
    return Made(module, export_bundle(source, bundle, options, labels=LABELS, prepared=prepared), prepared)


def test_every_form_equals_eager(made: Made) -> None:
    images = [(str(n), photo) for n, photo in enumerate(photos((60, 90), (90, 60), (40, 40)))]
    verdicts = verify(made.bundle, made.module, images, batches=(1, 3))
    assert {verdict.form for verdict in verdicts} == {"staged", "native", "portable"}
    for verdict in verdicts:
        assert verdict.first_difference is None
        assert {"class_logits", "box_edges", "boxes"} <= {check.value for check in verdict.checks}
        assert all(found.matched == found.eager == found.artefact for found in verdict.agreements)
        assert verdict.agreements[0].eager >= 6


def test_a_bundle_says_how_it_merges(made: Made) -> None:
    manifest = Manifest.read(made.bundle)
    assert manifest.task == "detection"
    assert manifest.thresholds == {
        "score": 0.2, "window_score": 0.4, "merge": 0.4, "detections": 12, "candidates": 40
    }  # fmt: skip
    for artifact in manifest.artifacts:
        assert [unit.op for unit in units_of(manifest, artifact) if unit.op] == ["RegionMerge"]


@pytest.mark.parametrize("form", ["staged", "native"])
def test_thresholds_are_in_the_artefact(made: Made, form: str) -> None:
    photo = photos((60, 90))[0]
    with rt.load(made.bundle, form=form) as predict, torch_predictor(made.module, LABELS) as eager:
        with pytest.warns(UserWarning, match="cap of 40: .* a higher --window-score or more --candidates"):
            found = predict(photo)
        with pytest.warns(UserWarning, match="cap of 40"):
            wanted = eager(photo)
    assert len(found) == len(wanted) > 0
    assert (found.scores > 0.2).all()
    np.testing.assert_allclose(found.boxes_xyxy, wanted.boxes_xyxy, atol=1e-2)


def test_another_size_lays_its_own_windows(tmp_path: Path) -> None:
    module = tiny(windows=[40])
    bundle = export_bundle(module, tmp_path / "bundle", ExportOptions(ops=("staged",), size=(80, 104)), labels=LABELS)
    (verdict, *_) = verify(bundle, module, [("one", photos((80, 104))[0])], batches=(1,))
    assert verdict.first_difference is None
    assert verdict.agreements[0].eager > 0


def test_half_precision_is_near(made: Made, tmp_path: Path) -> None:
    options = ExportOptions(precision="fp16", ops=("native",))
    bundle = export_bundle(made.module, tmp_path / "bundle", options, labels=LABELS, prepared=made.prepared)
    images = [(str(n), photo) for n, photo in enumerate(photos((60, 90), (64, 64)))]
    (verdict,) = verify(bundle, made.module, images, batches=(1,))
    assert all(check.passed for check in verdict.checks if check.value in ("class_logits", "box_edges"))


def test_there_is_no_plugin_that_merges(made: Made, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="RegionMerge has no form 'plugin': choose one of native, portable"):
        export_bundle(
            made.module, tmp_path / "bundle", ExportOptions(ops=("plugin",)), labels=LABELS, prepared=made.prepared
        )
    assert not (tmp_path / "bundle").exists()


NO_KERNELS = (
    "RegionMerge has no CUDA form in this version of regionrt, so the form staged does not run on a GPU; "
    "build an engine of the form portable, which needs none: --ops portable"
)


def test_the_staged_form_on_a_gpu_is_refused_before_anything_is_built(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "run_build", lambda *_, **__: pytest.fail("an engine is built"))
    with pytest.raises(BackendError, match=f"^staged fp32: {NO_KERNELS}$"):
        build.build_engines(made.bundle, "tensorrt-rtx", build.BuildOptions(ops="staged"))
    fp16 = ExportOptions(precision="fp16", ops=("staged",))
    with pytest.raises(ExportError, match=f"^fp16 staged: {NO_KERNELS}$"):
        export_bundle(made.module, tmp_path / "bundle", fp16, labels=LABELS, prepared=made.prepared)
    assert not (tmp_path / "bundle").exists()


def test_engines_of_its_stages_are_refused_in_the_same_words(made: Made) -> None:
    """As an earlier version built them: before a GPU is asked for, and the rest of the bundle runs."""
    manifest = Manifest.read(made.bundle)
    staged = next(artifact for artifact in manifest.artifacts if artifact.form == "staged")
    engines = replace(staged, backend="tensorrt-rtx", engine={"flavour": "tensorrt-rtx"})
    assert manifest.preflight(engines) == NO_KERNELS
    nothing: Any = SimpleNamespace(name="tensorrt-rtx")
    with pytest.raises(BackendError, match=f"^tensorrt-rtx staged fp32: {NO_KERNELS}$"):
        StagedCudaRunner(manifest, engines, nothing, nothing)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        (ExportOptions(dynamic=True), ModelError, "follow from the canvas"),
        (
            ExportOptions(nms=0.5, proposals=9),
            ExportError,
            "nms, proposals: OverFeat has no such threshold, leave it out "
            r"\(it has score, window_score, merge, candidates, detections\)",
        ),
        (ExportOptions(window_score=1.5), ExportError, "expected window_score between 0 and 1, found 1.5"),
        (ExportOptions(merge=-0.1), ExportError, "expected merge between 0 .* and 2 .*, found -0.1"),
        (ExportOptions(merge=2.5), ExportError, "found 2.5"),
        (ExportOptions(merge=float("nan")), ExportError, "found nan"),
        (ExportOptions(candidates=4000), ExportError, "expected candidates between 1 and 3840"),
    ],
)
def test_what_it_cannot_be_is_refused(
    tmp_path: Path, options: ExportOptions, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        export_bundle(tiny(), tmp_path / "bundle", options, labels=LABELS)
    assert not (tmp_path / "bundle").exists()
