"""Names of files that come from annotations: they may not leave their folder."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from .errors import DataError


def inside(folder: Path, name: str, where: str) -> Path:
    """folder / name for a relative name without "..", as it stands in an annotation; DataError otherwise.

    A look at the letters is what is wanted: data folders are often built of symbolic links, which the user has set.
    """
    parts = PurePosixPath(name.replace("\\", "/"))
    drive = len(name) > 1 and name[1] == ":"
    if not name or "\0" in name or parts.is_absolute() or drive or ".." in parts.parts:
        raise DataError(f"{where}: expected the name of a file inside {folder}, found {name!r}, which leaves it")
    return folder / parts


def listed(names: Iterable[str]) -> str:
    """Names for a message: "train, val", or "none"."""
    return ", ".join(names) or "none"
