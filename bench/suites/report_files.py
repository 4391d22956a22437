"""A suite's report as the two files that it consists of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Protocol

from regionrt.runtime.atomic import write_file_atomic


class SuiteReport(Protocol):
    """What a suite found."""

    def to_json(self) -> dict[str, Any]: ...

    def to_markdown(self) -> str: ...


def write_report(report: SuiteReport, folder: Path, name: str, *, allow_nan: bool = True) -> list[Path]:
    """`name`.json and `name`.md in `folder`, each whole or not there. ValueError for NaN that is not allowed."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{name}.json", folder / f"{name}.md"]
    write_file_atomic(files[0], json.dumps(report.to_json(), indent=1, allow_nan=allow_nan) + "\n")
    write_file_atomic(files[1], report.to_markdown())
    return files
