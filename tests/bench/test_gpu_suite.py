"""The GPU suite without a GPU: its arithmetic, its rows for what fails, its tables, and its command."""

from __future__ import annotations

import json
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from regionrt.bench.errors import BenchError
from regionrt.bench.suites import gpu
from regionrt.bench.suites.gpu import GpuOptions, run_gpu, write
from regionrt.bench.suites.gpu_case import OpCase, rows_of
from regionrt.bench.suites.gpu_clock import AGAIN, Candidate, HostClock, copies_beyond_cache
from regionrt.bench.suites.gpu_detectors import LAYERS
from regionrt.bench.suites.gpu_floor import (
    floor_us,
    pyramid_pool_bytes,
    roi_align_bytes,
    roi_pool_bytes,
    touched_cells,
    warp_bytes,
)
from regionrt.bench.suites.gpu_inputs import clustered_boxes, pictures, scattered_boxes
from regionrt.bench.suites.gpu_ops import matched
from regionrt.bench.suites.gpu_schema import Check, DetectorRow, EngineRow, GpuReport, OpRow
from regionrt.bench.suites.gpu_table import to_markdown, to_terminal
from regionrt.plugins.pyramid_pool.reference import pyramid_pool
from regionrt.plugins.roi_align.reference import roi_align
from regionrt.plugins.roi_pool.reference import roi_pool
from regionrt.plugins.warp.reference import warp

NOT_NEEDED = (
    "lightning", "jinja2", "markupsafe", "onnx", "onnxscript", "onnx_ir", "onnxruntime", "openvino", "typer", "rich",
    "plotly", "pycocotools", "torchmetrics", "skimage", "sklearn", "tensorrt", "tensorrt_rtx", "cuda", "pycuda",
)  # fmt: skip


def test_torch_torchvision_and_numpy_are_enough_to_import_it() -> None:
    """In a fresh interpreter; torch looks for some of the others itself, so they disappear after it is there."""
    code = f"""
import importlib.abc, sys, torch, torch._dynamo, torchvision
names = {NOT_NEEDED!r}
for name in [name for name in sys.modules if name.split(".")[0] in names]:
    del sys.modules[name]
class Hidden(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in names:
            raise ModuleNotFoundError(f"hidden: {{name}}", name=name)
sys.meta_path.insert(0, Hidden())
import regionrt.bench.suites.gpu
print("imported")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert done.stdout.strip() == "imported", done.stderr[-2000:]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_it_says_so_and_writes_nothing(tmp_path, capsys) -> None:
    assert gpu.main(["--out", str(tmp_path / "new")]) == 1
    assert "no NVIDIA GPU" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "arguments", [["--parts", "ops,nonsense"], ["--seconds", "0"], ["--limit-seconds", "-1"], ["--seconds", "many"]]
)
def test_wrong_use(arguments, tmp_path, capsys) -> None:
    with pytest.raises(SystemExit, match="2"):
        gpu.main(["--out", str(tmp_path), *arguments])
    assert "error" in capsys.readouterr().err


def test_the_floor_counts_what_the_definition_reads() -> None:
    """A cell counts when its value reaches the reference's output."""
    rng = np.random.default_rng(3)
    shapes, scales = [(12, 16), (6, 8)], (1 / 4, 1 / 8)
    rois = np.concatenate([scattered_boxes(rng, 3, (48, 64), 5), [[-9, 30, 230, 161]]]).astype(np.float32)
    rois[1] = (0, 0, 13, 7)  # begins at the edge, where samples have no lower neighbour
    counts = np.array([len(rois)], np.int32)
    maps = [np.zeros((1, 1, *shape)) for shape in shapes]
    read = 0
    for level in maps:
        for cell in range(level.size):
            level.flat[cell] = 1
            read += bool(roi_align(maps, rois[None], counts, spatial_scales=scales, output_size=(3, 3)).any())
            level.flat[cell] = 0
    cells = touched_cells(rois, shapes, scales, 3, 2)
    assert cells == read
    assert 0 < cells < 12 * 16 + 6 * 8
    assert roi_align_bytes(rois, shapes, scales, 3, 2, 5, 2) == cells * 5 * 2 + 4 * 5 * 9 * 2 + 4 * 4 * 4
    assert floor_us(4.8e12, 4.8e12) == 1e6


def test_the_floors_of_other_poolings_do_too() -> None:
    rois = np.concatenate([scattered_boxes(np.random.default_rng(4), 2, (96, 128), 9), [[-30, 50, 41, 300]]])
    boxes, counts, side = rois.astype(np.float32), np.array([3], np.int32), (12, 16)
    cases = (
        (roi_pool, {"spatial_scale": 1 / 8, "output_size": (3, 3)}, roi_pool_bytes(boxes, side, 1 / 8, 3, 5, 2), 9),
        (
            pyramid_pool,
            {"spatial_scale": 1 / 8, "bins": (2, 1)},
            pyramid_pool_bytes(boxes, side, 1 / 8, (2, 1), 5, 2),
            5,
        ),
        (warp, {"output_size": (7, 7), "context": 1}, warp_bytes(boxes / 8, side, 7, 1, 5, 2), 49),
    )
    for op, options, moved, outputs in cases:
        given, read = (boxes / 8 if op is warp else boxes)[None], 0
        for cell in range(12 * 16):
            x = np.zeros((1, 1, *side), np.float32)
            x.flat[cell] = 1
            read += bool(op(x, given, counts, **options).any())
        assert 0 < read < 12 * 16
        assert moved == (read + 3 * outputs) * 5 * 2 + 3 * 4 * 4, op


def test_copies_exceed_the_cache() -> None:
    assert copies_beyond_cache(46 << 20, 60 << 20) == 3
    assert copies_beyond_cache(1 << 30, 60 << 20) == 2
    assert copies_beyond_cache(20_000, 60 << 20, most=32) == 32
    assert copies_beyond_cache(20_000, 60 << 20) == 64


def case_of(**calls) -> OpCase:
    candidates = {
        name.replace("_", " "): lambda call=call, name=name: Candidate([call], graph=name.startswith("ours"))
        for name, call in calls.items()
    }
    return OpCase("an op", 4_000_000, 3, True, candidates, lambda: "equal")


def wait() -> None:
    sum(range(20_000))


def broken() -> None:
    raise RuntimeError("/some/where/kernel.cpp:320, not implemented for 'BFloat16'\nand a long trace")


def test_rows_of_a_case() -> None:
    ours, theirs = rows_of(case_of(ours=wait, torchvision=wait), HostClock(), 0.0, 1e12)
    assert (ours.how, theirs.how, ours.ours, theirs.ours) == ("graph", "call", True, False)
    assert ours.floor_us == pytest.approx(4.0)
    assert ours.over_floor == pytest.approx(ours.median_us / 4.0)
    assert theirs.times == pytest.approx(theirs.median_us / ours.median_us)
    assert ours.times == 1
    assert ours.noise_us is not None
    assert (ours.agreement, theirs.agreement) == ("equal", "")
    assert (ours.input_copies, ours.beyond_cache) == (3, True)


@pytest.mark.parametrize("which", ["ours", "torchvision"])
def test_a_candidate_that_fails_says_why_and_stops_nobody(which) -> None:
    calls = {"ours": wait, "torchvision": wait, "third": wait} | {which: broken}
    rows = {row.name: row for row in rows_of(case_of(**calls), HostClock(), 0.0, 1e12)}
    assert list(rows) == ["ours", "torchvision", "third"]
    assert rows[which].failed == "RuntimeError: …/kernel.cpp:320, not implemented for 'BFloat16'"
    assert all(row.median_us for name, row in rows.items() if name != which)
    if which == "ours":
        assert rows["third"].times is None


def test_noise_is_the_difference_between_two_timings_of_the_first() -> None:
    clock = HostClock()
    runs = {name: clock.prepare(Candidate([wait])) for name in ("first", "second")}
    assert set(clock.measure(runs, 0.0)) == {"first", "second", "first" + AGAIN}


def test_matched_is_one_to_one_by_label_and_overlap() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 10], [50, 50, 60, 60]])
    labels = torch.tensor([1, 1, 2])
    assert matched((boxes, labels), (boxes, labels), 0.9) == 1
    assert matched((boxes, labels), (boxes[1:], labels[1:]), 0.9) == pytest.approx(2 / 3)
    assert matched((boxes, labels), (boxes, torch.tensor([1, 2, 2])), 0.9) == pytest.approx(2 / 3)
    assert matched((boxes, labels), (boxes + 1, labels), 0.9) == 0
    assert matched((boxes, labels), (boxes[:0], labels[:0]), 0.9) == 0
    assert matched((boxes[:0], labels[:0]), (boxes[:0], labels[:0]), 0.9) == 1


def test_inputs_are_inside_the_canvas_and_repeat_with_their_seed() -> None:
    boxes, scores, labels = clustered_boxes(np.random.default_rng(1), 200, (96, 128), 7)
    assert (boxes[:, :2] <= boxes[:, 2:]).all()
    assert boxes.min() >= 0
    assert (boxes.max(0) <= (128, 96, 128, 96)).all()
    assert (np.diff(scores) <= 0).all()
    assert set(labels) <= set(range(7))
    again, _, _ = clustered_boxes(np.random.default_rng(1), 200, (96, 128), 7)
    assert np.array_equal(boxes, again)
    made = pictures(2, (64, 96), 5, "cpu")
    assert (made.shape, made.dtype) == ((2, 64, 96, 3), torch.uint8)
    assert made.float().std() > 20
    assert torch.equal(made, pictures(2, (64, 96), 5, "cpu"))
    assert not torch.equal(made, pictures(2, (64, 96), 6, "cpu"))


def full_report() -> GpuReport:
    facts = {"machine": {"CPU": "a CPU", "cores": "8", "GPU": "a GPU, driver 1"}, "software": {"torch": "2.11.0"}}
    report = GpuReport("NVIDIA H100 80GB", facts, "make gpu", 3.0e12, 123.4, notes=["seed 1"])
    report.correctness = [
        Check("nms", "8 boxes", "reference.py", 0.0, 0.0, "boxes that differ", True),
        Check("roi_align", "fp16 | odd", "torchvision", float("nan"), 1e-4, "of the largest value", False),
    ]
    report.ops = [
        OpRow("RoIAlign", "ours", True, 50.0, 49.0, 51.0, 9, "graph", 20.0, 2.5, 1.0, 0.4, "equal", 3, True),
        OpRow("RoIAlign", "torchvision", False, 500.0, 480.0, 520.0, 9, "call", 20.0, 25.0, 10.0),
        OpRow("RoIAlign", "broken", False, failed="RuntimeError: a | b"),
    ]
    report.detectors = [
        DetectorRow(
            "fasterrcnn", "800×1088", 1, LAYERS["fused"], True, 3.0, 2.9, 3.1, 20, 1.0, 0.95, 40.0, {"body": 2000.0}
        ),
        DetectorRow("fasterrcnn", "800×1088", 1, "PyTorch fp32", False, 30.0, 29.0, 31.0, 20, 10.0, 1.0, 40.0),
        DetectorRow("fasterrcnn", "800×1088", 1, "PyTorch compiled", False, failed="left out: 450 s had passed"),
    ]
    report.engines = [EngineRow("TensorRT", "", failed="cannot be imported: No module named 'tensorrt'")]
    return report


def test_tables_hold_everything_and_say_why_something_is_missing() -> None:
    report = full_report()
    report.skipped["engines"] = "not asked for"
    text = to_markdown(report)
    for told in (
        "3.00 TB/s", "1 of 2 checks passed", "**failed**: fp16 / odd", "10.0×", "2.50×", "timed twice: 0.400 µs apart",
        "RuntimeError: a / b", "95.0%", "left out: 450 s had passed", "| fasterrcnn 800×1088, batch 1 | 2,000 |",
        "cannot be imported: No module named 'tensorrt'", "Not done, or not to its end: not asked for", "no\nengine",
    ):  # fmt: skip
        assert told in text, told
    rows = [line for line in text.splitlines() if line.startswith("|")]
    tables = "\n".join(line if line.startswith("|") else "" for line in text.splitlines()).split("\n\n")
    for table in filter(None, (part.strip() for part in tables)):
        assert len({line.count("|") for line in table.splitlines()}) == 1, table
    assert rows
    short = to_terminal(report)
    assert "FAILED roi_align fp16 | odd" in short
    assert "left out: 450 s had passed" in short


def test_the_report_is_json_and_comes_back(tmp_path) -> None:
    files = write(full_report(), tmp_path)
    assert [file.name for file in files] == ["gpu-nvidia-h100-80gb.json", "gpu-nvidia-h100-80gb.md"]
    data = json.loads(files[0].read_text(), parse_constant=pytest.fail)
    assert data["correctness"][1]["error"] is None
    back = GpuReport.from_json(data)
    assert back.ops == full_report().ops
    assert back.detectors == full_report().detectors
    with pytest.raises(BenchError, match="regionrt-gpu/1"):
        GpuReport.from_json({**data, "format": "regionrt-gpu/0"})
    with pytest.raises(BenchError, match="not a regionrt-gpu/1 report"):
        GpuReport.from_json({**data, "ops": [{"nonsense": 1}]})


def test_a_part_that_fails_keeps_what_it_has_and_stops_no_other(monkeypatch) -> None:
    def ops(*_):
        yield OpRow("an op", "ours", True, 1.0)
        raise RuntimeError("CUDA error: an illegal memory access\nCompile with …")

    gpu_is = SimpleNamespace(name="A GPU", multi_processor_count=1, L2_cache_size=1 << 20)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: gpu_is)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(gpu, "open_torch_kernels", lambda: None)
    monkeypatch.setattr(gpu, "copy_bandwidth", lambda: 1e12)
    monkeypatch.setattr(gpu, "run_ops", ops)
    monkeypatch.setattr(gpu, "run_engines", lambda *_: iter([EngineRow("TensorRT", "10.9")]))
    kept: list[str] = []
    options = GpuOptions(parts=("ops", "engines"))
    report = run_gpu(options, lambda now: kept.append(json.dumps(now.to_json())), lambda text: None)
    assert [row.case for row in report.ops] == ["an op"]
    assert report.skipped["ops"] == "RuntimeError: CUDA error: an illegal memory access"
    assert report.skipped["correctness"] == report.skipped["detectors"] == "not asked for"
    assert [row.version for row in report.engines] == ["10.9"]
    assert len(kept) == 2


@pytest.mark.parametrize(
    ("skipped", "passed", "status"),
    [({}, True, 0), ({}, False, 1), ({"ops": "it broke"}, True, 1), ({"engines": "no"}, True, 0)],
)
def test_its_exit_status(skipped, passed, status, monkeypatch, tmp_path, capsys) -> None:
    report = full_report()
    report.skipped = skipped
    report.correctness = [Check("nms", "a case", "reference.py", 0.0, 0.0, "boxes", passed)]
    monkeypatch.setattr(gpu, "run_gpu", lambda options, keep, tell: report)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert gpu.main(["--out", str(tmp_path), "--parts", "correctness,ops"]) == status
    assert {file.suffix for file in tmp_path.iterdir()} == {".json", ".md"}
