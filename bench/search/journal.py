"""A search's journal: every measurement, written when it is made, so that a search that was cut off goes on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from regionrt.runtime.atomic import write_file_atomic

from ..errors import BenchError

FORMAT = "regionrt-search/1"
JOURNAL = "journal.json"


class Journal:
    """What was measured, by key, in a file that is replaced whole at each entry.

    about: what the measurements hold for (checkpoint, data, backend …). A journal of something else is refused:
    BenchError names what differs. So is one that is damaged.
    """

    def __init__(self, file: str | Path, about: Mapping[str, Any]) -> None:
        self.file = Path(file)
        self.about = json.loads(json.dumps(dict(about)))
        self.resumed = self.file.exists()
        self._entries: dict[str, Any] = self._read() if self.resumed else {}

    def get(self, key: str) -> Any:
        """The entry, or None."""
        return self._entries.get(key)

    def put(self, key: str, value: Any) -> None:
        """Adds or replaces an entry, and writes. OutputError where that fails."""
        self._entries[key] = value
        content = {"format": FORMAT, "about": self.about, "entries": self._entries}
        write_file_atomic(self.file, json.dumps(content, indent=1, allow_nan=False) + "\n")

    def __len__(self) -> int:
        return len(self._entries)

    def _read(self) -> dict[str, Any]:
        try:
            content = json.loads(self.file.read_text(encoding="utf-8"))
            known, about, entries = content["format"], dict(content["about"]), dict(content["entries"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BenchError(
                f"{self.file}: a journal of a search expected ({error}): remove it to begin anew"
            ) from error
        if known != FORMAT:
            raise BenchError(
                f"{self.file}: a journal of format {FORMAT} expected, found {known!r}: give another folder"
            )
        for name in {**about, **self.about}:
            if about.get(name) != self.about.get(name):
                raise BenchError(
                    f"{self.file} is of another search: its {name} is {about.get(name)!r}, asked for is "
                    f"{self.about.get(name)!r}; give another folder, or remove the file"
                )
        return entries
