"""deploy: the whole road, and the contract that decides whether anything is written."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from regionrt.bench.report import BenchOptions, Report
from regionrt.bench.search.fallback import Step
from regionrt.cli.deploy import ContractError, DeployOptions, _searched, _unjudged, deploy
from regionrt.export import ExportOptions
from regionrt.runtime import load
from regionrt.runtime.bundle import Manifest
from regionrt.train.checkpoint import Checkpoint, read_checkpoint
from regionrt.train.data import open_data
from regionrt.train.tasks import TASKS

QUICK = DeployOptions(
    max_drop=0.5,
    bench=BenchOptions(seconds=0.5, least_rounds=2, photos=2, pictures=1, resamples=500, compile_seconds=0, fresh=False,
                       best_torch=False, torchvision=False),
    targets=(),
    verify_images=4,
)  # fmt: skip


@pytest.fixture(scope="module")
def deployed(checkpoint: Path, data: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Report]:
    out = tmp_path_factory.mktemp("deployed") / "bundle"
    return out, deploy(read_checkpoint(checkpoint), data, out, QUICK)


def test_writes_a_whole_bundle_when_the_contract_holds(deployed: tuple[Path, Report], data: str) -> None:
    out, report = deployed
    baseline = report.candidate(report.baseline)
    assert baseline is not None
    assert baseline.accuracy is not None
    assert (baseline.accuracy.metrics["AP"] or 0) > 0.99, "the data is the baseline's own detections"
    manifest = Manifest.read(out)
    manifest.verify_files()
    assert {"report.json", "report.md", "report.html"} <= set(manifest.files)
    assert json.loads((out / "report.json").read_text())["max_drop"] == 0.5
    rows = [r for r in report.candidates if r.kind == "bundle" and r.latency]
    medians = {(r.backend, r.form): r.latency.p50_ms for r in rows if r.latency}
    order = [medians[a.backend, a.form] for a in manifest.artifacts]
    assert order == sorted(order), "artefacts stand in the order that was measured"
    for row in report.candidates:
        if row.form == "staged" and row.latency:
            assert row.shares is not None
            assert {"dense_0", "RegionProposals_1", "dense_1"} < set(row.shares.steps_ms)
            assert 0 < row.shares.not_dense < 1
        else:
            assert row.shares is None
    with load(out) as predict:
        predict(open_data(data, "test")[0].image())
    assert [p.name for p in out.parent.iterdir()] == ["bundle"]

    def told(**changes: object) -> str:
        """What is said of the same report where its bundle's rows have other figures."""
        rows = [replace(row, **changes) if row.kind == "bundle" else row for row in report.candidates]  # type: ignore[arg-type]
        return _unjudged(replace(report, candidates=tuple(rows)), TASKS["detection"], "test") or ""

    assert told() == ""
    assert "no artefact runs here" in told(accuracy=None, reason="no GPU")
    assert "no GPU" in told(accuracy=None, reason="no GPU")
    without = replace(baseline.accuracy, differences=())
    assert "has no figure for AP on test" in told(accuracy=without)


def test_nothing_is_written_that_could_not_be_judged(checkpoint: Path, data: str, tmp_path: Path) -> None:
    """Of a crowd no object is counted, so that there is no accuracy to lose."""
    crowds = tmp_path / "crowds"
    shutil.copytree(data, crowds)
    file = crowds / "annotations" / "instances_test.json"
    content = json.loads(file.read_text())
    content["images"] = content["images"][:2]
    content["annotations"] = [one for one in content["annotations"] if one["image_id"] <= 2]
    for one in content["annotations"]:
        one["iscrowd"] = 1
    file.write_text(json.dumps(content))
    with pytest.raises(ContractError, match="no objects to judge the accuracy by: give another with --split"):
        deploy(read_checkpoint(checkpoint), str(crowds), tmp_path / "bundle", QUICK)
    assert [path.name for path in tmp_path.iterdir()] == ["crowds"]


def damaged(checkpoint: Checkpoint) -> Checkpoint:
    """The box head's weights mixed with noise, as by a broken compression."""
    weights = {name: value.clone() for name, value in checkpoint.state_dict.items()}
    name = "roi_heads.box_head.fc7.weight"
    generator = torch.Generator().manual_seed(0)
    weights[name] += weights[name].std() * torch.randn(weights[name].shape, generator=generator)
    return replace(checkpoint, state_dict=weights)


def test_a_refusal_names_the_stage_and_leaves_the_older_bundle(
    checkpoint: Path, deployed: tuple[Path, Report], data: str, tmp_path: Path
) -> None:
    out = tmp_path / "bundle"
    shutil.copytree(deployed[0], out)
    before = (out / "manifest.json").read_bytes()
    with pytest.raises(ContractError, match=r"points of AP.*first part at head outputs \(classes\)"):
        deploy(read_checkpoint(checkpoint), data, out, QUICK, compress=damaged)
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
    assert (out / "manifest.json").read_bytes() == before
    Manifest.read(out).verify_files()


def test_a_refusal_behind_a_search_says_what_the_search_had_found() -> None:
    options = replace(QUICK, export=ExportOptions(precision="int8", most_error=0.05))
    assert _searched([], options) == ""
    told = _searched([Step((), 0.9), Step(("conv",), 0.25)], options)
    assert told.startswith("; on val, where its layers were chosen, it lost 0.25 points: ")
    assert "--margin" in told
    assert "--most-error below 0.05" in told


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("margin", -0.1),
        ("margin", 0.6),
        ("margin", float("nan")),
        ("max_drop", -1),
        ("max_drop", float("nan")),
        ("verify_images", 0),
    ],
)
def test_options_out_of_range(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=field):
        DeployOptions(**{field: value})  # type: ignore[arg-type]


def test_a_margin_where_nothing_is_searched() -> None:
    with pytest.raises(ValueError, match="margin: only int8 is searched, fp32 is given"):
        DeployOptions(margin=0.2)
