"""NVRTC, CUDA's compiler as a library, through ctypes: CUDA C++ to the machine code of one GPU. Needs no GPU itself."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from regionrt.runtime.errors import BackendError

MAJORS = (13, 12)
"""CUDA's major versions whose NVRTC is looked for."""


class _System(NamedTuple):
    """What the library of a CUDA major is called, and in which folders of wheels and toolkits it lies."""

    name: str
    builtins: str
    in_wheels: Sequence[str]
    in_toolkits: Sequence[str]
    toolkit: str | None


_LINUX = _System(
    "libnvrtc.so.{}",
    "libnvrtc-builtins.so.*",
    ("cu{}/lib", "cuda_nvrtc/lib"),
    ("lib64", "targets/aarch64-linux/lib", "targets/x86_64-linux/lib"),
    "/usr/local/cuda",
)
_WINDOWS = _System(
    "nvrtc64_{}0_0.dll",  # of every minor version: within a major they are compatible
    "nvrtc-builtins64_*.dll",
    ("cu{}/bin/x86_64", "cu{}/bin", "cuda_nvrtc/bin"),
    ("bin/x64", "bin"),
    None,
)
_COMPILATION_FAILED = 6  # NVRTC_ERROR_COMPILATION


class Nvrtc:
    """One NVRTC library. `path`: its file, or its name for the system to find. OSError if it cannot be loaded."""

    def __init__(self, path: str) -> None:
        self.path = path
        # It opens its built-in functions by name only, which the loader finds if they are loaded already.
        system = _WINDOWS if path.endswith(".dll") else _LINUX
        beside = Path(path).parent.glob(system.builtins) if os.path.isabs(path) else ()
        self._builtins = [ctypes.CDLL(str(name)) for name in sorted(beside)]
        self._library = ctypes.CDLL(path)
        self._library.nvrtcGetErrorString.restype = ctypes.c_char_p
        major, minor = ctypes.c_int(), ctypes.c_int()
        self._call("nvrtcVersion", ctypes.byref(major), ctypes.byref(minor))
        self.version = major.value, minor.value

    def architectures(self) -> list[int]:
        """What it compiles for: 86 is compute capability 8.6."""
        count = ctypes.c_int()
        self._call("nvrtcGetNumSupportedArchs", ctypes.byref(count))
        found = (ctypes.c_int * count.value)()
        self._call("nvrtcGetSupportedArchs", found)
        return list(found)

    def cubin(self, source: str, name: str, flags: Sequence[str], architecture: int) -> bytes:
        """`source` for GPUs of exactly `architecture` (86). BackendError with the compiler's words."""
        return self._compile(source, name, flags, architecture, "sm", "nvrtcGetCUBIN")

    def ptx(self, source: str, name: str, flags: Sequence[str], architecture: int) -> str:
        """`source` as PTX for GPUs of `architecture` (86) and newer ones. BackendError with the compiler's words."""
        return self._compile(source, name, flags, architecture, "compute", "nvrtcGetPTX").rstrip(b"\0").decode()

    def _compile(self, source: str, name: str, flags: Sequence[str], architecture: int, kind: str, get: str) -> bytes:
        known = self.architectures()
        if architecture not in known:
            raise BackendError(
                f"{self} knows no compute capability {architecture / 10:.1f} ({known[0]} to {known[-1]}): install the "
                "NVRTC of a newer CUDA that the driver still takes (pip install -U nvidia-cuda-nvrtc)"
            )
        program = ctypes.c_void_p()
        text = source.encode()
        self._call("nvrtcCreateProgram", ctypes.byref(program), text, name.encode(), 0, None, None)
        try:
            options = [flag.encode() for flag in (f"--gpu-architecture={kind}_{architecture}", *flags)]
            status = self._library.nvrtcCompileProgram(
                program, len(options), (ctypes.c_char_p * len(options))(*options)
            )
            if status == _COMPILATION_FAILED:
                log = self._bytes("nvrtcGetProgramLog", program).rstrip(b"\0").decode(errors="replace")
                raise BackendError(f"{self} refuses {name}: {' '.join(log.split())[:2000]}")
            self._check("nvrtcCompileProgram", status)
            return self._bytes(get, program)
        finally:
            self._library.nvrtcDestroyProgram(ctypes.byref(program))

    def _bytes(self, function: str, program: ctypes.c_void_p) -> bytes:
        size = ctypes.c_size_t()
        self._call(f"{function}Size", program, ctypes.byref(size))
        buffer = ctypes.create_string_buffer(size.value)
        self._call(function, program, buffer)
        return buffer.raw

    def _call(self, function: str, *arguments: Any) -> None:
        self._check(function, getattr(self._library, function)(*arguments))

    def _check(self, function: str, status: int) -> None:
        if status:
            raise BackendError(f"{self.path}: {function} failed: {self._library.nvrtcGetErrorString(status).decode()}")

    def __str__(self) -> str:
        return f"NVRTC {self.version[0]}.{self.version[1]}"


@cache
def open_nvrtc(newest: tuple[int, int]) -> Nvrtc:
    """The newest NVRTC here of a CUDA that the driver (`newest`: (12, 6)) takes code of: its own major or an older one.

    Raises BackendError with what to install.
    """
    tried = []
    for major in MAJORS:
        if major > newest[0]:
            continue
        for path in _places(major):
            try:
                return Nvrtc(path)
            except OSError as error:
                tried.append(" ".join(str(error).split())[:200])
    majors = [major for major in MAJORS if major <= newest[0]] or list(MAJORS[-1:])
    wheel = "nvidia-cuda-nvrtc" if majors[0] >= 13 else f"nvidia-cuda-nvrtc-cu{majors[0]}"
    raise BackendError(
        f"the CUDA kernels cannot be compiled: no NVRTC of CUDA {' or '.join(map(str, majors))} is installed, and the "
        f"driver takes CUDA {newest[0]}.{newest[1]} ({'; '.join(tried[:2])}): pip install {wheel}"
    )


def _places(major: int) -> Iterator[str]:
    """Files and names of the library, the wheel's first, then the system's own, then a toolkit's."""
    system = _WINDOWS if sys.platform == "win32" else _LINUX
    name = system.name.format(major)
    spec = find_spec("nvidia")
    for root in (spec.submodule_search_locations or ()) if spec is not None else ():
        yield from _files(Path(root), (folder.format(major) for folder in system.in_wheels), name)
    yield name
    for home in filter(None, (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), system.toolkit)):
        yield from _files(Path(home), system.in_toolkits, name)


def _files(root: Path, folders: Iterable[str], name: str) -> Iterator[str]:
    for folder in folders:
        path = root / folder / name
        if path.is_file():
            yield str(path)
