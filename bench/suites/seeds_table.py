"""The seeds' report: what was measured, as JSON and as tables."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from regionrt.bench import figures
from regionrt.bench.schema import Ratio, Shares

from .seeds_schema import Comparison, SeedCase, SeedRow

FORMAT = "regionrt-seeds/1"


@dataclass(frozen=True)
class SeedsReport:
    """All cases, and what they were measured with. search_s: of each photo; made: proposals that no search found."""

    environment: dict[str, dict[str, str]]
    command: str
    options: dict[str, Any]
    photos: str
    search_s: list[float]
    made: int
    cases: list[SeedCase]

    def comparison(self, key: str) -> Comparison | None:
        found = (case.comparison(key) for case in self.cases)
        return next((one for one in found if one is not None), None)

    def to_json(self) -> dict[str, Any]:
        verdicts = [
            {"key": one.key, "asked": one.asked, "verdict": one.verdict}
            for case in self.cases for one in case.comparisons if one.asked is not None
        ]  # fmt: skip
        return {
            "format": FORMAT,
            **{name: getattr(self, name) for name in ("environment", "command", "options", "photos", "search_s")},
            "made_proposals": self.made,
            "verdicts": verdicts,
            "cases": [case.to_json() for case in self.cases],
        }

    def to_markdown(self) -> str:
        machine, setting = self.environment["machine"], self.environment["setting"]
        software = ", ".join(f"{name} {version}" for name, version in self.environment["software"].items())
        case = self.options["case"]
        lines = [
            "# Seeds",
            "",
            f"`{self.command}`: {machine['CPU']}, {setting['threads']}, {machine['instruction sets']}; load before "
            f"{setting['load before']}. {software}.",
            "",
            f"{case['backbone']}, fc6 and fc7 of {case['representation']}, {case['proposals']} proposals, photos of "
            f"{case['size'][0]}×{case['size'][1]}; random weights, calibrated. {self.photos}. {self._proposals()} "
            "Medians of whole requests (photo in, boxes out, proposals given), the rows of a table in turn in one "
            "process; brackets: 95 % interval. *≈*: extrapolated from the part that its note names. *matched*: share "
            "of PyTorch's detections found with the same label and IoU > 0.9.",
            "",
            "## Ratios",
            "",
            "| | paper | PyTorch ÷ PyTorch | PyTorch ÷ ours | asked | |",
            "|---|---|---|---|---|---|",
        ]
        for one in (one for case in self.cases for one in case.comparisons if one.key != "rcnn"):
            of_torch, ours = (_ratio(row.over_base if row else None) for row in (one.best(False), one.best(True)))
            asked = f"{'ours ' * (one.judged == 'ours')}≥ {one.asked:g}×" if one.asked else ""
            lines.append(f"| {one.title} | {one.paper} | {of_torch} | {ours} | {asked} | {one.verdict} |")
        for case_ in self.cases:
            if case_.failed:
                lines += ["", f"## {case_.name}", "", f"Not measured: {case_.failed}"]
            for one in case_.comparisons:
                lines += ["", *self._table(one)]
        return "\n".join([*lines, ""])

    def _proposals(self) -> str:
        if not self.search_s:
            return "Proposals are made up: OpenCV is not there to search them."
        told = ", ".join(f"{seconds:.1f}" for seconds in self.search_s)
        made = f" {self.made} proposals are made up, where it found fewer." if self.made else ""
        return f"Selective search took {told} s for them, which is in no figure below.{made}"

    def _table(self, one: Comparison) -> Iterator[str]:
        yield f"## {one.title}"
        yield ""
        yield f"| | {one.unit}, p50 ms | p90 ms | times faster | ours ÷ ours | matched |"
        yield "|---|---|---|---|---|---|"
        rows = [one.base, *one.rows]
        for row in (row for row in rows if row.latency is not None):
            yield self._line(one, row)
        yield ""
        for note in one.notes:
            yield f"- {note}"
        for row in rows:
            if row.latency is None:
                yield f"- {row.name}: not run: {row.reason}"
                continue
            if row.extrapolated:
                yield f"- {row.name}: {len(row.latency.samples_ms)} × {row.measured}, times {row.factor:g}"
            if row.note:
                yield f"- {row.name}: {row.note}"
            if row.shares:
                yield f"- {row.name}, ms by step: {_steps(row.shares)}"

    def _line(self, one: Comparison, row: SeedRow) -> str:
        assert row.latency is not None
        about = "≈ " * row.extrapolated
        cells = [
            f"**{row.name}**" if row.ours else row.name,
            about + figures.significant(row.latency.p50_ms),
            about + figures.significant(row.latency.p90_ms),
            "1" if row is one.base else _ratio(row.over_base),
            self._over_our_rcnn(one, row),
            "" if row.matched is None else f"{100 * row.matched:.1f} %",
        ]
        return f"| {' | '.join(cells)} |"

    def _over_our_rcnn(self, one: Comparison, row: SeedRow) -> str:
        """The same engine's R-CNN ÷ this row, of the medians of two comparisons."""
        rcnn = self.comparison("rcnn")
        if rcnn is None or one is rcnn or not row.ours or row.latency is None:
            return ""
        other = next((r for r in rcnn.rows if r.id == row.id and r.latency is not None), None)
        if other is None or other.latency is None:
            return ""
        return f"{figures.ratio(other.latency.p50_ms / row.latency.p50_ms)}×"


def _ratio(value: Ratio | None) -> str:
    if value is None:
        return ""
    low, high = figures.ratio(value.low), figures.ratio(value.high)
    return f"{figures.ratio(value.ratio)}× [{low}, {high}]"


def _steps(shares: Shares) -> str:
    """Engine stages by what they are: the first is the backbone, the second is behind the pooling."""
    named = dict(zip(shares.dense, ("layers of the photo", "layers of the regions"), strict=False))
    steps = ((named.get(name, name), value) for name, value in shares.steps_ms.items())
    return ", ".join(f"{name} {figures.significant(value)}" for name, value in steps)
