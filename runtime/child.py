"""A module of this package in a process of its own: what aborts in native code then costs the child, not the caller."""

import os
import site
import sys
from pathlib import Path

PACKAGE = __package__ or "regionrt.runtime"


def module_command(module: str) -> tuple[list[str], dict[str, str]]:
    """Command and environment that run `regionrt.runtime.<module>` with this interpreter, wherever the package lies.

    The child finds the package through PYTHONPATH, because a checkout may have been put on `sys.path` by hand.
    """
    top = sys.modules[PACKAGE.partition(".")[0]].__file__
    assert top is not None  # `regionrt` is a package with an __init__.py
    root = str(Path(top).absolute().parent.parent)
    environment = dict(os.environ)
    if root not in (*site.getsitepackages(), site.getusersitepackages()):  # PYTHONPATH goes before the standard library
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    return [sys.executable, "-m", f"{PACKAGE}.{module}"], environment
