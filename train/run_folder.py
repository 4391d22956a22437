"""A folder with a run of training in it: what was asked, what happened per epoch, and the checkpoints."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from regionrt.runtime.atomic import write_file_atomic

from .options import FREE_TO_CHANGE, TrainError


class RunFolder:
    """`run.json` (what was asked), `log.json` and `log.csv` (a row per epoch), `best.pt`, `last.pt`, `last.ckpt`.

    Every file is replaced whole. `last.ckpt` is Lightning's, with optimiser and schedule; the others are ours.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.best = self.path / "best.pt"
        self.last = self.path / "last.pt"
        self.state = self.path / "last.ckpt"
        self.asked = self.path / "run.json"

    def open(self, asked: Mapping[str, Any], resume: bool) -> bool:
        """Begin a run here, or find one to go on with (True). TrainError where the folder holds something else."""
        if self.path.exists() and not self.path.is_dir():
            raise TrainError(f"{self.path}: expected a folder for the run, found a file")
        if self.asked.exists() and resume:
            self._check_same(asked)
            return self.state.exists()
        if self.path.is_dir() and any(self.path.iterdir()):
            what = "a run of training: go on with it by --resume," if self.asked.exists() else "other files:"
            raise TrainError(f"{self.path} holds {what} or give another folder with --out")
        self.path.mkdir(parents=True, exist_ok=True)
        write_file_atomic(self.asked, json.dumps(asked, indent=1))
        return False

    def log(self, rows: Sequence[Mapping[str, float]]) -> None:
        """Write all epochs' rows, as JSON and as CSV with a column per name that occurs."""
        write_file_atomic(self.path / "log.json", json.dumps(rows, indent=1))
        text = io.StringIO()
        writer = csv.DictWriter(text, fieldnames=list(dict.fromkeys(name for row in rows for name in row)))
        writer.writeheader()
        writer.writerows(rows)
        write_file_atomic(self.path / "log.csv", text.getvalue())

    def _check_same(self, asked: Mapping[str, Any]) -> None:
        try:
            before = json.loads(self.asked.read_text())
            old, new = ({**a, **a["options"]} for a in (before, json.loads(json.dumps(asked))))
        except (ValueError, KeyError, TypeError) as error:
            raise TrainError(f"{self.asked} is damaged ({error}): give another folder with --out") from error
        differing = [
            f"{key} {old.get(key)!r} then, {value!r} now"
            for key, value in new.items()
            if key != "options" and key not in FREE_TO_CHANGE and old.get(key) != value
        ]
        if differing:
            raise TrainError(f"--resume in {self.path} with other options: {'; '.join(differing)}")
