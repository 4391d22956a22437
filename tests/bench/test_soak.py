"""The soak: what it notices, its table, and a bundle asked in a process of its own."""

from __future__ import annotations

import itertools
import json
import threading
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from fake_detector import write_fake_bundle

from regionrt.bench.errors import BenchError
from regionrt.bench.suites.soak import Row, SoakOptions, SoakReport, run_soak, write
from regionrt.bench.suites.soak_case import THREADS, Soaked, digest_of, soak
from regionrt.cli import run

STEADY = itertools.repeat(1000)


@dataclass
class Answer:
    scores: np.ndarray
    name: str = "not looked at"


def test_every_photo_is_asked_in_turn_and_nothing_is_found():
    asked = []
    found = soak(lambda photo: asked.append(photo) or Answer(np.full(2, photo)), 3, 60, memory=lambda: next(STEADY))
    assert asked[:60] == [0, 1, 2] * 20
    assert sorted(asked[60:]) == sorted([0, 1, 2] * THREADS)
    assert (found.changed, found.changed_in_threads, found.growth) == (0, 0, 0)
    assert [count for count, _ in found.resident] == [6, 12, 18, 24, 30, 36, 42, 48, 54, 60]


def test_growth_is_counted_from_behind_the_warm_up():
    sizes = iter([200, 202, 204, 206, 208, 210, 212, 214, 216, 221])
    found = soak(lambda photo: Answer(np.zeros(1)), 2, 20, memory=lambda: next(sizes))
    assert found.growth == pytest.approx(0.105)
    assert not Row("a", found).passes


def test_an_answer_that_changes_is_counted():
    calls = itertools.count()
    found = soak(lambda photo: Answer(np.array([next(calls) >= 15])), 2, 20, memory=lambda: next(STEADY))
    assert (found.changed, found.changed_in_threads) == (5, 2 * THREADS)


def test_an_answer_that_other_threads_spoil_is_counted():
    main = threading.get_ident()
    found = soak(lambda photo: Answer(np.array([threading.get_ident() == main])), 1, 10, memory=lambda: next(STEADY))
    assert (found.changed, found.changed_in_threads) == (0, THREADS)


def test_answers_differ_by_type_shape_and_values():
    answers = [np.zeros(2), np.zeros(2, np.float32), np.zeros((2, 1)), np.array([0.0, -0.0])]
    assert len({digest_of(Answer(values)) for values in answers}) == 4
    assert digest_of(Answer(np.zeros(2), "a")) == digest_of(Answer(np.zeros(2), "b"))


def test_too_few_requests():
    for requests in (29, 35):
        with pytest.raises(ValueError, match=f"at least 30 requests for 3 photos, a multiple of 10, got {requests}"):
            soak(lambda photo: Answer(np.zeros(1)), 3, requests)


def test_an_answer_that_cannot_be_compared():
    with pytest.raises(ValueError, match="expected an answer of arrays, found Answer"):
        digest_of(Answer([1.0], "a"))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    return write_fake_bundle(tmp_path_factory.mktemp("soak") / "fake", model="faster_rcnn")


def test_a_bundle_is_soaked(bundle, tmp_path):
    kept = []
    report = run_soak(bundle, SoakOptions(requests=80, threads=1), keep=kept.append)
    (row,) = report.rows
    assert row.found is not None, row.reason
    assert (row.id, row.found.changed, row.found.changed_in_threads) == ("onnxruntime-native-fp32", 0, 0)
    assert 20e6 < row.found.resident[0][1] < 250e6  # no PyTorch
    assert len(kept) == 1
    files = write(report, tmp_path)
    assert json.loads(files[0].read_text())["rows"][0]["found"]["changed"] == 0
    assert "| onnxruntime-native-fp32 |" in files[1].read_text()
    assert str(bundle) not in files[0].read_text()


def test_the_table():
    found = Soaked(((10, 100_000_000), (100, 100_500_000)), 12.0, 12.5, 0, 0)
    worse = Soaked(((10, 100_000_000), (100, 102_000_000)), 12.0, 30.0, 3, 1)
    rows = (Row("a", found), Row("b", worse), Row("c", reason="no such library", skipped=True))
    facts = {"machine": {"CPU": "x", "instruction sets": "y"}, "setting": {"threads": "2", "load before": "0"}}
    report = SoakReport(facts | {"software": {}}, "regionrt bench", "8 photos", 100, rows)
    table = report.to_markdown()
    assert not report.passes
    assert replace(report, rows=(rows[0], rows[2])).passes
    assert not replace(report, rows=rows[2:]).passes
    assert not replace(report, rows=(rows[0], Row("d", reason="its process ended with status 1"))).passes
    assert "| a | 100 MB → 100 MB | +0.50 % | 12.0 → 12.5 | 0 + 0 | passes |" in table
    assert "| b | 100 MB → 102 MB | +2.00 % | 12.0 → 30.0 | 3 + 1 | **fails** |" in table
    assert "| c | | | | | not run: no such library |" in table


def test_rows_that_the_bundle_has_not(bundle):
    with pytest.raises(BenchError, match=r"openvino-staged-bf16: not in .*, which has onnxruntime-native-fp32"):
        run_soak(bundle, SoakOptions(rows=("openvino-staged-bf16",)))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([], "--suite soak: expected one BUNDLE"),
        (["BUNDLE", "BUNDLE"], "--suite soak: expected one BUNDLE"),
        (["BUNDLE", "--requests", "79"], "--requests 79: expected a multiple of 10, at least 80"),
        (["BUNDLE", "--nets", "x"], "--nets: not with --suite soak"),
        (["BUNDLE", "--checkpoint", "x.pt"], "--checkpoint: not with --suite"),
    ],
)
def test_what_is_refused(given, words, bundle, tmp_path, capsys):
    given = [str(bundle) if text == "BUNDLE" else text for text in given]
    assert run(["bench", *given, "--suite", "soak", "--out", str(tmp_path / "out")]) == 2
    assert words in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("suite", ["ops", "peers", "seeds", "ablations"])
def test_other_suites_take_no_bundle(suite, bundle, tmp_path, capsys):
    assert run(["bench", str(bundle), "--suite", suite, "--out", str(tmp_path / "out")]) == 2
    assert "makes its own nets: leave out BUNDLE" in " ".join(capsys.readouterr().err.split())


def test_the_command_line(bundle, tmp_path, capsys):
    arguments = ["bench", str(bundle), "--suite", "soak", "--requests", "80", "--threads", "1", "--json"]
    code = run([*arguments, "--out", str(tmp_path)])
    told = json.loads(capsys.readouterr().out)
    assert told["format"] == "regionrt-soak/1"
    found = Soaked.from_json(told["rows"][0]["found"])
    assert code == (0 if Row("a", found).passes else 1)  # so few requests may not have settled
