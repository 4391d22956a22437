"""Results appear under their final name only when they are whole: write beside, fsync, rename."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import OutputError

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_NOT_SUPPORTED = {errno.ENOSYS, errno.EINVAL, errno.ENOTSUP}
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}
_NO_FOLDER = {errno.ENOTDIR, errno.EEXIST}


@contextmanager
def replace_folder(path: str | Path, ours: Callable[[Path], bool] | None = None) -> Iterator[Path]:
    """Gives an empty folder beside `path` to write into; when the block ends without an error it becomes `path`.

    Where a folder of that name exists, the two change places in one step of the file system (Linux `renameat2`): a
    kill at any moment leaves either the old or the new folder whole. A killed run leaves its temporary folder behind;
    the next run for the same path removes it (a lock that dies with its process tells it from a run in progress).

    Args:
        ours: says whether a non-empty folder at `path` may be replaced. None: only an empty or a new one.

    Raises:
        OutputError: `path` is a file or a non-empty folder that is not ours, or the disk is full or cannot be written
            to. Other errors of the block pass through unchanged. In every case `path` stays as it was.
    """
    path = _final(path)
    _check_replaceable(path, ours)
    with _explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _restore(path)
        _sweep(path)
        temporary, lock = _locked(path, Path.mkdir)
    try:
        with _explained(path, _FULL):  # what else fails in the block is the block's own affair
            yield temporary
        with _explained(path):
            _sync_tree(temporary)
            _check_replaceable(path, ours)  # something may have come there meanwhile
            _put(temporary, path)
            _sync(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # after success: the old folder
        os.close(lock)


@contextmanager
def replace_file(path: str | Path) -> Iterator[Path]:
    """Gives the name of a file beside `path` to write; when the block ends without an error it becomes `path`.

    Raises OutputError as `replace_folder` does.
    """
    path = _final(path)
    if path.is_dir():
        raise OutputError(f"{path}: expected the name of a file to write, found a folder")
    with _explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path)
        temporary, lock = _locked(path, Path.touch)
    try:
        with _explained(path, _FULL):
            yield temporary
        with _explained(path):
            _sync(temporary)
            os.replace(temporary, path)
            _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)
        os.close(lock)


def write_file_atomic(path: str | Path, data: bytes | str) -> None:
    """Writes a whole file (text as UTF-8), or leaves what was there. Raises OutputError."""
    with replace_file(path) as temporary:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)


def _final(path: str | Path) -> Path:
    """A link is followed: what it points to is replaced, not the link."""
    return Path(os.path.realpath(path))


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")


def _check_replaceable(path: Path, ours: Callable[[Path], bool] | None) -> None:
    if not path.exists():
        return
    if not path.is_dir():
        raise OutputError(f"{path}: expected a folder to write, found a file; give another name")
    if any(path.iterdir()) and not (ours is not None and ours(path)):
        raise OutputError(f"{path}: holds files that this command did not write; give another name, or empty it first")


def _locked(path: Path, make: Callable[[Path], None]) -> tuple[Path, int]:
    """A new file or folder beside `path` and a handle that holds its lock."""
    while True:
        temporary = _beside(path)
        make(temporary)
        with suppress(FileNotFoundError):  # another run swept it before it was locked: take a new one
            lock = os.open(temporary, os.O_RDONLY)
            fcntl.flock(lock, fcntl.LOCK_EX)
            if temporary.exists():
                return temporary, lock
            os.close(lock)


def _sweep(path: Path) -> None:
    """Removes what killed runs left beside `path`: temporary files and folders that no process holds the lock of."""
    for stray in _strays(path, ".tmp"):
        try:
            lock = os.open(stray, os.O_RDONLY)
        except OSError:  # gone, or not ours to touch
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            continue
        else:
            if stray.is_dir():
                shutil.rmtree(stray, ignore_errors=True)
            else:
                stray.unlink(missing_ok=True)
        finally:
            os.close(lock)


def _strays(path: Path, ending: str) -> list[Path]:
    start = f".{path.name}."
    middle = len(start) + 12
    return [
        entry
        for entry in path.parent.iterdir()
        if entry.name.startswith(start) and entry.name[middle:] == ending and not entry.is_symlink()
    ]


def _put(temporary: Path, path: Path) -> None:
    if not path.exists():
        os.rename(temporary, path)
        return
    try:
        _exchange(temporary, path)
    except OSError as error:
        if error.errno not in _NOT_SUPPORTED:
            raise
        # A file system without exchange (NFS, some FUSE): two steps. A kill between them is repaired by `_restore`.
        old = _beside(path).with_suffix(".old")
        os.rename(path, old)
        try:
            os.rename(temporary, path)
        except OSError:
            os.rename(old, path)
            raise
        shutil.rmtree(old, ignore_errors=True)


def _exchange(one: Path, other: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        renameat2 = libc.renameat2
    except AttributeError as error:  # glibc before 2.28, musl
        raise OSError(errno.ENOSYS, "no renameat2") from error
    if renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(other))


def _restore(path: Path) -> None:
    """Puts back what a kill between the two steps of `_put` left aside."""
    left = _strays(path, ".old")
    if not path.exists() and len(left) == 1:
        os.rename(left[0], path)
    elif path.exists():
        for old in left:
            shutil.rmtree(old, ignore_errors=True)


def _sync_tree(folder: Path) -> None:
    for root, _, names in os.walk(folder):
        for name in names:
            _sync(Path(root, name))
        _sync(Path(root))


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _explained(path: Path, numbers: set[int] = _FULL | _FORBIDDEN | _NO_FOLDER) -> Iterator[None]:
    """Errors of the file system, told in one line; those with other numbers pass."""
    try:
        yield
    except OSError as error:
        if error.errno not in numbers:
            raise
        if error.errno in _FULL:
            advice = "the disk is full: free some space and run again, nothing is half-written"
        elif error.errno in _FORBIDDEN:
            advice = "cannot be written: give a place that you may write to"
        else:
            advice = "a folder above it is a file: give another name"
        raise OutputError(f"{path}: {advice} ({error.strerror})") from error
