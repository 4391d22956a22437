"""The papers' ratios: what is compared with what, what is extrapolated, and how it is told."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from regionrt.bench.schema import Ratio
from regionrt.bench.suites import seeds, seeds_inputs
from regionrt.bench.suites.seeds import SeedsOptions, run_seeds, write
from regionrt.bench.suites.seeds_inputs import load_inputs, seed_inputs
from regionrt.bench.suites.seeds_options import CaseOptions
from regionrt.bench.suites.seeds_schema import Comparison, SeedCase, SeedRow, Times
from regionrt.bench.suites.seeds_table import SeedsReport
from regionrt.bench.suites.seeds_training import whole_training
from regionrt.cli import run
from regionrt.runtime.errors import BackendError

FACTS = {
    "machine": {"CPU": "a CPU", "instruction sets": "AVX2"},
    "setting": {"threads": "2 for every candidate", "load before": "0.1"},
    "software": {"Python": "3.12"},
}


def row(id: str, p50_ms: float, *, over: float | None = None, **changes) -> SeedRow:
    made = SeedRow(id, id, not id.startswith("torch"), latency=Times((p50_ms,) * 3, (), p50_ms, p50_ms), **changes)
    if over is not None:
        made.over_base = Ratio(over, over, over)
    return made


def comparison(ours_ms: float = 100.0, **changes) -> Comparison:
    base = row("torch-rcnn", 30_000.0, factor=62.5, measured="batches of 32 of 2000 crops")
    rows = [row("torch-fp32", 300.0, over=100.0), row("openvino-fp32", ours_ms, over=30_000 / ours_ms, matched=1.0)]
    rows.append(SeedRow("openvino-bf16", "bf16", True, reason="this CPU does not compute in bf16"))
    values = {"paper": "213×", "asked": 213.0} | changes
    return Comparison("fast_rcnn_svd", "Fast R-CNN + SVD", "a request", base, rows, **values)


def report(*comparisons: Comparison) -> SeedsReport:
    from dataclasses import asdict

    return SeedsReport(
        FACTS, "regionrt bench --suite seeds", asdict(SeedsOptions()), "2 photos", [1.5, 2.25], 3,
        [SeedCase("requests", (600, 800), list(comparisons))],
    )  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({}, "reached"),
        ({"ours_ms": 141.0}, "not reached"),  # 212.8
        ({"asked": None}, ""),
    ],
)
def test_the_artefact_is_judged_by_the_papers_ratio(changes, verdict):
    assert comparison(**changes).verdict == verdict


def test_pytorch_does_not_answer_for_the_artefact():
    one = comparison()
    one.rows[0].over_base = Ratio(500.0, 500.0, 500.0)
    one.rows[1].latency = None
    assert one.verdict == "not measured"
    one.judged = "all"
    assert one.verdict == "reached"


def test_a_verdict_amid_other_load_says_so():
    one = comparison()
    one.base.noisy = True
    assert one.verdict == "reached, amid other load"


def test_tables_say_what_is_extrapolated_and_what_was_not_run():
    lines = report(comparison()).to_markdown().splitlines()
    assert any("Selective search took 1.5, 2.2 s" in line and "3 proposals are made up" in line for line in lines)
    (summary,) = [line for line in lines if line.startswith("| Fast R-CNN + SVD | 213× |")]
    assert "| 100× [100, 100] | 300× [300, 300] | ours ≥ 213× | reached |" in summary
    (base,) = [line for line in lines if line.startswith("| torch-rcnn |")]
    assert "| ≈ 30,000 |" in base
    assert "- torch-rcnn: 3 × batches of 32 of 2000 crops, times 62.5" in lines
    assert "- bf16: not run: this CPU does not compute in bf16" in lines


def test_the_whole_training_is_made_of_its_parts():
    """16 visits of half a step each; R-CNN's features of all proposals once."""
    one = whole_training(row("torch-step", 800.0), row("torch-fast", 100.0), row("torch-rcnn", 1600.0), "found so")
    assert one.base.latency.samples_ms == (8000.0,) * 3
    assert one.rows[0].latency.p50_ms == 800.0
    assert one.rows[0].over_base.ratio == pytest.approx(10.0)
    assert (one.verdict, one.rows[0].extrapolated) == ("reached", True)
    assert "16 visits" in one.notes[0]
    assert "1.6 s. found so." in one.notes[0]


def test_a_round_of_the_whole_training_is_disturbed_where_a_part_of_it_was():
    step = row("torch-step", 0.0)
    step.latency = Times((10.0, 20.0, 90.0), (2,), 15.0, 19.0)
    features = row("torch-rcnn", 0.0)
    features.latency = Times((70.0, 1.0, 1.0), (0,), 1.0, 1.0)
    one = whole_training(step, row("torch-fast", 1.0), features, "")
    assert one.base.latency == Times((150.0, 161.0, 721.0), (0, 2), 161.0, 161.0)
    features.latency = Times((70.0, 1.0, 1.0), (0, 1), 1.0, 1.0)
    assert whole_training(step, row("torch-fast", 1.0), features, "").base.latency.disturbed == ()


def test_it_survives_json():
    case = SeedCase("requests", (600, 800), [comparison()])
    again = SeedCase.from_json(json.loads(json.dumps(case.to_json())))
    assert again == case


def test_without_opencv_proposals_are_made_up_inside_the_photo(tmp_path, monkeypatch):
    class Missing:
        def __call__(self, image):
            raise BackendError("no OpenCV")

    monkeypatch.setattr(seeds_inputs, "SelectiveSearch", Missing)
    made = seed_inputs([], (96, 128), 2, 30, seed=0)
    assert (made.search_s, made.made) == ([], 60)
    made.save(tmp_path / "inputs.npz")
    photos, proposals = load_inputs(tmp_path / "inputs.npz")
    assert [photo.shape for photo in photos] == [(96, 128, 3)] * 2
    boxes = np.concatenate(proposals)
    assert boxes.shape == (60, 4)
    assert (boxes[:, 2:] > boxes[:, :2]).all()
    assert (boxes >= 0).all()
    assert (boxes[:, 2:] <= (128, 96)).all()
    assert "made up" in replace(report(comparison()), search_s=[], made=60).to_markdown()


def test_searched_proposals_come_first(monkeypatch):
    found = np.array([[1, 2, 30, 40]], np.float32)
    monkeypatch.setattr(seeds_inputs, "SelectiveSearch", lambda: lambda image: found)
    made = seed_inputs([], (96, 128), 1, 4, seed=0)
    np.testing.assert_array_equal(made.proposals[0][:1], found)
    assert (len(made.search_s), made.made, len(made.proposals[0])) == (1, 3, 4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbone": "resnet50"}, "vgg16"),
        ({"size": (32, 64)}, "at least 64"),
        ({"rows": ("caffe",)}, "openvino-fp32"),
        ({"nets": ("yolo",)}, "fast_rcnn_svd"),
        ({"proposals": 0}, "at least 1"),
        ({"representation": 8}, "at least 16"),
        ({"crop_batches": ()}, "at least 1"),
        ({"seconds": -1.0}, "0 or more"),
    ],
)
def test_options_that_make_no_sense(changes, message):
    with pytest.raises(ValueError, match=message):
        CaseOptions(**changes)


def test_cases_that_are_not_there():
    with pytest.raises(ValueError, match="training"):
        SeedsOptions(cases=("yolo",))


def test_the_papers_sizes_are_the_defaults():
    options = SeedsOptions().case
    assert (options.backbone, options.proposals, options.size, options.representation) == (
        "vgg16", 2000, (600, 800), 4096,
    )  # fmt: skip
    assert options.ranks == {"head.fc6": 1024, "head.fc7": 256}
    assert options.canvas == (608, 800)


def test_a_case_that_takes_too_long_is_given_up_and_told(tmp_path):
    case = CaseOptions(backbone="squeezenet1_1", size=(64, 64), proposals=2)
    kept = []
    options = SeedsOptions(cases=("training",), photos=1, case=case, limit_seconds=0.2)
    found = run_seeds(options, keep=lambda done: kept.append(len(done.cases)))
    assert kept == [1]
    assert found.cases[0].failed == "not done within 0 s"
    files = write(found, tmp_path / "out")
    assert [file.name for file in files] == ["seeds.json", "seeds.md"]
    assert json.loads(files[0].read_text())["format"] == "regionrt-seeds/1"
    assert "Not measured: not done within 0 s" in files[1].read_text()
    assert "--backbone squeezenet1_1" in found.command
    assert "--proposals 2" in found.command


@pytest.mark.parametrize(
    ("changes", "command"),
    [
        ({"threads": 2}, "regionrt bench --suite seeds --threads 2"),
        ({"case": {"size": (96, 128), "seconds": 3.0}}, "regionrt bench --suite seeds --sizes 96x128 --seconds 3"),
        (
            {"photos": 7, "data": Path("somewhere"), "case": {"size": (96, 128), "crop": 64, "crop_batches": (2, 4)}},
            "python -m regionrt.bench.suites.seeds --data PHOTOS --photos 7 --size 96x128 --crop 64 --crop-batches 2,4",
        ),
    ],
)
def test_the_command_told_is_one_that_measures_the_same(changes, command, monkeypatch):
    given = changes | {"case": CaseOptions(**changes.get("case", {}))}
    told = seeds._command(SeedsOptions(**given))
    assert told == command
    if told.startswith("python"):
        seen = []
        monkeypatch.setattr(seeds, "run_seeds", lambda options, **_: seen.append(options) or report(comparison()))
        seeds.main([*told.replace("PHOTOS", "somewhere").split()[3:], "--out", "out"])
        assert seen == [SeedsOptions(**given)]


def test_the_command_line_hands_over_what_was_typed(tmp_path: Path, monkeypatch, capfd):
    seen = []

    def fake(options, *, progress, keep):
        seen.append(options)
        keep(report(comparison()))
        return report(comparison())

    monkeypatch.setattr(seeds, "run_seeds", fake)
    out = str(tmp_path / "out")
    arguments = ["bench", "--suite", "seeds", "--out", out, "--backbone", "alexnet", "--proposals", "16"]
    arguments += ["--sizes", "96x128", "--seconds", "3", "--cases", "training", "--rows", "onnxruntime-fp32"]
    assert run([*arguments, "--nets", "sppnet", "--threads", "1"]) == 0
    case = seen[0].case
    assert (seen[0].cases, case.backbone, case.proposals, case.size) == (("training",), "alexnet", 16, (96, 128))
    assert (case.seconds, case.rows, case.nets, case.threads) == (3.0, ("onnxruntime-fp32",), ("sppnet",), 1)
    assert "300×" in capfd.readouterr().out
    assert (tmp_path / "out" / "seeds.json").is_file()


@pytest.mark.parametrize(
    "arguments",
    [
        ["--suite", "seeds", "--weights", "."],
        ["--suite", "seeds", "--sizes", "96x128,64x64"],
        ["--suite", "seeds", "--proposals", "0"],
        ["--suite", "seeds", "--cases", "yolo"],
        ["--suite", "peers", "--backbone", "vgg16"],
        ["--proposals", "10"],
    ],
)
def test_wrong_use(arguments, tmp_path):
    assert run(["bench", "--out", str(tmp_path / "out"), *arguments]) == 2
