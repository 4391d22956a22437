"""How the command line speaks: what users call their files is shown as it is."""

import io

import pytest
from rich.console import Console

from regionrt.cli import console

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
