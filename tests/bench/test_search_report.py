"""The report of a search: every figure in its JSON, the same in Markdown and on the page; names cannot break it."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from made_search import MadeBench, final
from test_search import LEVELS, options, tuned

from regionrt.bench.search.curves import Curve
from regionrt.bench.search.report import view, write_report
from regionrt.bench.search.result import SearchResult, front_of
from regionrt.bench.search.settings import Setting
from regionrt.bench.search.trial import Trial


def example_search() -> SearchResult:
    """As `tune` would return it, of made figures; one setting failed, one layer is left alone."""
    bench, alone, combined, ended = tuned(0.0)
    assert isinstance(bench, MadeBench)
    failed = Trial(Setting(precision="bf16"), failed="this processor does not compute in bf16 <b>")
    rank = bench.journal[LEVELS[3].levels[0].key]
    chosen = max((t for t in combined if t.holds(0.5)), key=lambda t: t.ratio)
    by_hand = max((t for t in alone if t.holds(0.5)), key=lambda t: t.ratio)
    return SearchResult(
        "tune", options(), "faster_rcnn", "detection", "shapes:train=8", {"AP": 0.5}, LEVELS,
        (Curve("head.fc6", "512→512", (rank,), ""), Curve("head.fc7", "9→9", (), "rank 16 | gains nothing")),
        (*alone, failed), tuple(combined), by_hand, chosen, final(chosen.setting, by_hand.setting), ended,
        {"machine": {"CPU": "a CPU"}}, "2026-01-01T00:00:00Z", ("regionrt tune ckpt.pt --data DIR",),
    )  # fmt: skip


@pytest.fixture(scope="module")
def result() -> SearchResult:
    return example_search()


def test_every_figure_stands_in_the_json(result, tmp_path):
    json_file, markdown, page = write_report(result, tmp_path)
    content = json.loads(json_file.read_text())
    assert content["format"] == "regionrt-search-report/1"
    assert {Setting.from_json(s).key for s in content["front"]} == {t.setting.key for t in result.front()}
    assert len(content["trials"]) == len(result.trials)
    assert Trial.from_json(content["trials"][0]) == result.trials[0]
    assert content["final"]["over_hand"]["ratio"] == 1.56
    for text in (markdown.read_text(), page.read_text()):
        for word in (
            "1.56×",
            "2.22×",
            "−0.40 [−0.70, −0.10]",
            str(result.chosen.setting),
            "on the front",
            "left alone",
        ):
            assert word in text
        assert "<b>" not in text.replace("<b>size", "").replace("<b>ranks", "") or "bf16 <b>" not in text
    assert "rank 16 \\| gains nothing" in markdown.read_text()
    assert "src=" not in page.read_text()


def test_the_front_holds_what_nothing_is_better_than(result):
    front = result.front()
    assert result.chosen.setting in [t.setting for t in front]
    for trial in front:
        assert not any(
            other.drop is not None and other.drop <= trial.drop and other.ratio > trial.ratio for other in result.trials
        )
    assert [t.ratio for t in front] == sorted(t.ratio for t in front)
    assert front_of([Trial(Setting(), failed="no")]) == ()


def test_milliseconds_follow_from_one_base(result):
    shown = view(result)
    chosen = next(row for row in shown["trials"] if row["chosen"])
    assert result.base_ms == 100
    assert chosen["cells"][0] == f"{100 / result.chosen.ratio:.1f}"
    assert any(row["verdict"].startswith("not possible: this processor") for row in shown["trials"])
    assert {row["verdict"].split(",")[0] for row in shown["trials"]} >= {"within the budget", "over the budget"}


def test_where_a_single_setting_is_best_the_front_says_so(result):
    alone = replace(result, chosen=result.by_hand, final=final(result.by_hand.setting, None))
    shown = view(alone)
    assert any("none that was measured is faster within the budget" in note for note in shown["notes"])
    assert len(shown["tiles"]) == 3
