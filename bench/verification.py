"""What `verify` found, brought into the report's shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .errors import BenchError
from .schema import Agreement, StageCheck, Verification


def verifications(found: Sequence[Mapping[str, Any]] | None) -> tuple[Verification, ...] | None:
    """From verdicts (`export.verdict.Verification.to_json()`), or from a flat list of stages; None for None.

    A stage holds "stage", "unit", "max_abs_error", "limit", "passed", "image", and in a verdict "value" and "error"
    (relative). BenchError where an entry is neither.
    """
    if found is None:
        return None
    verdicts = [entry for entry in found if "stages" in entry]
    stages = [entry for entry in found if "stages" not in entry]
    results = [_verdict(entry) for entry in verdicts]
    if stages:
        checks = tuple(_stage(entry) for entry in stages)
        failed = next((check.stage for check in checks if not check.passed), None)
        results.append(Verification("artefact", None, failed is None, failed, checks, ()))
    return tuple(results)


def _verdict(entry: Mapping[str, Any]) -> Verification:
    ends = tuple(
        Agreement(e["batch"], e["matched"], e["eager"], e["artefact"], float(e["share"]), e.get("worst_image") or "")
        for e in entry.get("end_to_end", ())
    )
    return Verification(
        str(entry.get("artefact") or "artefact"),  # its precision is part of the name
        entry.get("images"),
        bool(entry["passed"]),
        entry.get("first_difference"),
        tuple(map(_stage, entry["stages"])),
        ends,
    )


def _stage(entry: Mapping[str, Any]) -> StageCheck:
    missing = [name for name in ("stage", "max_abs_error", "limit", "passed") if name not in entry]
    if missing:
        raise BenchError(f"verification: a stage with {', '.join(missing)} expected, found {sorted(entry)}")
    limit = entry["limit"]
    return StageCheck(
        stage=str(entry["stage"]),
        value=str(entry.get("value") or entry["stage"]),
        unit=str(entry.get("unit") or ""),
        error=entry.get("error"),
        max_abs_error=entry["max_abs_error"],
        limit=None if limit is None else float(limit),
        passed=bool(entry["passed"]),
        image=str(entry.get("image") or ""),
    )
