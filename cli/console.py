"""How the command line speaks: results on standard output, progress and errors on standard error, one line each."""

import json
import math
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


def say(text: str) -> None:
    """A line of progress for the person who watches."""
    err.print(text, markup=False, soft_wrap=True)


def print_json(data: Any) -> None:
    """The result for programs: JSON and nothing else on standard output. NaN and infinities become null."""
    sys.stdout.write(json.dumps(_finite(data), indent=2, allow_nan=False) + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], to: Console = out) -> None:
    """Print a table; columns whose cells are all numbers are set flush right. Cells are plain text, not Rich's markup.

    The title is a line of its own, so that a narrow table does not break it, nor the path in it.
    """
    to.print(title, style="bold", markup=False, highlight=False, soft_wrap=True)
    shown = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for index, column in enumerate(columns):
        numeric = bool(rows) and all(row[index].lstrip("+-−").rstrip("%×").replace(".", "").isdigit() for row in rows)
        shown.add_column(Text(column), justify="right" if numeric else "left", overflow="fold", no_wrap=index == 0)
    for row in rows:
        shown.add_row(*map(Text, row))
    to.print(shown)


@contextmanager
def counting(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar for `callback(done, total)`."""
    with Progress(
        TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        console=err, transient=True,
    ) as bar:  # fmt: skip
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextmanager
def steps(what: str) -> Iterator[Callable[[str, float], None]]:
    """A bar for `callback(text, share done)`."""
    with Progress(
        TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn(), console=err, transient=True
    ) as bar:
        task = bar.add_task(what, total=1.0)

        def tell(text: str, done: float) -> None:
            bar.update(task, completed=done, description=f"{what}: {text}")

        yield tell


@contextmanager
def plain_warnings() -> Iterator[None]:
    """Warnings as one line each, without the place in the code."""

    def show(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        if issubclass(category, UserWarning | RuntimeWarning):
            say(f"warning: {message}")

    with warnings.catch_warnings():
        warnings.simplefilter("default")
        warnings.showwarning = show  # type: ignore[assignment]
        yield


def metrics_rows(metrics: Mapping[str, float]) -> list[list[str]]:
    """Shares 0..1 as points of 100; a figure without objects to judge is a dash."""
    return [[name, points(value, 2)] for name, value in metrics.items()]


def points(share: float, digits: int = 1) -> str:
    """A share 0..1 as points of 100; a dash where nothing could be judged (NaN)."""
    return f"{100 * share:.{digits}f}" if share == share else "—"
