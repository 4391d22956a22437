"""The kernels' sources, compiled for the GPU at hand by NVRTC, and kept compiled in the user's cache.

The sources are package data in `sources/`, one file an op, put there by the build from `plugins/*/kernel.cu`. The first
line of each names the flags that it is compiled with.
"""

from __future__ import annotations

import hashlib
import threading
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from regionrt.runtime.atomic import write_file_atomic
from regionrt.runtime.backends.cuda import Argument, Cuda
from regionrt.runtime.cache import cache_folder
from regionrt.runtime.errors import BackendError, OutputError

from .nvrtc import Nvrtc, open_nvrtc

SOURCES = Path(__file__).with_name("sources")
FLAGS_LINE = "// nvrtc:"
MOST_CACHED = 64
"""Compiled ops that are kept; the one not compiled for longest goes."""
_MOST_BYTES = 32 << 20
_DIGEST = hashlib.sha256().digest_size


def source_of(op: str) -> tuple[str, tuple[str, ...]]:
    """(source, flags) of an op's kernels. BackendError if they are not installed."""
    path = SOURCES / f"{op}.cu"
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise BackendError(
            f"{path}: the CUDA kernels of {op} are missing ({error.strerror or error}): install regionrt anew, or run "
            "`make native` in a checkout"
        ) from error
    first, _, rest = text.partition("\n")
    if not first.startswith(FLAGS_LINE):
        raise BackendError(f"{path}: expected a first line {FLAGS_LINE!r} with the compiler's flags: run `make native`")
    return rest, tuple(first.removeprefix(FLAGS_LINE).split())


def compiled(op: str, compute_capability: str, newest: tuple[int, int]) -> bytes:
    """The op's kernels as a cubin for GPUs of `compute_capability` ("8.6"), compiled or from the cache.

    newest: the newest CUDA that the driver knows. Raises BackendError: no NVRTC, no sources, a GPU unknown to it.
    """
    return _compiled(op, compute_capability, open_nvrtc(newest))


def ptx_of(op: str, compute_capability: str, newest: tuple[int, int]) -> str:
    """The op's kernels as PTX for GPUs of `compute_capability` ("8.6") and newer ones. Raises as `compiled` does."""
    source, flags = source_of(op)
    return open_nvrtc(newest).ptx(source, f"{op}.cu", flags, int(compute_capability.replace(".", "")))


def _compiled(op: str, compute_capability: str, nvrtc: Nvrtc) -> bytes:
    source, flags = source_of(op)
    architecture = int(compute_capability.replace(".", ""))
    key = hashlib.sha256(repr((op, source, flags, architecture, nvrtc.version)).encode()).digest()
    path = cache_folder("kernels") / f"{op}-sm{architecture}-{key.hex()[:32]}.cubin"
    kept = _read(path, key)
    if kept is not None:
        return kept
    cubin = nvrtc.cubin(source, f"{op}.cu", flags, architecture)
    _keep(path, key, cubin)
    return cubin


def _read(path: Path, key: bytes) -> bytes | None:
    """What `_keep` wrote for this key; None for no file, another file, or a changed one."""
    try:
        if path.stat().st_size > _MOST_BYTES:
            return None
        data = path.read_bytes()
    except OSError:
        return None
    return data[_DIGEST:] if data[:_DIGEST] == _digest(key, data[_DIGEST:]) else None


def _keep(path: Path, key: bytes, cubin: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file_atomic(path, _digest(key, cubin) + cubin)
    except (OSError, OutputError) as error:
        warnings.warn(f"{path}: is not kept, the next start compiles it again: {error}", stacklevel=4)
        return
    with suppress(OSError):  # another process tidies up as well
        kept = sorted(path.parent.glob("*.cubin"), key=lambda file: file.stat().st_mtime)
        for old in kept[:-MOST_CACHED]:
            old.unlink(missing_ok=True)


def _digest(key: bytes, cubin: bytes) -> bytes:
    return hashlib.sha256(key + cubin).digest()


class Kernels:
    """Compiled kernels, loaded on one GPU; an op's when it is first asked for. Safe for several threads.

    image_of: gives an op's cubin, in the place of NVRTC and the cache.
    """

    def __init__(self, cuda: Cuda, image_of: Callable[[str], bytes] | None = None) -> None:
        self.cuda = cuda
        self._image_of = image_of or (lambda op: compiled(op, cuda.compute_capability, cuda.driver_version))
        self._modules: dict[str, int] = {}
        self._functions: dict[tuple[str, str], int] = {}
        self._lock = threading.Lock()

    def function(self, op: str, name: str) -> int:
        """The kernel `name` of `op`, ready to be launched. Not while a stream is captured: CUDA loads nothing then."""
        with self._lock:
            if (op, name) not in self._functions:
                if op not in self._modules:
                    self._modules[op] = self.cuda.load_module(self._image_of(op))
                self._functions[op, name] = self.cuda.function(self._modules[op], name)
            return self._functions[op, name]

    def close(self) -> None:
        with self._lock:
            for module in self._modules.values():
                self.cuda.unload_module(module)
            self._modules.clear()
            self._functions.clear()


class Launch:
    """A kernel with its grid and arguments, checked and ready: `enqueue` allocates nothing and waits for nothing."""

    def __init__(
        self, kernels: Kernels, op: str, name: str, grid: Sequence[int], block: int, arguments: Sequence[Argument]
    ) -> None:
        self.kernel = name
        self._cuda, self._function = kernels.cuda, kernels.function(op, name)
        self._grid, self._block, self._arguments = (*grid,), block, (*arguments,)

    def enqueue(self, stream: int) -> None:
        if all(self._grid):  # nothing to do is no launch: CUDA refuses an empty grid
            self._cuda.launch(self._function, self._grid, self._block, self._arguments, stream)
