"""The contract of 8 bits: the most sensitive layers go back to fp32, one by one, until the drop holds."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from regionrt.bench.report import BenchOptions
from regionrt.bench.search.fallback import UnreachableError, keep_until_it_holds
from regionrt.cli.deploy import DeployOptions, deploy
from regionrt.export import ExportOptions
from regionrt.export.compress.calibration import Photo
from regionrt.runtime.bundle import Manifest
from regionrt.train.checkpoint import read_checkpoint
from regionrt.train.data import open_data
from regionrt.train.tasks import TASKS

OPTIONS = ExportOptions(precision="int8", ops=("staged",), most_error=10)


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def photos_of(data: str) -> list[Photo]:
    return [Photo(str(n), open_data(data, "test")[n].image) for n in range(6)]


def search(checkpoint: Path, data: str, max_drop: float):
    source = read_checkpoint(checkpoint)
    split = open_data(data, "test", source.labels)
    return keep_until_it_holds(source, source, OPTIONS, photos_of(data), TASKS["detection"], split, max_drop)


def drops(monkeypatch: pytest.MonkeyPatch, *points: float) -> None:
    """The evaluations: the reference's, then one of each try; the last one repeats."""
    values = iter([0.0, *points, *[points[-1]] * 100])

    class Found:
        def __init__(self) -> None:
            self.metrics = {"AP": 0.6 - next(values) / 100, "mask_AP": float("nan")}

    made_up = replace(TASKS["detection"], evaluate=lambda predict, data, **_: Found())
    monkeypatch.setitem(TASKS, "detection", made_up)


@pytest.fixture(scope="module")
def given_back(checkpoint, data):
    """The search that gives three layers back."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        drops(monkeypatch, 3, 2, 1.5, 0.4)
        return search(checkpoint, data, 0.5)


def test_layers_go_back_in_the_order_of_their_sensitivity(given_back):
    chosen, prepared, steps = given_back
    assert prepared.quantization is not None
    assert list(chosen.keep) == list(prepared.quantization.sensitivity)[:3]
    assert [len(step.kept) for step in steps] == [0, 1, 2, 3]
    assert [step.drop for step in steps] == pytest.approx([3, 2, 1.5, 0.4])


def test_what_holds_at_once_keeps_all_layers_in_int8(checkpoint, data, monkeypatch):
    drops(monkeypatch, 0.1)
    chosen, _, steps = search(checkpoint, data, 0.5)
    assert chosen == OPTIONS
    assert len(steps) == 1


def test_deploy_in_int8_judges_on_the_other_split_and_refuses_by_its_own_figures(checkpoint, data, tmp_path):
    """The real thing: evaluated, not made up."""
    options = DeployOptions(
        max_drop=60,
        export=OPTIONS,
        bench=BenchOptions(
            seconds=0.5, least_rounds=2, photos=2, pictures=1, resamples=500, compile_seconds=0, fresh=False,
            best_torch=False, torchvision=False,
        ),
        targets=(),
        verify_images=4,
        search_split="test",
    )  # fmt: skip
    report = deploy(read_checkpoint(checkpoint), data, tmp_path / "out", options, photos=photos_of(data))
    manifest = Manifest.read(tmp_path / "out")
    assert {a.precision for a in manifest.artifacts} == {"int8"}
    table = json.loads((tmp_path / "out" / "precision.json").read_text())
    assert table["shares"]["int8"]["flops"] > 0.5
    judged = [row.accuracy.differences[0] for row in report.candidates if row.kind == "bundle" and row.accuracy]
    assert judged
    assert all(np.isfinite([d.points, d.low, d.high]).all() and d.low <= d.high for d in judged)


def test_an_unreachable_drop_names_the_closest_try_and_writes_nothing(
    checkpoint, data, given_back, tmp_path, monkeypatch
):
    """With three layers in int8 there are two tries: one must stay."""
    _, prepared, _ = given_back
    fp32 = tuple(prepared.quantization.sensitivity)[3:]
    drops(monkeypatch, 3, 0.45, 2)  # which would do without the margin
    options = DeployOptions(
        max_drop=0.5, margin=0.1, export=replace(OPTIONS, keep=fp32), targets=(), search_split="test"
    )
    message = rf"over 0\.4 points .* closest loses 0\.45 points with {len(fp32) + 1} layers in fp32"
    with pytest.raises(UnreachableError, match=message):
        deploy(read_checkpoint(checkpoint), data, tmp_path / "out", options, photos=photos_of(data))
    assert not (tmp_path / "out").exists()
