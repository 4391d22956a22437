"""What is compared: every artefact of the bundles, open where it runs here, with what is known before measuring."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from regionrt.runtime.bundle import Artifact, Manifest
from regionrt.runtime.errors import BackendError
from regionrt.runtime.loading import load
from regionrt.runtime.predictor import Predictor

from .environment import without_folders
from .errors import BenchError

BACKENDS = {
    "onnxruntime": "ONNX Runtime",
    "openvino": "OpenVINO",
    "ncnn": "ncnn",
    "tensorrt": "TensorRT",
    "tensorrt-rtx": "TensorRT for RTX",
    "torch": "PyTorch",
}


@dataclass
class Entry:
    """One candidate before it is measured. `predict` None: it does not run here, `reason` says why.

    job: what `fresh.measure_fresh` needs to open it in another process, or None.
    """

    id: str
    name: str
    kind: str
    backend: str
    form: str
    precision: str
    bundle: str | None = None
    predict: Predictor | None = None
    reason: str = ""
    notes: list[str] = field(default_factory=list)
    size_bytes: int | None = None
    build_s: float | None = None
    job: dict[str, Any] | None = None
    fresh: dict[str, Any] | None = None


def read_manifests(bundles: Sequence[str | Path]) -> list[Manifest]:
    """The manifests of bundles. BundleError for a broken one, BenchError for those that cannot be compared."""
    manifests = [Manifest.read(bundle) for bundle in bundles]
    for other in manifests[1:]:
        first = manifests[0]
        if other.labels != first.labels:
            raise BenchError(
                f"bundles with the same labels expected: {first.folder} has {_some(first.labels[1:])}, "
                f"{other.folder} has {_some(other.labels[1:])}; compare them in reports of their own"
            )
        if other.task != first.task:
            raise BenchError(
                f"bundles for the same task expected: {first.folder} is for {first.task}, "
                f"{other.folder} for {other.task}; compare them in reports of their own"
            )
    return manifests


def check_labels(labels: Sequence[str], what: str, manifests: Sequence[Manifest]) -> None:
    """BenchError unless the bundles have the checkpoint's labels."""
    for manifest in manifests:
        if tuple(manifest.labels) != tuple(labels):
            raise BenchError(
                f"a bundle and a checkpoint with the same labels expected: {manifest.folder} has "
                f"{_some(manifest.labels[1:])}, {what} has {_some(labels[1:])}; "
                "give the checkpoint that the bundle was made from"
            )


def bundle_notes(manifests: Sequence[Manifest], checkpoint_sha256: str | None) -> list[str]:
    """What a reader must know before comparing: another checkpoint, canvas or thresholds."""
    notes = []
    for manifest, name in zip(manifests, bundle_names(manifests), strict=True):
        made_from = manifest.checkpoint_sha256
        if checkpoint_sha256 and made_from and made_from != checkpoint_sha256:
            notes.append(
                f"{name} was made from another checkpoint than the one given (compressed, or trained on): "
                "its difference in accuracy includes that."
            )
        first = manifests[0]
        if manifest.canvas != first.canvas:
            notes.append(
                f"{name} has another canvas ({_canvas(manifest)}) than the baseline ({_canvas(first)}): "
                "time and accuracy include that."
            )
        changed = [k for k, v in manifest.thresholds.items() if first.thresholds.get(k) != v]
        if changed:
            notes.append(f"{name} was exported with other thresholds than the baseline has: {', '.join(changed)}.")
    return notes


def bundle_names(manifests: Sequence[Manifest]) -> list[str]:
    """The folders' names; as given where two are called the same."""
    names = [manifest.folder.absolute().resolve().name for manifest in manifests]
    return [str(m.folder) if names.count(name) > 1 else name for m, name in zip(manifests, names, strict=True)]


def open_artifacts(manifests: Sequence[Manifest], threads: int) -> list[Entry]:
    """An entry for every artefact of every bundle, in the manifests' order; those that run here are open.

    A file that only engines are built from has none where such an engine is in its bundle.
    """
    entries: list[Entry] = []
    for manifest, bundle in zip(manifests, bundle_names(manifests), strict=True):
        engines = {(a.backend, a.form, a.precision) for a in manifest.artifacts if a.engine}
        for artifact in manifest.artifacts:
            if not artifact.engine and (artifact.backend, artifact.form, artifact.precision) in engines:
                continue
            entry = _entry(manifest, artifact, bundle, len(manifests) > 1)
            taken = {other.id for other in entries}
            if entry.id in taken:  # engines for other GPUs
                entry.id = next(f"{entry.id}-{n}" for n in range(2, len(entries) + 3) if f"{entry.id}-{n}" not in taken)
            _open(entry, manifest, artifact, threads)
            entries.append(entry)
    return entries


def _entry(manifest: Manifest, artifact: Artifact, bundle: str, several: bool) -> Entry:
    name = f"{BACKENDS.get(artifact.backend, artifact.backend)} {artifact.form} {artifact.precision}"
    certificate = artifact.engine or {}
    built = certificate.get("build_seconds")
    return Entry(
        id=f"{bundle}/{artifact.backend}-{artifact.form}-{artifact.precision}",
        name=f"{bundle}: {name}" if several else name,
        kind="bundle",
        backend=artifact.backend,
        form=artifact.form,
        precision=artifact.precision,
        bundle=bundle,
        notes=_engine_notes(certificate),
        size_bytes=sum(manifest.path(file).stat().st_size for file in artifact.files),
        build_s=float(built) if built is not None else None,
    )


def _open(entry: Entry, manifest: Manifest, artifact: Artifact, threads: int) -> None:
    reason = manifest.preflight(artifact)
    if reason is None:
        try:
            entry.predict = load(
                manifest.folder, artifact.backend, threads=threads, form=artifact.form, precision=artifact.precision
            )
        except BackendError as error:
            reason = str(error)
        else:
            entry.job = {
                "kind": "bundle",
                "path": str(manifest.folder.absolute()),
                "backend": artifact.backend,
                "form": artifact.form,
                "precision": artifact.precision,
                "threads": threads,
                "search": None if manifest.search is None else manifest.search.to_json(),
            }
            return
    reason = without_folders(reason)
    entry.reason = f"built, not run here: {reason}" if artifact.engine else f"not run here: {reason}"


def _engine_notes(certificate: Mapping[str, Any]) -> list[str]:
    """What an engine's birth certificate says: library, GPUs, and the precision that was really built."""
    notes = []
    if certificate.get("version"):
        gpus = ", ".join(str(c) for c in certificate.get("compute_capabilities") or ())
        notes.append(
            f"built with {BACKENDS.get(str(certificate.get('flavour')), 'TensorRT')} {certificate['version']}"
            + (f" for compute capability {gpus}" if gpus else "")
        )
    layers = certificate.get("layer_types")
    if isinstance(layers, Mapping) and layers:
        told = [f"{kind} {', '.join(f'{n} × {p}' for p, n in counts.items())}" for kind, counts in layers.items()]
        notes.append(f"compiled layers: {'; '.join(told)}")
    return notes


def _canvas(manifest: Manifest) -> str:
    canvas = manifest.canvas
    return f"{canvas.height}×{canvas.width}" + (" at most" if canvas.dynamic else "")


def _some(names: Sequence[str], most: int = 6) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
