"""Many requests to each artefact of a bundle, in a process of its own: does memory grow, do answers or times drift?

`regionrt bench BUNDLE --suite soak --out FOLDER` writes soak.json and soak.md.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from regionrt.bench import figures
from regionrt.bench.environment import environment, without_folders
from regionrt.bench.errors import BenchError
from regionrt.bench.photos import made_photos, photos_of_files
from regionrt.runtime.bundle import Artifact, Manifest
from regionrt.runtime.machine import usable_cores
from regionrt.train.data.proposals import KeptProposals

from .child import Tell, in_child
from .photo_files import photo_files
from .report_files import write_report
from .soak_case import THREADS, Soaked

MOST_GROWTH = 0.01


@dataclass(frozen=True)
class SoakOptions:
    """requests: to each artefact, the first tenth of them to warm up. rows: artefacts as backend-form-precision; none:
    all. data: a folder of photos, of any sizes; None: photos with shapes drawn on them. limit_seconds: an artefact that
    takes longer is given up. `ValueError` for what makes no sense."""

    requests: int = 10_000
    rows: tuple[str, ...] = ()
    data: Path | None = None
    photos: int = 8
    threads: int | None = None
    limit_seconds: float = 4 * 3600.0

    def __post_init__(self) -> None:
        if self.requests < 10 * self.photos or self.requests % 10:
            raise ValueError(f"--requests {self.requests}: expected a multiple of 10, at least {10 * self.photos}")
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"--threads {self.threads}: expected at least 1")


@dataclass(frozen=True)
class Row:
    """An artefact, and what was found, or why not; skipped: it does not run on this machine."""

    id: str
    found: Soaked | None = None
    reason: str = ""
    skipped: bool = False

    @property
    def passes(self) -> bool:
        """Memory grew by less than `MOST_GROWTH`, and every answer was the same to the byte."""
        found = self.found
        return found is not None and found.growth < MOST_GROWTH and not (found.changed or found.changed_in_threads)


@dataclass(frozen=True)
class SoakReport:
    environment: dict[str, dict[str, str]]
    command: str
    photos: str
    requests: int
    rows: tuple[Row, ...]

    @property
    def passes(self) -> bool:
        """Every artefact that runs on this machine, of which there is one."""
        ran = [row for row in self.rows if not row.skipped]
        return bool(ran) and all(row.passes for row in ran)

    def to_json(self) -> dict[str, Any]:
        return {"format": "regionrt-soak/1", **asdict(self)}

    def to_markdown(self) -> str:
        machine, setting = self.environment["machine"], self.environment["setting"]
        software = ", ".join(f"{name} {version}" for name, version in self.environment["software"].items())
        lines = [
            "# Soak",
            "",
            f"`{self.command}`: {machine['CPU']}, {setting['threads']}, {machine['instruction sets']}; load before "
            f"{setting['load before']}. {software}.",
            "",
            f"{self.requests:,} requests to each artefact, {self.photos} in turn, in a process of its own. "
            "*Memory*: resident, after the first tenth and after the last request. *Time*: medians of the second and "
            "the last tenth. *Changed*: answers that are not, to the byte, the first one to the same photo; behind the "
            f"plus, of requests that {THREADS} threads make at once, afterwards.",
            "",
            "| | memory | growth | time, ms | changed | |",
            "|---|---|---|---|---|---|",
        ]
        for row in self.rows:
            found = row.found
            if found is None:
                lines.append(f"| {row.id} | | | | | not run: {row.reason} |")
                continue
            before, after = (figures.size(size) for _, size in (found.resident[0], found.resident[-1]))
            cells = [
                f"{before} → {after}",
                f"{100 * found.growth:+.2f} %",
                f"{figures.significant(found.first_ms)} → {figures.significant(found.last_ms)}",
                f"{found.changed} + {found.changed_in_threads}",
                "passes" if row.passes else "**fails**",
            ]
            lines.append(f"| {row.id} | {' | '.join(cells)} |")
        return "\n".join([*lines, ""])


def run_soak(
    bundle: Path,
    options: SoakOptions,
    *,
    progress: Tell | None = None,
    keep: Callable[[SoakReport], object] | None = None,
) -> SoakReport:
    """Asks the artefacts of `bundle` in turn. keep: given what there is after each of them.

    BundleError for no whole bundle, BenchError where it has not what was asked for.
    """
    tell = progress or (lambda text: None)
    manifest = Manifest.read(bundle)
    artifacts = [(_id(artifact), artifact) for artifact in manifest.artifacts]
    ids = [id for id, _ in artifacts]
    if unknown := [id for id in options.rows if id not in ids]:
        raise BenchError(f"{', '.join(unknown)}: not in {bundle}, which has {', '.join(ids)}")
    files = photo_files(options.data)
    given = photos_of_files(files, options.photos) if files else made_photos(manifest.canvas, options.photos)
    threads = usable_cores() if options.threads is None else options.threads
    report = SoakReport(environment(threads), _command(options), given.what, options.requests, ())
    for id, artifact in artifacts:
        if options.rows and id not in options.rows:
            continue
        tell(id)
        row = _row(id, artifact, manifest, given.images, options, threads, tell)
        report = replace(report, rows=(*report.rows, row))
        if keep:
            keep(report)
    return report


def _row(
    id: str,
    artifact: Artifact,
    manifest: Manifest,
    photos: Sequence[np.ndarray],
    options: SoakOptions,
    threads: int,
    tell: Tell,
) -> Row:
    if (reason := manifest.preflight(artifact)) is not None:
        return Row(id, reason=without_folders(reason), skipped=True)
    with tempfile.TemporaryDirectory() as folder:
        arrays = {f"photo_{number}": photo for number, photo in enumerate(photos)}
        if (wanted := manifest.proposals) is not None:  # searching is no part of a request
            kept = KeptProposals(wanted.search)
            arrays |= {f"proposals_{number}": kept(photo)[: wanted.most] for number, photo in enumerate(photos)}
        np.savez(Path(folder, "photos.npz"), **arrays)  # type: ignore[arg-type]
        job = {
            "bundle": str(manifest.folder.absolute()),
            "artifact": [artifact.backend, artifact.form, artifact.precision],
            "photos": str(Path(folder, "photos.npz")),
            "requests": options.requests,
            "threads": threads,
        }
        found, why = in_child(
            "regionrt.bench.suites.soak_case", job, options.limit_seconds, lambda text: tell(f"{id}: {text}")
        )
    return Row(id, reason=why) if found is None else Row(id, Soaked.from_json(found))


def _id(artifact: Artifact) -> str:
    return f"{artifact.backend}-{artifact.form}-{artifact.precision}"


def _command(options: SoakOptions) -> str:
    """As it can be typed, without folders of this machine."""
    parts = ["regionrt bench BUNDLE --suite soak", f"--requests {options.requests}"]
    parts += ["--data PHOTOS"] if options.data else []
    parts += [f"--rows {','.join(options.rows)}"] if options.rows else []
    parts += [f"--threads {options.threads}"] if options.threads else []
    return " ".join(parts)


def write(report: SoakReport, folder: Path) -> list[Path]:
    """soak.json and soak.md in `folder`."""
    return write_report(report, folder, "soak")
