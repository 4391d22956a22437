"""One setting measured: how much faster than the base, and how many points it loses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ..schema import Ratio
from .settings import Setting


@dataclass(frozen=True)
class Trial:
    """What one setting's artefact did.

    faster: than the base (the checkpoint in fp32, as it is), requests in turn; p50_ms and base_ms are of that run.
    drop: points lost on the search's split against eager PyTorch, the worst of the task's metrics; None where it was
    not measured, because it is not faster. failed: why there is no such artefact; all else is then None.
    """

    setting: Setting
    faster: Ratio | None = None
    p50_ms: float | None = None
    base_ms: float | None = None
    drop: float | None = None
    size_bytes: int | None = None
    failed: str = ""

    @property
    def ratio(self) -> float:
        """How many times as fast as the base; 0 where there is no artefact."""
        return self.faster.ratio if self.faster is not None else 0.0

    def holds(self, max_drop: float) -> bool:
        return self.drop is not None and self.drop <= max_drop

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "setting": self.setting.to_json()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Trial:
        """Of what `to_json` wrote; KeyError, TypeError or ValueError for anything else."""
        faster = data["faster"]
        numbers = {name: None if data[name] is None else float(data[name]) for name in ("p50_ms", "base_ms", "drop")}
        return cls(
            Setting.from_json(data["setting"]),
            None if faster is None else Ratio(*(float(faster[name]) for name in ("ratio", "low", "high"))),
            size_bytes=None if data["size_bytes"] is None else int(data["size_bytes"]),
            failed=str(data["failed"]),
            **numbers,
        )
