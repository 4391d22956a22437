"""`regionrt` with the extra `cli`: every verb, in the order of the road."""

from collections.abc import Sequence
from typing import Annotated

import typer

from regionrt import __version__

from . import classifying, console, exporting, judging, proposing, searching, training  # noqa: F401  (importing them registers their verbs)
from .app import app, debug, verb


def main(arguments: Sequence[str]) -> int:
    """Run one command line; `--debug` anywhere shows the traceback of an error."""
    debug.set("--debug" in arguments)
    try:
        with console.plain_warnings():
            app([argument for argument in arguments if argument != "--debug"], prog_name="regionrt")
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 1
    return 0


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="print the version and exit", is_eager=True)] = False,
) -> None:
    if version:
        console.out.print(__version__)
        raise typer.Exit


# These three run without Typer too: cli/__init__.py calls them before this file is imported, here they show in --help.
@verb(context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []})
def build(context: typer.Context) -> int:
    """Bundle → engines: `regionrt build BUNDLE --target tensorrt-rtx|tensorrt …` (build --help)."""
    from regionrt.runtime.build_command import main as run

    return run(context.args)


@verb(context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []})
def infer(context: typer.Context) -> int:
    """Run a bundle on photos: `regionrt infer BUNDLE IMAGE… [--out DIR --format json|coco|image]` (infer --help)."""
    from regionrt.runtime.infer import main as run

    return run(context.args)


@verb(context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []})
def doctor(context: typer.Context) -> int:
    """What is installed, what can run here, and how to get what is missing."""
    from .doctor import main as run

    return run(context.args)
