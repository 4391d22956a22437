"""The table of whole nets: floors, failures that do not stop it, and the command line."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

import regionrt
from regionrt.bench.errors import BenchError
from regionrt.bench.schema import Latency, Ratio, Shares
from regionrt.bench.suites import peers
from regionrt.bench.suites.floors import floors_of
from regionrt.bench.suites.peer_case import EAGER, Case, Row
from regionrt.bench.suites.peers import MOBILENET, PeersOptions, PeersReport, run_peers, write
from regionrt.cli import run

PEER, BF16, STAGED, WHOLE = (
    "export-openvino-bf16", "openvino-staged-bf16", "onnxruntime-staged-fp32", "onnxruntime-native-fp32",
)  # fmt: skip


def row(id: str, p50_ms: float, matched: float, *, noisy: bool = False, not_dense: float | None = None) -> Row:
    latency = Latency((p50_ms,) * 5, (), p50_ms, p50_ms, p50_ms, p50_ms, {}, {}, 9.0)
    made = Row(id, id, latency, matched=matched, noisy=noisy)
    made.over_eager, made.over_best_peer = Ratio(1000 / p50_ms, 0, 0), Ratio(200 / p50_ms, 0, 0)
    if not_dense is not None:
        made.matched_on_canvas = matched
        made.shares = Shares({"body": 1.0}, ("body",), not_dense)
    return made


def case(ours_ms: float = 90.0, height: int = 800, **changes) -> Case:
    values = {"matched": 0.86, "not_dense": 0.14, "noisy": False} | changes
    rows = [row(EAGER, 1000, 1.0), row(PEER, 200, 0.78), row(BF16, ours_ms, **values)]
    rows += [row(STAGED, 300, 1.0, not_dense=0.1), row(WHOLE, 600, 1.0)]
    canvas = {"height": height, "width": 1088}
    net = "fasterrcnn_resnet50_fpn"
    return Case(f"{net} {height}×1088", net, (height, 1088), False, canvas, best_peer=PEER, rows=rows)


def verdicts(measured: Case) -> dict[str, str]:
    return {floor.what: floor.verdict for floor in floors_of(measured)}


def test_floors_reached():
    found = verdicts(case())
    assert found == {
        "bf16 over eager fp32": "reached",
        "bf16 over the best peer": "reached",
        f"bf16, eager's detections matched, as {PEER}": "reached",
        f"matched, {STAGED}": "reached",
        "fp32 staged over ONNX Runtime's whole graph": "reached",
        "bf16, not dense": "reached",
    }


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"ours_ms": 101.0}, "bf16 over eager fp32"),  # 9.9 of the 10 asked at 800 × 1088
        ({"ours_ms": 150.0}, "bf16 over the best peer"),
        ({"matched": 0.77}, f"bf16, eager's detections matched, as {PEER}"),
        ({"not_dense": 0.16}, "bf16, not dense"),
    ],
)
def test_floors_not_reached(changes, what):
    assert verdicts(case(**changes))[what] == "not reached"


def test_a_floor_measured_amid_other_load_is_not_judged():
    assert verdicts(case(noisy=True))["bf16 over eager fp32"] == "not judged: not quiet"


def test_a_floor_without_its_row_is_not_measured():
    without = case()
    without.rows = [row for row in without.rows if row.id != BF16]
    assert verdicts(without)["bf16 over eager fp32"] == "not measured"


def test_mobilenet_runs_with_and_without_its_own_resize():
    jobs = peers._jobs(PeersOptions(nets=("fasterrcnn_resnet50_fpn", MOBILENET), sizes=((480, 640),)))
    assert [(job.net, job.own_resize) for job in jobs] == [
        ("fasterrcnn_resnet50_fpn", False), (MOBILENET, True), (MOBILENET, False),
    ]  # fmt: skip


def test_a_case_that_fails_does_not_stop_the_others(tmp_path):
    (tmp_path / f"{MOBILENET}.pth").write_bytes(b"no weights")
    options = PeersOptions(nets=(MOBILENET,), sizes=((64, 64),), weights=tmp_path, photos=1, threads=1)
    kept, told = [], []
    report = run_peers(options, progress=told.append, keep=lambda done: kept.append(len(done.cases)))
    assert kept == [1, 2]
    for failed in report.cases:
        assert "is not a file of weights" in failed.failed
        assert str(tmp_path) not in failed.failed
    files = write(report, tmp_path / "out")
    assert [file.name for file in files] == ["peers.json", "peers.md"]
    assert json.loads(files[0].read_text())["cases"][1]["failed"]
    assert "Not measured: " in files[1].read_text()


def test_a_case_that_takes_too_long_is_given_up(tmp_path):
    options = PeersOptions(nets=("fasterrcnn_resnet50_fpn",), sizes=((64, 64),), photos=1, limit_seconds=0.2)
    (late,) = run_peers(options).cases
    assert late.failed == "not done within 0 s"


def test_a_suite_that_is_killed_leaves_no_child(tmp_path):
    """The program is stopped while its child works: the child ends on its own."""
    command = [sys.executable, "-m", "regionrt.bench.suites.peers", "--out", str(tmp_path), "--rows", EAGER,
               "--nets", MOBILENET, "--sizes", "64x64", "--seconds", "600"]  # fmt: skip
    suite = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=Path(regionrt.__file__).parent.parent)
    for line in suite.stderr:  # the child reads its job before it says anything
        if "opening" in line:
            break
    children = Path(f"/proc/{suite.pid}/task/{suite.pid}/children").read_text().split()
    assert children
    suite.kill()
    suite.wait()
    suite.stderr.close()
    until = time.monotonic() + 20
    while any(_alive(int(child)) for child in children) and time.monotonic() < until:
        time.sleep(0.2)
    assert not [child for child in children if _alive(int(child))]


def _alive(pid: int) -> bool:
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


def test_missing_weights_and_photos_are_found_before_anything_runs(tmp_path):
    with pytest.raises(BenchError, match=r"fasterrcnn_resnet50_fpn\.pth"):
        run_peers(PeersOptions(weights=tmp_path))
    with pytest.raises(BenchError, match="folder of photos"):
        run_peers(PeersOptions(data=tmp_path))


@pytest.mark.parametrize(
    "changes", [{"nets": ("resnet",)}, {"sizes": ((100, 64),)}, {"rows": ("caffe",)}, {"threads": 0}, {"photos": 0}]
)
def test_options_that_make_no_sense(changes):
    with pytest.raises(ValueError, match=r"resnet|100x64|caffe|threads|photo"):
        PeersOptions(**changes)


def test_markdown_tells_who_is_ours_and_who_the_best_peer():
    facts = {
        "machine": {"CPU": "a CPU", "instruction sets": "AVX2"},
        "setting": {"threads": "2 for every candidate", "load before": "0.1"},
        "software": {"Python": "3.12"},
    }
    text = PeersReport(facts, "regionrt bench --suite peers", "8 photos given", {}, [case()]).to_markdown()
    lines = text.splitlines()
    assert any(line.startswith(f"| **{BF16}** | 90.0 |") and "14.0 %" in line for line in lines)
    assert any(line.startswith(f"| {PEER} | 200.0 |") and "1 (the best peer)" in line for line in lines)
    assert any("bf16 over eager fp32 | ≥ 10× | 11.11× | reached |" in line for line in lines)


def test_the_command_line_hands_over_what_was_typed(tmp_path: Path, monkeypatch, capfd):
    seen = []

    def fake(options, *, progress, keep):
        seen.append(options)
        report = PeersReport(
            {"machine": {"CPU": "", "instruction sets": ""}, "setting": {"threads": "", "load before": ""},
             "software": {}}, "command", "photos", {}, [case()],
        )  # fmt: skip
        keep(report)
        return report

    monkeypatch.setattr(peers, "run_peers", fake)
    out = str(tmp_path / "out")
    arguments = ["bench", "--suite", "peers", "--out", out, "--nets", MOBILENET, "--sizes", "480x640,64x64"]
    assert run([*arguments, "--seconds", "3", "--weights", str(tmp_path)]) == 0
    assert (seen[0].nets, seen[0].sizes, seen[0].seconds) == ((MOBILENET,), ((480, 640), (64, 64)), 3.0)
    assert seen[0].weights == tmp_path
    assert "11.11×" in capfd.readouterr().out
    assert (tmp_path / "out" / "peers.json").is_file()


@pytest.mark.parametrize(
    "arguments",
    [
        ["--suite", "seed"],
        ["--weights", "."],
        ["bundle", "--suite", "peers"],
        ["--suite", "peers", "--nets", "resnet"],
        ["--suite", "ops", "--sizes", "64x64"],
    ],
)
def test_wrong_use(arguments, tmp_path):
    assert run(["bench", "--out", str(tmp_path / "out"), *arguments]) == 2
