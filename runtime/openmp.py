"""How long OpenMP's threads wait busily for more work. GNU's OpenMP reads it from the environment when it is loaded.

Its own choice is some milliseconds, on a CPU that others then lack: the stages behind ncnn's (MobileNetV3-FPN: a third
of a request), and the engines that a benchmark compares with PyTorch in one process. Not to wait at all is worse, as
there is little between one layer and the next.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

_SPINS = 10_000
"""A fifth of a millisecond; PyTorch's detectors take as long with it as with thirty times that, the default."""


def short_spins() -> dict[str, str]:
    """The variables to set; none where the user has chosen."""
    chosen = {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys()
    return {} if chosen else {"GOMP_SPINCOUNT": str(_SPINS)}


@contextmanager
def importing_with_short_spins() -> Iterator[None]:
    """For a package that brings an OpenMP of its own; what was or will be imported elsewhere is left alone."""
    variables = short_spins()
    os.environ.update(variables)
    try:
        yield
    finally:
        for name in variables:
            del os.environ[name]
