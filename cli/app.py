"""The Typer application, and what makes a function a verb of it."""

import functools
import traceback
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import typer
import typer.core

from regionrt.runtime.errors import RegionRTError

from . import console

VERBS = (  # in the order of the road, for --help
    "doctor", "models", "demo", "proposals", "train", "eval", "compress", "export", "build", "verify", "infer",
    "classify", "bench", "tune", "deploy",
)  # fmt: skip


class _InOrder(typer.core.TyperGroup):
    def list_commands(self, ctx: Any) -> list[str]:
        return list(VERBS)


app = typer.Typer(
    cls=_InOrder,
    name="regionrt",
    help="Region-based detectors from a PyTorch checkpoint to a verified artefact that runs without PyTorch.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
debug: ContextVar[bool] = ContextVar("debug", default=False)


def verb(name: str | None = None, **settings: Any) -> Callable[[Callable[..., int | None]], Callable[..., None]]:
    """Make a function a verb: what it returns is the exit code, and what the library raises becomes one line and 1."""

    def register(function: Callable[..., int | None]) -> Callable[..., None]:
        @functools.wraps(function)
        def guarded(*arguments: Any, **options: Any) -> None:
            try:
                code = function(*arguments, **options) or 0
            except RegionRTError as error:
                code = _failed(str(error))
            except KeyboardInterrupt:
                console.say("interrupted")
                code = 130
            except (typer.BadParameter, typer.Exit, typer.Abort):
                raise
            except Exception as error:
                text = " ".join(str(error).split())
                code = _failed(f"{type(error).__name__}: {text} (a defect of regionrt: --debug shows where)")
            if code:
                raise typer.Exit(code)

        return app.command(name, **settings)(guarded)

    return register


def _failed(text: str) -> int:
    if debug.get():
        traceback.print_exc()
    console.say(f"error: {text}")
    return 1
