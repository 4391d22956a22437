"""How the command line speaks: what users call their files is shown as it is."""

import io
import json

import numpy as np
import pytest
from rich.console import Console

from regionrt.cli import console, run

NAMES = ["photo[a].jpg", "dir/[/a].jpg", "[bold]x[/bold].jpg", "back\\[slash].jpg"]


def test_names_in_tables_are_no_markup() -> None:
    shown = io.StringIO()
    console.table("photos", ["[red]name", "rows"], [[name, "3"] for name in NAMES], Console(file=shown, width=100))
    assert [line.split()[0] for line in shown.getvalue().splitlines()] == ["photos", "[red]name", *NAMES]


@pytest.mark.parametrize("name", NAMES)
def test_names_in_bars_are_no_markup(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.StringIO()
    monkeypatch.setattr(console, "err", Console(file=shown, width=100, force_terminal=True))
    with console.counting(name) as count:
        count(1, 2)
    with console.steps("bench") as tell:
        tell(name, 0.5)
    assert name in shown.getvalue()
    assert f"bench: {name}" in shown.getvalue()


def test_what_could_not_be_judged_is_null(capfd: pytest.CaptureFixture[str]) -> None:
    """NaN is no JSON: JavaScript, jq and strict parsers refuse it."""
    console.print_json({"recall": [0.5, float("nan")], "all": {"dense": np.nan}, "images": 0, "worst": (float("inf"),)})
    shown = json.loads(capfd.readouterr().out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert shown == {"recall": [0.5, None], "all": {"dense": None}, "images": 0, "worst": [None]}
    assert console.metrics_rows({"AP": float("nan"), "AP50": 0.5}) == [["AP", "—"], ["AP50", "50.00"]]


@pytest.mark.parametrize("verb", [["doctor", "--json"], ["build", "absent"], ["infer", "absent", "photo.jpg"]])
def test_debug_may_stand_anywhere(verb: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    code = run(verb)
    capfd.readouterr()
    for place in range(len(verb) + 1):
        assert run([*verb[:place], "--debug", *verb[place:]]) == code
        shown = capfd.readouterr().err
        assert "unrecognized" not in shown
        assert ("Traceback" in shown) == (verb[0] != "doctor")
