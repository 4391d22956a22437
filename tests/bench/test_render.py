"""The page and the Markdown: whole, self-contained, escaped, and the same from report.json as from memory."""

import base64
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from example_report import example_report
from PIL import Image

from regionrt.bench.assembly import _noise
from regionrt.bench.errors import BenchError
from regionrt.bench.headline import lead
from regionrt.bench.latency import Timed
from regionrt.bench.render import render
from regionrt.bench.schema import Report, Shares, read_report, report_from_json

FETCHING = {"src", "href", "srcset", "data", "poster", "action", "background", "xlink:href"}


class Page(HTMLParser):
    """What a page would fetch, its tables, its text, its elements by name."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.tables: list[list[list[str]]] = []
        self.elements: dict[str, int] = {}
        self.text: list[str] = []
        self._inside: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self._inside.append(tag)
        self.elements[tag] = self.elements.get(tag, 0) + 1
        for name, value in attributes:
            if name in FETCHING and not (value or "").startswith("data:"):
                self.fetched.append(f"{tag} {name}={value}")
            if name == "style":
                self.fetched += re.findall(r"url\((?!data:)[^)]*\)|@import[^;]*", value or "")
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag):
        if tag in self._inside:
            while self._inside.pop() != tag:
                pass

    def handle_data(self, data):
        if "style" in self._inside:
            self.fetched += re.findall(r"url\((?!data:)[^)]*\)|@import[^;]*", data)
            return
        if "script" in self._inside:
            return
        self.text.append(data)
        if self.tables and ("td" in self._inside or "th" in self._inside):
            self.tables[-1][-1][-1] += data


def page_of(report: Report, folder) -> tuple[str, Page]:
    text = render(report, folder)[2].read_text(encoding="utf-8")
    return text, Page(text)


@pytest.fixture(scope="module")
def example() -> Report:
    return example_report()


def test_report_json_reads_back_as_the_same_report(example, tmp_path):
    path = render(example, tmp_path)[0]
    assert read_report(path) == example
    assert json.loads(path.read_text())["format"] == "regionrt-report/1"
    samples = [line for line in path.read_text().splitlines() if '"samples_ms"' in line]
    assert len(samples) == 7  # lists of numbers stand on one line each, for diffs and eyes
    assert all(line.rstrip(",").endswith("]") for line in samples)


def test_rendering_again_from_the_file_gives_the_same_bytes(example, tmp_path):
    first = render(example, tmp_path / "a")
    second = render(first[0], tmp_path / "b")
    assert [p.read_bytes() for p in first] == [p.read_bytes() for p in second]


def test_the_page_fetches_nothing(example, tmp_path):
    text, page = page_of(example, tmp_path)
    assert page.fetched == []
    assert "http://" not in text
    assert "https://" not in text
    assert "default-src 'none'" in text


def test_the_page_shows_the_figures(example, tmp_path):
    _, page = page_of(example, tmp_path)
    candidates = page.tables[0]
    chosen = example.candidate(example.chosen)
    assert chosen is not None
    row = next(line for line in candidates if chosen.name in line[0])
    latency, speedup = chosen.latency, chosen.speedup_over_eager
    assert latency is not None
    assert speedup is not None
    assert row[1] == f"{latency.p50_ms:.1f}"
    assert row[6] == f"{speedup.ratio:.2f}×"
    assert row[8:] == ["56.0", "−0.34 [−0.65, −0.06]"]
    unrun = next(line for line in candidates if "TensorRT for RTX" in line[0])
    assert unrun[1:] == ["built for compute capabilities 8.6, 8.9; this machine has no NVIDIA GPU"]
    assert {len(line) for line in candidates[2:-1]} == {len(candidates[1])}
    assert page.elements["svg"] == 6  # three plots, wide and narrow
    assert page.elements["img"] == 4


def test_the_page_shows_the_steps_of_staged_artefacts(example, tmp_path):
    _, page = page_of(example, tmp_path)
    heads, *lines = next(table for table in page.tables if table[0][0] == "step, ms")
    (staged,) = (row for row in example.candidates if row.form == "staged")
    assert heads[1:] == [staged.name]
    assert [line[0] for line in lines[:-1]] == [*staged.shares.steps_ms]
    assert lines[1] == ["dense_0", "48.1"]
    assert lines[-1] == ["not in the engine", "13.0 %"]
    assert "| **dense_0** | 48.1 |" in (tmp_path / "report.md").read_text()


def test_steps_that_one_artefact_lacks_keep_their_place(example, tmp_path):
    rows = [row for row in example.candidates if row.form == "staged"]
    steps = {"canvas": 1.0, "dense_0": 2.0, "between the steps": 0.1, "boxes and masks back": 0.2}
    other = replace(rows[0], id="other", name="other", shares=Shares(steps, ("dense_0",), 0.4))
    _, page = page_of(replace(example, candidates=(*example.candidates, other)), tmp_path)
    heads, *lines = next(table for table in page.tables if table[0][0] == "step, ms")
    assert heads[1:] == [rows[0].name, "other"]
    assert [line[0] for line in lines[-3:]] == ["between the steps", "boxes and masks back", "not in the engine"]
    assert {line[0]: line[2] for line in lines}["RegionDetections_4"] == "–"


def test_pictures_lie_beside_the_markdown(example, tmp_path):
    text = render(example, tmp_path)[1].read_text(encoding="utf-8")
    files = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text)
    assert len(files) == 4
    for name, panel in zip(files, (p for picture in example.pictures for p in picture.panels), strict=True):
        image = Image.open(tmp_path / name)
        image.load()
        assert image.size == (panel.width, panel.height)
        assert Image.open(io.BytesIO(base64.b64decode(panel.jpeg))).size == image.size


def test_markdown_tables_have_as_many_cells_as_heads(example, tmp_path):
    text = render(example, tmp_path)[1].read_text(encoding="utf-8")
    tables = re.findall(r"(?:^\|.*\|$\n?)+", text, re.MULTILINE)
    assert len(tables) >= 6
    for table in tables:
        counts = {len(re.findall(r"(?<!\\)\|", line)) for line in table.strip().splitlines()}
        assert len(counts) == 1, table


def test_names_from_outside_cannot_become_markup(example, tmp_path):
    nasty = '<script>alert("x")</script> | <img src=http://evil/x.png>'
    rows = (replace(example.candidates[0], name=nasty, notes=(nasty,)), *example.candidates[1:])
    pictures = (replace(example.pictures[0], image=nasty),)
    report = replace(example, title=nasty, candidates=rows, pictures=pictures, notes=(nasty,), commands=(nasty,))
    _, page = page_of(report, tmp_path)
    assert page.elements["script"] == 1  # ours
    assert page.elements["img"] == 2
    assert page.fetched == []
    assert nasty in "".join(page.text)
    table = (tmp_path / "report.md").read_text().split("## Candidates")[1].split("##")[0]
    assert "<script>" not in table.split("|:--|")[1].split("All candidates")[0]


def test_without_data_the_page_says_so_and_shows_no_ap(example, tmp_path):
    note = "Accuracy was not measured: no data was given."
    rows = tuple(replace(row, accuracy=None) for row in example.candidates)
    report = replace(example, candidates=rows, data=None, accuracy_note=note, max_drop=None)
    text, page = page_of(report, tmp_path)
    assert text.count(note) >= 2
    assert not any("AP" in cell for table in page.tables for line in table for cell in line)
    assert page.elements["svg"] == 4
    assert note in (tmp_path / "report.md").read_text()


def test_without_a_checkpoint_there_is_nothing_to_compare_with(example, tmp_path):
    rows = tuple(
        replace(row, speedup_over_eager=None, speedup_over_best_torch=None)
        for row in example.candidates
        if row.kind == "bundle"
    )
    report = replace(example, candidates=rows, baseline=None, best_torch=None, pictures=())
    text, _ = page_of(report, tmp_path)
    assert "No checkpoint was given" in text


def test_only_engines_that_do_not_run_here(example, tmp_path):
    report = replace(
        example, candidates=example.candidates[-1:], chosen=None, baseline=None, best_torch=None, pictures=(), data=None
    )
    text, page = page_of(report, tmp_path)
    assert "No artefact of a bundle was run on this machine" in text
    assert "svg" not in page.elements
    assert "8.12 MB" in text


def test_zero_detections_and_classes_without_objects(example, tmp_path):
    def blind(row):
        if row.accuracy is None:
            return row
        metrics = dict.fromkeys(row.accuracy.metrics, 0.0)
        per_class = {name: {"AP": None, "AP50": 0.0} for name in row.accuracy.per_class}
        differences = tuple(replace(d, points=0.0, low=0.0, high=0.0) for d in row.accuracy.differences)
        accuracy = replace(row.accuracy, metrics=metrics, per_class=per_class, differences=differences)
        return replace(row, accuracy=accuracy, latency=replace(row.latency, detections_per_image=0.0))

    report = replace(example, candidates=tuple(map(blind, example.candidates)))
    text, page = page_of(report, tmp_path)
    assert "the same as PyTorch" in text
    assert "nan" not in " ".join(page.text).lower().split()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda j: j.update(format="regionrt-report/2"), "regionrt-report/1"),
        (lambda j: j.pop("candidates"), "candidates missing"),
        (lambda j: j["candidates"][2].update(latency="fast"), r"candidates\[2\]\.latency"),
        (lambda j: j["candidates"][0]["latency"].update(p50_ms=True), "p50_ms"),
        (lambda j: j["candidates"][0]["latency"]["samples_ms"].insert(0, "x"), r"samples_ms\[0\]"),
        (lambda j: j.update(labels={"a": 1}), "labels"),
    ],
)
def test_a_broken_report_is_named(example, change, message):
    content = json.loads(example.dumps())
    change(content)
    with pytest.raises(BenchError, match=message):
        report_from_json(content)


def test_unknown_keys_are_passed_over_and_nan_becomes_null(example):
    content = json.loads(example.dumps())
    content["from the future"] = 1
    content["candidates"][0]["hue"] = "blue"
    assert report_from_json(content) == example
    odd = replace(example.candidates[0].accuracy, metrics={"AP": float("nan")})
    report = replace(example, candidates=(replace(example.candidates[0], accuracy=odd),))
    assert '"AP": null' in report.dumps()


@pytest.mark.parametrize("content", ["", "[1, 2]", '{"format": 3}', "not json"])
def test_a_file_that_is_no_report(tmp_path, content):
    path = tmp_path / "report.json"
    path.write_text(content)
    with pytest.raises(BenchError, match="report"):
        render(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_figures_of_a_machine_that_was_not_quiet_say_so_in_the_headline():

    report = example_report()
    assert "quiet" not in lead(report)
    timed = Timed({"a": None, "b": None}, {"a": "", "b": ""}, 5, frozenset("a"))
    assert not _noise(replace(timed, noisy=frozenset()))
    assert "with care" in lead(replace(report, notes=tuple(_noise(timed))))
