"""Which artefact of a bundle is the fastest on this machine: measured once, kept in the user's cache."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from .atomic import write_file_atomic
from .bundle import MANIFEST, Artifact, Manifest, sha256_of
from .cache import cache_folder
from .clock import TimingOptions, measure
from .errors import BackendError, OutputError
from .machine import describe_machine

_LIBRARIES = {
    "onnxruntime": "onnxruntime",
    "openvino": "openvino",
    "ncnn": "ncnn",
    "tensorrt": "tensorrt",
    "tensorrt-rtx": "tensorrt-rtx",
}
_MOST_CACHE_BYTES = 1 << 20


@dataclass(frozen=True)
class Measured:
    """One artefact on this machine: its median per canvas, or why it does not run here."""

    backend: str
    form: str
    precision: str
    file: str
    p50_ms: float | None = None
    why_not: str | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def autotune(
    path: str | Path,
    images: Sequence[np.ndarray] | None = None,
    *,
    seconds: float = 5.0,
    threads: int | None = None,
    progress: Callable[[int, int | None], None] | None = None,
) -> list[Measured]:
    """Measure every artefact of a bundle that runs here, in turn; from now on `load` takes the fastest.

    Args:
        images: photos, RGB uint8 [H, W, 3], like those that will come: what is found in them costs time too. Without
            any, noise of the canvas's size.
        seconds: of measurement, all artefacts together.
        threads: as for `load`.

    Returns the artefacts, fastest first, those that do not run here last. The order belongs to this bundle (by its
    manifest's hash), this processor and these versions of the libraries; elsewhere the manifest's order holds.

    Raises BundleError; BackendError if nothing runs here; OutputError if the cache cannot be written.
    """
    from .loading import runner_for

    manifest = Manifest.read(path)
    canvas = manifest.canvas
    if images is None:
        images = [np.random.default_rng(0).integers(0, 256, (canvas.height, canvas.width, 3), np.uint8)]
    placed = [_request(manifest, image) for image in images]
    found: list[Measured] = []
    runners: dict[str, Any] = {}
    try:
        for artifact in manifest.artifacts:
            about = (artifact.backend, artifact.form, artifact.precision, artifact.files[0])
            why = manifest.preflight(artifact)
            if why is None:
                manifest.verify_files(artifact.files)
                try:
                    runners[_name(artifact)] = runner_for(manifest, artifact, threads)
                except BackendError as error:
                    why = str(error)
            found.append(Measured(*about, why_not=why))
        if not runners:
            reasons = " · ".join(f"{m.backend} {m.form} {m.precision}: {m.why_not}" for m in found)
            raise BackendError(f"{path}: nothing of it can run here: {reasons}")
        calls = {name: _in_turn(runner, placed) for name, runner in runners.items()}
        timings = measure(calls, TimingOptions(seconds=seconds, least_rounds=5), progress=progress).timings
    finally:
        for runner in runners.values():
            runner.close()
    names = [_name(artifact) for artifact in manifest.artifacts]
    rows = [
        Measured(m.backend, m.form, m.precision, m.file, timings[name].p50_ms if name in timings else None, m.why_not)
        for m, name in zip(found, names, strict=True)
    ]
    rows.sort(key=lambda row: float("inf") if row.p50_ms is None else row.p50_ms)
    order = [f"{row.backend} {row.form} {row.precision} {row.file}" for row in rows if row.p50_ms is not None]
    target = _cache_file(manifest)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{target.parent}: cannot be made: {error.strerror or error}") from error
    write_file_atomic(target, json.dumps({"order": order, "rows": [row.to_json() for row in rows]}, indent=2) + "\n")
    return rows


def in_measured_order(manifest: Manifest) -> tuple[Artifact, ...] | None:
    """The manifest's artefacts, those that `autotune` has measured here first; None if it never ran here."""
    if not cache_folder("autotune").is_dir():
        return None
    path = _cache_file(manifest)
    try:
        if not path.is_file() or path.stat().st_size > _MOST_CACHE_BYTES:
            return None
        order = json.loads(path.read_text(encoding="utf-8"))["order"]
        places = {name: place for place, name in enumerate(order)}
    except (OSError, ValueError, TypeError, KeyError) as error:
        warnings.warn(f"{path}: is passed over, as it cannot be read ({error}): run autotune again", stacklevel=3)
        return None
    last = len(places)
    return tuple(sorted(manifest.artifacts, key=lambda artifact: places.get(_name(artifact), last)))


def _request(manifest: Manifest, image: np.ndarray) -> dict[str, np.ndarray]:
    """What a net is given for one photo; where it takes proposals as many as it takes, anywhere."""
    canvas, sizes, placements = manifest.canvas.place([image])
    request = {"images": canvas, "image_sizes": sizes}
    if manifest.proposals is None:
        return request
    height, width = image.shape[:2]
    ends = np.random.default_rng(0).random((manifest.proposals.most, 2, 2))  # of each box, along each axis
    boxes = np.concatenate([ends.min(1), ends.max(1)], 1) * [width, height, width, height]
    return request | manifest.proposals.place([image], [boxes], placements)


def _name(artifact: Artifact) -> str:
    return f"{artifact} {artifact.files[0]}"


def _in_turn(runner: Any, placed: Sequence[dict[str, np.ndarray]]) -> Callable[[], Any]:
    count = 0

    def call() -> Any:
        nonlocal count
        count += 1
        return runner.run(**placed[count % len(placed)])

    return call


def _cache_file(manifest: Manifest) -> Path:
    machine = describe_machine()
    versions = {}
    for backend in sorted({artifact.backend for artifact in manifest.artifacts}):
        try:
            versions[backend] = metadata.version(_LIBRARIES.get(backend, backend))
        except metadata.PackageNotFoundError:
            versions[backend] = "none"
    what = [sha256_of(manifest.folder / MANIFEST), machine["processor"], machine["usable_cores"], versions]
    return cache_folder("autotune") / f"{hashlib.sha256(json.dumps(what).encode()).hexdigest()[:32]}.json"
