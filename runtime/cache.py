"""Where what was found out or compiled on this machine is kept: a folder of the user's, by the XDG convention."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder(subject: str) -> Path:
    """`regionrt/<subject>` in $XDG_CACHE_HOME or ~/.cache; it need not exist."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "regionrt" / subject
