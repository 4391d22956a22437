"""The suite of single ops: what is measured, and that its table holds it. Sizes are a benchmark's: few cases here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from regionrt.bench.suites import ops


def test_a_table_of_ops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "CASES", (ops.unpool_cases,))
    told: list[str] = []
    report = ops.run_ops(0.01, only="unpooling", progress=told.append)
    (row,) = report.rows
    assert told == [row.name] == ["max unpooling 64×180×240"]
    assert row.agreement == "equal"
    assert row.samples >= 5
    assert row.times_faster == {"torchvision": row.median_ms["torchvision"] / row.median_ms["ours"]}
    data, table = ops.write(report, tmp_path / "out")
    assert json.loads(data.read_text())["rows"][0]["median_ms"] == row.median_ms
    last = table.read_text().splitlines()[-1]
    assert last.startswith(f"| {row.name} | {row.median_ms['ours']:.2f} | {row.median_ms['torchvision']:.2f} (")


def test_proposals_and_detections_agree_with_torchvisions() -> None:
    """The cases' inputs are those that both libraries answer alike, within ties."""
    (proposals,), (detections,) = ops.proposals_cases(1), ops.detections_cases(1)
    for case in (proposals, detections):
        share, _, _ = case.agreement().partition("%")
        assert float(share) > 95, case.name
