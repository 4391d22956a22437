"""What a search can choose: ranks of layers, precision, size of the canvas, number of proposals."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

FP32 = "fp32"


@dataclass(frozen=True)
class Setting:
    """One choice. None, and a layer that `ranks` does not name: as the checkpoint has it.

    size: (height, width) of the canvas in pixels. most_error: of int8, the largest error that a layer may have which is
    quantised (`ExportOptions.most_error`); None otherwise.
    """

    ranks: Mapping[str, int] = field(default_factory=dict)
    precision: str = FP32
    most_error: float | None = None
    size: tuple[int, int] | None = None
    proposals: int | None = None

    @property
    def key(self) -> str:
        """The same text for the same setting, and for no other: its name in a journal."""
        return json.dumps(self.to_json(), sort_keys=True)

    def to_json(self) -> dict[str, Any]:
        return {
            "ranks": dict(self.ranks),
            "precision": self.precision,
            "most_error": self.most_error,
            "size": list(self.size) if self.size else None,
            "proposals": self.proposals,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Setting:
        """Of what `to_json` wrote; KeyError, TypeError or ValueError for anything else."""
        size = data["size"]
        height, width = size if size is not None else (0, 0)
        return cls(
            {str(name): int(rank) for name, rank in data["ranks"].items()},
            str(data["precision"]),
            None if data["most_error"] is None else float(data["most_error"]),
            (int(height), int(width)) if size is not None else None,
            None if data["proposals"] is None else int(data["proposals"]),
        )

    def __str__(self) -> str:
        """`fc6=128, int8, 320×416, 300 proposals`; `as it is` where nothing is chosen."""
        parts = [f"{name.rpartition('.')[2]}={rank}" for name, rank in self.ranks.items()]
        if self.precision != FP32:
            careful = f" (layers up to {self.most_error:g})" if self.most_error is not None else ""
            parts.append(self.precision + careful)
        if self.size:
            parts.append(f"{self.size[0]}×{self.size[1]}")
        if self.proposals is not None:
            parts.append(f"{self.proposals} proposals")
        return ", ".join(parts) or "as it is"
