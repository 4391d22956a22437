"""Searches: what they find against all there is, what they spare, how they go on, and what they refuse."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
from made_search import MadeBench, MadePairs

from regionrt.bench.errors import BenchError
from regionrt.bench.schema import Ratio
from regionrt.bench.search import rank_search, tune
from regionrt.bench.search.curves import layer_curves, ranks_to_try
from regionrt.bench.search.drop import points_lost
from regionrt.bench.search.front import Choice, best_combinations
from regionrt.bench.search.journal import Journal
from regionrt.bench.search.knobs import Knob, precision_knob, rank_knob, together
from regionrt.bench.search.options import SearchOptions
from regionrt.bench.search.settings import Setting
from regionrt.bench.search.trial import Trial
from regionrt.runtime.errors import OutputError


def options(**changes) -> SearchOptions:
    return SearchOptions(**{"backend": "onnxruntime", "max_drop": 0.5, **changes})


@pytest.mark.parametrize("seed", range(5))
def test_the_front_is_that_of_all_combinations(seed):
    random = np.random.default_rng(seed)
    places = [[Choice(i, *random.uniform(0, 1, 2)) for i in range(4)] for _ in range(3)]
    every = []
    for choices in itertools.product(*([None, *place] for place in places)):
        taken = [c for c in choices if c is not None]
        every.append((sum(c.gain for c in taken), sum(c.drop for c in taken)))
    wanted = {
        (round(gain, 9), round(drop, 9))
        for gain, drop in every
        if not any((g >= gain and d <= drop) and (g, d) != (gain, drop) for g, d in every)
    }
    front = best_combinations(places)
    assert {(round(c.gain, 9), round(c.drop, 9)) for c in front} == wanted
    assert front[0].values == (None, None, None)
    assert [c.drop for c in front] == sorted(c.drop for c in front)


def test_ranks_are_multiples_below_the_largest():
    assert ranks_to_try(3520, 16, 4) == [1760, 880, 448, 224]
    assert ranks_to_try(20, 16, 4) == [16]
    assert ranks_to_try(15, 16, 4) == []


FC = {"head.fc6": 512, "head.fc7": 256, "head.small": 12}


def of_ranks(setting: Setting) -> tuple[float, float]:
    """(times as fast, points lost): fc6 takes half of the time and fc7 a fifth; what is lost adds up."""
    saved = lost = 0.0
    for name, share, cost in (("head.fc6", 0.5, 30.0), ("head.fc7", 0.2, 10.0)):
        if name in setting.ranks:
            part = setting.ranks[name] / (2 * FC[name])
            saved += share * (1 - 2 * part)
            lost += cost / setting.ranks[name]
    return 1 / (1 - saved), lost


def rank_bench(**changes) -> MadeBench:
    return MadeBench(options(**changes), lambda s: of_ranks(s)[0], lambda s: of_ranks(s)[1], MadePairs(FC))


def test_curves_begin_with_the_smallest_rank_and_stop_where_nothing_is_gained():
    bench = rank_bench()
    curves = layer_curves(bench)
    assert [c.rank(t) for c in curves for t in c.trials] == [256, 128, 64, 32, 128, 64, 32, 16]
    assert bench.calls[0] == Setting({"head.fc6": 32})
    assert "no multiple of 16" in curves[2].left_alone

    slow = MadeBench(options(), lambda s: 1.0, lambda s: 0.0, MadePairs(FC))
    curves = layer_curves(slow)
    assert len(slow.calls) == 2, "one rank of each layer is enough to see that none gains"
    assert all("gains nothing: 1.00× as fast" in c.left_alone for c in curves[:2])
    assert all(t.drop is None for c in curves for t in c.trials), "what is not faster is not evaluated"

    costly = MadeBench(options(), lambda s: 2.0, lambda s: 7.0, MadePairs(FC))
    assert "loses more than 0.5 points: rank 256 loses 7.00" in layer_curves(costly)[0].left_alone


def test_the_fastest_ranks_within_the_budget_are_found():
    """Against all combinations of the ranks that are tried."""
    bench = rank_bench()
    curves = layer_curves(bench)
    front = best_combinations([curve.choices(0.5) for curve in curves])
    measured, _ = rank_search._walk(bench, tuple(FC), front)
    found = max((t for t in bench.journal.values() if t.holds(0.5)), key=lambda t: t.ratio)
    every = [
        Setting({n: r for n, r in zip(FC, ranks, strict=False) if r})
        for ranks in itertools.product([0, *ranks_to_try(512, 16, 4)], [0, *ranks_to_try(256, 16, 4)])
    ]
    best = max((s for s in every if of_ranks(s)[1] <= 0.5), key=lambda s: of_ranks(s)[0])
    assert found.setting == best
    assert len(best.ranks) == 2
    assert 1 <= len(measured) <= 3, "of 16 combinations few are measured"


def test_a_search_without_time_measures_what_it_knows():
    bench = rank_bench()
    layer_curves(bench)
    again = rank_bench(minutes=1)
    again.after, again.journal = 0, dict(bench.journal)
    curves = layer_curves(again)
    assert again.calls == []
    assert [c.left_alone for c in curves] == [c.left_alone for c in layer_curves(bench)]
    empty = rank_bench(minutes=1)
    empty.after = 0
    assert "the time was up" in layer_curves(empty)[0].left_alone


LEVELS = (
    Knob("precision", (Setting(precision="int8", most_error=0.03), Setting(precision="int8", most_error=0.1))),
    Knob("proposals", tuple(Setting(proposals=n) for n in (500, 200, 100))),
    Knob("size", tuple(Setting(size=s) for s in ((96, 128), (64, 96)))),
    Knob("ranks", tuple(Setting({"head.fc6": r}) for r in (128, 32))),
)
ALONE = {
    **dict(zip((x.key for x in LEVELS[0].levels), ((1.3, 0.05), (1.5, 0.3)), strict=True)),
    **dict(zip((x.key for x in LEVELS[1].levels), ((1.1, 0.0), (1.2, 0.1), (1.3, 0.9)), strict=True)),
    **dict(zip((x.key for x in LEVELS[2].levels), ((1.4, 0.2), (2.0, 3.0)), strict=True)),
    **dict(zip((x.key for x in LEVELS[3].levels), ((1.15, -0.1), (1.25, 0.2)), strict=True)),
}


def parts(setting: Setting) -> list[tuple[float, float]]:
    return [ALONE[level.key] for knob in LEVELS for level in knob.levels if together([setting, level]) == setting]


def tuned(drop_more: float, **changes) -> tuple[MadeBench, list[Trial], list[Trial], str]:
    """drop_more: what settings of several knobs lose beyond the sum of their parts, as a part of it."""

    def faster(setting: Setting) -> float:
        return math.prod(ratio for ratio, _ in parts(setting))

    def drop(setting: Setting) -> float:
        found = [lost for _, lost in parts(setting)]
        return sum(found) * (1 + (drop_more if len(found) > 1 else 0))

    bench = MadeBench(options(confirm=100, **changes), faster, drop)
    alone = [bench.measure(level) for knob in LEVELS for level in knob.levels]
    combined, ended = tune._together(bench, LEVELS, alone)
    return bench, alone, combined, ended


@pytest.mark.parametrize("drop_more", [0.0, 0.5, -0.3])
def test_the_fastest_setting_within_the_budget_is_found(drop_more):
    bench, _, combined, ended = tuned(drop_more)
    every = [
        together([level for level in chosen if level is not None])
        for chosen in itertools.product(*((None, *knob.levels) for knob in LEVELS))
    ]
    holding = [s for s in every[1:] if bench.drop(s) <= 0.5 and all(lost <= 0.5 for _, lost in parts(s))]
    best = max(bench.faster(s) for s in holding)
    found = max(t.ratio for t in bench.journal.values() if t.holds(0.5))
    assert found == pytest.approx(best)
    assert len(combined) < len(every) / 2
    assert ended == "no other combination promises to be as fast within the budget"


def test_trials_and_minutes_bound_the_search():
    bench, alone, combined, _ = tuned(0.0)
    assert len(combined) > 1
    fewer = MadeBench(options(confirm=1), bench.faster, bench.drop)
    measured, ended = tune._together(fewer, LEVELS, alone)
    assert len(measured) == 1
    assert "as many as asked for" in ended
    late = MadeBench(options(minutes=3), bench.faster, bench.drop, after=0)
    assert tune._together(late, LEVELS, alone) == ([], "the 3 minutes were over")
    resumed = MadeBench(options(minutes=3), bench.faster, bench.drop, after=0, journal=bench.journal)
    assert [t.setting for t in tune._together(resumed, LEVELS, alone)[0]][:2] == [t.setting for t in combined][:2]
    assert resumed.calls == []


def test_knobs():
    assert [level.precision for level in precision_knob(options()).levels] == ["int8", "int8"]
    assert [level.precision for level in precision_knob(options(backend="openvino")).levels] == ["bf16", "int8", "int8"]
    assert precision_knob(options(precisions=())).why_not == "left out"
    curves = layer_curves(rank_bench())
    knob = rank_knob(curves, 0.5)
    assert 1 <= len(knob.levels) <= 3
    assert len(knob.levels[-1].ranks) == 2
    assert rank_knob([], 0.5, "no layers").why_not == "no layers"


def test_a_setting_is_what_its_journal_says():
    setting = Setting({"a.fc6": 32}, "int8", 0.03, (96, 128), 200)
    assert Setting.from_json(json.loads(setting.key)) == setting
    assert str(setting) == "fc6=32, int8 (layers up to 0.03), 96×128, 200 proposals"
    trial = Trial(setting, Ratio(1.5, 1.4, 1.6), 10.0, 15.0, 0.25, 99)
    assert Trial.from_json(json.loads(json.dumps(trial.to_json()))) == trial
    failed = Trial(setting, failed="no layer would be in int8")
    assert Trial.from_json(failed.to_json()) == failed
    assert failed.ratio == 0
    assert not failed.holds(100)


def test_a_journal_goes_on_and_knows_another_search(tmp_path):
    about = {"checkpoint": "abc", "split": "val, 87 images", "classes": ("a", "b")}
    journal = Journal(tmp_path / "out" / "journal.json", about)
    journal.put("x", {"drop": 0.5})
    again = Journal(tmp_path / "out" / "journal.json", about)
    assert again.resumed
    assert again.get("x") == {"drop": 0.5}
    assert again.get("y") is None
    with pytest.raises(BenchError, match=r"another search: its split is 'val, 87 images', asked for is 'val, 20"):
        Journal(tmp_path / "out" / "journal.json", {**about, "split": "val, 20 images"})
    with pytest.raises(ValueError, match="Out of range"):
        journal.put("z", float("nan"))
    assert Journal(tmp_path / "out" / "journal.json", about).get("x"), "a failed entry leaves the file whole"
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        Journal(tmp_path / "file" / "journal.json", about).put("x", 1)
    for text in ("", "{", "[1]", '{"format": "regionrt-search/1"}', '{"format": "2", "about": {}, "entries": {}}'):
        (tmp_path / "out" / "journal.json").write_text(text)
        with pytest.raises(BenchError, match=r"journal\.json: a journal of"):
            Journal(tmp_path / "out" / "journal.json", about)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backend": "tensorrt-rtx"}, "expected onnxruntime or openvino, for a search runs what it tries here"),
        ({"max_drop": -1}, "points from 0 to 100"),
        ({"margin": 0.6}, r"from 0 to --max-drop \(0.5\)"),
        ({"minutes": 0}, "minutes: more than 0"),
        ({"calibration_images": 4}, "calibration images: at least 5"),
        ({"proposals": (0,)}, "numbers from 1 on"),
        ({"calibration": "max"}, "expected one of percentile"),
    ],
)
def test_options_that_cannot_be(changes, message):
    with pytest.raises(BenchError, match=message) as caught:
        options(**changes)
    assert "\n" not in str(caught.value)


def test_points_lost_are_of_the_worst_metric():
    assert points_lost({"AP": 0.5, "mask_AP": 0.4}, {"AP": 0.49, "mask_AP": 0.42}) == pytest.approx(1.0)
    assert points_lost({"AP": 0.5}, {"AP": 0.51}) == pytest.approx(-1.0)
    with pytest.raises(BenchError, match="no objects to judge by"):
        points_lost({}, {"AP": 0.5})
