"""The compiled library of CPU ops: found, checked, and set to the best variant that this CPU can run.

`plugins/native/build.py` makes it (at `pip install`, or `make native`). Where it is missing, of another version or for
another processor, the ops run in NumPy, and one warning per process says so.
"""

from __future__ import annotations

import ctypes
import os
import struct
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from .calls import CALLS

ABI = 4
"""Of the library that this package can call: REGIONRT_ABI in plugins/native/regionrt.h."""

PATH = Path(__file__).with_name("libregionrt.so")
NUMPY = "numpy"


@dataclass(frozen=True)
class About:
    """Which variant of the ops runs."""

    variant: str
    """"avx512", "avx2", "baseline" (SSE2 on x86-64, NEON on Arm), or "numpy": no library."""
    why_not_better: str | None
    """What keeps a better variant from running; None: the best one runs."""
    path: str | None
    """The library's file; None with NumPy."""
    sources: str | None
    """The hash of the sources that it was built from."""


class _Library:
    """An opened library; `names` of its variants, best first."""

    def __init__(self, path: Path) -> None:
        _check_whole(path)
        handle = ctypes.CDLL(str(path))  # releases the GIL while it computes
        handle.regionrt_abi.restype = ctypes.c_int32
        found = handle.regionrt_abi()
        if found != ABI:
            raise OSError(f"it is of version {found} of the interface, this package calls version {ABI}")
        for name in ("regionrt_sources", "regionrt_variants", "regionrt_why_not"):
            getattr(handle, name).restype = ctypes.c_char_p
        handle.regionrt_sizeof.restype = ctypes.c_int64
        for name, layout in CALLS.items():
            if handle.regionrt_sizeof(name.encode()) != ctypes.sizeof(layout):
                raise OSError(f"its function {name} takes another structure than this package gives")
            function = getattr(handle, f"regionrt_{name}")
            function.restype, function.argtypes = ctypes.c_int32, [ctypes.POINTER(layout)]
        self.handle = handle
        self.path = path
        self.names = tuple(handle.regionrt_variants().decode().split())
        self.sources = handle.regionrt_sources().decode()

    def why_not(self, variant: str) -> str | None:
        lacking = self.handle.regionrt_why_not(variant.encode())
        return None if lacking is None else lacking.decode()


class _State:
    """What was found at the first use, and what runs now."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.opened = False
        self.library: _Library | None = None
        self.problem: str | None = None
        self.variant = NUMPY


_state = _State()


def handle() -> ctypes.CDLL | None:
    """The library to call, or None where NumPy computes. Opens it at the first call; warns once if that fails."""
    if not _state.opened:
        _open()
    library = _state.library
    return None if library is None or _state.variant == NUMPY else library.handle


def about() -> About:
    """Which variant runs on this machine, and what keeps a better one from it."""
    handle()
    library, variant = _state.library, _state.variant
    if library is None:
        return About(NUMPY, _state.problem, None, None)
    better = library.names if variant == NUMPY else library.names[: library.names.index(variant)]
    whys = [(name, library.why_not(name)) for name in better]
    why = "; ".join(f"{name}: {'not chosen' if lack is None else f'this CPU lacks {lack}'}" for name, lack in whys)
    if variant == NUMPY:
        return About(NUMPY, why, None, None)
    return About(variant, why or None, str(library.path), library.sources)


def usable_variants() -> tuple[str, ...]:
    """The variants that can run here, best first; the last is always "numpy"."""
    handle()
    library = _state.library
    return (*([name for name in library.names if library.why_not(name) is None] if library else []), NUMPY)


@contextmanager
def using(variant: str) -> Iterator[None]:
    """Within the block the ops of the whole process run as `variant`: for tests and benchmarks.

    Raises ValueError for a variant that cannot run here.
    """
    if variant not in usable_variants():
        raise ValueError(f"native ops: expected one of {', '.join(usable_variants())}, found {variant!r}")
    before = _state.variant
    _choose(variant)
    try:
        yield
    finally:
        _choose(before)


def _choose(variant: str) -> None:
    if variant != NUMPY and _state.library is not None:
        _state.library.handle.regionrt_use(variant.encode())
    _state.variant = variant


def _open() -> None:
    with _state.lock:
        if _state.opened:
            return
        try:
            _state.library = _Library(PATH)
            _choose(next(name for name in _state.library.names if _state.library.why_not(name) is None))
        except (OSError, AttributeError) as error:  # AttributeError: some other library of that name
            _state.problem = _problem(error)
        _state.opened = True
    if _state.problem is not None:
        warnings.warn(f"native CPU ops are off, NumPy computes instead (slower): {_state.problem}", stacklevel=4)


def _check_whole(path: Path) -> None:
    """OSError for a file that is cut short: the system's loader ends the process (SIGBUS) when it meets one."""
    with path.open("rb") as file:
        header = file.read(64)
        size = file.seek(0, os.SEEK_END)
    if header[:5] != b"\x7fELF\x02" or len(header) < 64:
        return  # the loader refuses it
    (sections,) = struct.unpack_from("Q", header, 40)  # they stand at the file's end
    width, number = struct.unpack_from("HH", header, 58)
    if sections + width * number > size:
        raise OSError(f"it is cut short: {sections + width * number:,} bytes expected, {size:,} found")


def _problem(error: Exception) -> str:
    if not PATH.exists():
        return f"{PATH.name} was not built: install a C++ compiler, then regionrt again (in a checkout: make native)"
    words = " ".join(str(error).split()).removeprefix(f"{PATH}: ")
    return f"{PATH} cannot be used ({words}): install regionrt again on this machine (in a checkout: make native)"
