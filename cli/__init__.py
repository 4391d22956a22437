"""The command `regionrt`: three verbs from the base installation, the others from the extra `cli`."""

import os
import sys
from collections.abc import Sequence
from importlib.util import find_spec


def run(argv: Sequence[str] | None = None) -> int:
    """Run one command line (without the program's name) and return its exit code: 0 done, 1 failed, 2 wrong use."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        return _run(arguments)
    except BrokenPipeError:  # `… | head` has seen enough; Python would complain again while it flushes at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _run(arguments: list[str]) -> int:
    """`--debug` may stand anywhere: infer and build read it themselves, as where the extra `cli` is missing."""
    debug = ["--debug"] if "--debug" in arguments else []
    verb, *rest = [argument for argument in arguments if argument != "--debug"] or [""]
    if verb == "infer":
        from regionrt.runtime.infer import main as infer

        return infer([*debug, *rest])
    if verb == "build":
        from regionrt.runtime.build_command import main as build

        return build([*debug, *rest])
    if verb == "doctor":
        from .doctor import main as doctor

        return doctor(rest)
    if find_spec("typer") is None or find_spec("rich") is None:
        print(
            "regionrt: this installation has the verbs infer, build and doctor; "
            'for the others: pip install "regionrt[cli,train,export,bench]"',
            file=sys.stderr,
        )
        return 2
    from .main import main

    return main(arguments)
