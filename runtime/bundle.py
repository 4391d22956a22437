"""The bundle: the folder that is deployed. Reads its manifest, checks its files, says what can run here and why not."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from types import NoneType
from typing import Any, TypedDict

from .errors import BundleError
from .image import Canvas
from .preflight import why_not
from .proposals import ProposalInput
from .selective_search import SelectiveSearch

FORMAT = "regionrt-bundle/1"
MANIFEST = "manifest.json"
TASKS = ("detection", "instance-segmentation", "segmentation", "localisation")
MAX_TEXT_BYTES = 16 * 1024 * 1024
"""Largest manifest or label file that is read into memory."""
THRESHOLDS = ("score", "nms", "detections", "proposals", "proposal_nms", "candidates")
"""What a detector's manifest must have; of the other tasks' `_THRESHOLDS_OF`."""
_THRESHOLDS_OF = {"segmentation": (), "localisation": ("score",)}
_MERGING = ("score", "window_score", "merge", "detections", "candidates")
"""Of a detector that merges the boxes of windows (which has no `nms`)."""
_REQUIRED = {"format", "task", "model", "labels_file", "canvas", "thresholds", "files", "artifacts"}


class FileEntry(TypedDict):
    """What the manifest says about one file."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Artifact:
    """One way to run the model: `files[0]` is the ONNX file or engine that is opened, the others stand beside it.

    `inputs`/`outputs`: {"name", "dtype", "shape"} each; `profiles`: {"images": {"min", "opt", "max"}, "image_sizes": …}
    each; `engine`: an engine's birth certificate (flavour, version, compute_capabilities, precision, layer_types …);
    `quantized`: names of the layers that compute in the precision, where not all of them do.
    """

    backend: str
    form: str
    precision: str
    files: tuple[str, ...]
    inputs: tuple[Mapping[str, Any], ...] = ()
    outputs: tuple[Mapping[str, Any], ...] = ()
    profiles: tuple[Mapping[str, Any], ...] = ()
    stages: tuple[Any, ...] = ()
    ops_between: tuple[Any, ...] = ()
    engine: Mapping[str, Any] | None = None
    quantized: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.backend} {self.form} {self.precision}"

    @property
    def engine_files(self) -> tuple[str, ...]:
        """Those of `files` that are engines: built on a machine, for a machine."""
        if self.engine is None:
            return ()
        return tuple(name for name in self.files if name.endswith(".engine")) or self.files[:1]

    def to_json(self) -> dict[str, Any]:
        data: dict[str, Any] = {"backend": self.backend, "form": self.form, "precision": self.precision}
        for name in ("files", "inputs", "outputs", "profiles", "stages", "ops_between"):
            data[name] = list(getattr(self, name))
        if self.engine is not None:
            data["engine"] = dict(self.engine)
        if self.quantized:
            data["quantized"] = list(self.quantized)
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Artifact:
        """Raises BundleError if a field is missing or of another type. Unknown fields are passed over."""
        where = "manifest: artifacts"
        _expect(isinstance(data, Mapping), where, "an object for each artefact", data)
        for name in ("backend", "form", "precision"):
            _expect(isinstance(data.get(name), str), f"{where}: {name}", "a text", data.get(name))
        names = ("files", "inputs", "outputs", "profiles", "stages", "ops_between", "quantized")
        lists = {name: data.get(name, []) for name in names}
        for name, value in lists.items():
            _expect(isinstance(value, list), f"{where}: {name}", "a list", value)
        files = lists["files"]
        _expect(bool(files) and all(isinstance(f, str) for f in files), f"{where}: files", "a list of names", files)
        layers = lists["quantized"]
        _expect(all(isinstance(name, str) for name in layers), f"{where}: quantized", "a list of names", layers)
        engine = data.get("engine")
        _expect(engine is None or isinstance(engine, Mapping), f"{where}: engine", "an object", engine)
        tuples = {name: tuple(value) for name, value in lists.items()}
        return cls(data["backend"], data["form"], data["precision"], engine=engine, **tuples)


@dataclass(frozen=True)
class Manifest:
    """What `manifest.json` says. `read` checks everything that needs no hashing; `verify_files` hashes."""

    folder: Path
    task: str
    model: str
    labels: tuple[str, ...]
    canvas: Canvas
    thresholds: Mapping[str, float]
    files: Mapping[str, FileEntry]
    artifacts: tuple[Artifact, ...]
    max_batch: int | None = None
    checkpoint_sha256: str | None = None
    created: str | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    labels_file: str = "labels.txt"
    search: SelectiveSearch | None = None  # of nets that take proposals: what the runtime finds them by

    @classmethod
    def read(cls, folder: str | Path) -> Manifest:
        """Reads and checks a bundle: format, fields, that each file is inside the folder, exists, and has its size.

        Raises BundleError; the message names the file and the field.
        """
        folder = Path(folder)
        data = _read_manifest(folder)
        missing = sorted(_REQUIRED - set(data))
        _expect(not missing, "manifest", f"the fields {', '.join(sorted(_REQUIRED))}", f"none of {', '.join(missing)}")
        _expect(data["task"] in TASKS, "manifest: task", f"one of {', '.join(TASKS)}", data["task"])
        _expect(isinstance(data["model"], str), "manifest: model", "a text", data["model"])
        _expect(isinstance(data["files"], Mapping), "manifest: files", "an object", data["files"])
        _expect(isinstance(data["artifacts"], list), "manifest: artifacts", "a list", data["artifacts"])
        max_batch = data.get("max_batch")
        whole = max_batch is None or (type(max_batch) is int and max_batch >= 1)
        _expect(whole, "manifest: max_batch", "null or a whole number ≥ 1", max_batch)
        for name in ("checkpoint_sha256", "created"):
            _expect(isinstance(data.get(name), (str, NoneType)), f"manifest: {name}", "a text or null", data.get(name))
        _expect(isinstance(data.get("versions", {}), Mapping), "manifest: versions", "an object", data.get("versions"))
        files = {name: _file_entry(name, entry) for name, entry in data["files"].items()}
        artifacts = tuple(Artifact.from_json(entry) for entry in data["artifacts"])
        engines = {name for artifact in artifacts for name in artifact.engine_files}
        for name, entry in files.items():
            if name in engines:
                inside(folder, name)  # its own artefact's matter: it can be built again, `preflight` tells
            else:
                _check_size(folder, name, entry)
        labels_file = data["labels_file"]
        for name in [labels_file, *(name for artifact in artifacts for name in artifact.files)]:
            _expect(isinstance(name, str) and name in files, "manifest", f"{name!r} listed under files", "it is not")
        return cls(
            folder=folder,
            task=data["task"],
            model=data["model"],
            labels=_read_labels(folder, labels_file, files[labels_file], data["task"]),
            canvas=Canvas.from_json(data["canvas"]),
            thresholds=_thresholds(data["thresholds"], _thresholds_of(data)),
            files=files,
            artifacts=artifacts,
            max_batch=max_batch,
            checkpoint_sha256=data.get("checkpoint_sha256"),
            created=data.get("created"),
            versions=data.get("versions", {}),
            labels_file=labels_file,
            search=SelectiveSearch.from_json(data["search"]) if data.get("search") is not None else None,
        )

    @property
    def proposals(self) -> ProposalInput | None:
        """What a net that takes proposals is given; None of one that finds its own."""
        return None if self.search is None else ProposalInput(int(self.thresholds["proposals"]), self.search)

    def to_json(self) -> dict[str, Any]:
        """What `manifest.json` holds; `read` of it gives this manifest again."""
        return {
            "format": FORMAT,
            "task": self.task,
            "model": self.model,
            "labels_file": self.labels_file,
            "checkpoint_sha256": self.checkpoint_sha256,
            "created": self.created,
            "versions": dict(self.versions),
            "canvas": self.canvas.to_json(),
            "max_batch": self.max_batch,
            "thresholds": dict(self.thresholds),
            "files": {name: dict(entry) for name, entry in self.files.items()},
            "artifacts": [artifact.to_json() for artifact in self.artifacts],
            **({} if self.search is None else {"search": self.search.to_json()}),
        }

    def path(self, name: str) -> Path:
        """Where a file of the bundle lies. BundleError if the name leaves the folder."""
        return inside(self.folder, name)

    def verify_files(self, names: Iterable[str] | None = None) -> None:
        """Hashes files (all, or those named). BundleError for the first that is missing, cut short or changed."""
        for name in self.files if names is None else names:
            entry = self.files.get(name)
            if entry is None:
                raise BundleError(f"{self.folder}: {name} is not listed in {MANIFEST}")
            _check_size(self.folder, name, entry)
            found = sha256_of(inside(self.folder, name))
            if found != entry["sha256"]:
                raise BundleError(
                    f"{self.folder / name}: changed since the export: expected sha256 {entry['sha256'][:12]}…, "
                    f"found {found[:12]}…; copy or export the bundle again"
                )

    def preflight(self, artifact: Artifact, allow_host_code: bool = False) -> str | None:
        """Why `artifact` cannot run on this machine with this version of regionrt, in one line; None if it can."""
        return why_not(self, artifact, allow_host_code)


def inside(folder: Path, name: str) -> Path:
    """The path of a bundle's file. BundleError unless `name` is a relative path that stays inside, links followed."""
    parts = PurePosixPath(name).parts
    plain = (
        parts and not PurePosixPath(name).is_absolute() and ".." not in parts and "\\" not in name and "\0" not in name
    )
    if not plain or ":" in parts[0]:
        raise BundleError(f"{folder}: {name!r} in {MANIFEST} leaves the bundle; expected a relative path inside it")
    path = folder.joinpath(*parts)
    try:
        real = path.resolve()
        contained = real.is_relative_to(folder.resolve())
    except (OSError, RuntimeError) as error:  # a loop of links
        raise BundleError(f"{path}: cannot be resolved: {error}") from error
    if not contained:
        raise BundleError(f"{path}: is a link that leaves the bundle, to {real}; copy the file itself into the bundle")
    return path


def is_bundle(folder: Path) -> bool:
    """Whether `folder` holds a bundle of any version: what `replace_folder` may replace."""
    try:
        data = json.loads(_read_text(folder / MANIFEST))
    except (BundleError, ValueError, RecursionError):
        return False
    return isinstance(data, dict) and str(data.get("format", "")).startswith("regionrt-bundle/")


def sha256_of(path: Path) -> str:
    """Hex sha256 of a file, read in pieces."""
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(1 << 20))
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
    return digest.hexdigest()


def _expect(holds: bool, where: str, expected: str, found: Any) -> None:
    if not holds:
        text = found if isinstance(found, str) else repr(found)
        raise BundleError(f"{where}: expected {expected}, found {text[:80]}; export the bundle again")


def _read_text(path: Path) -> str:
    try:
        size = path.stat().st_size
        if size > MAX_TEXT_BYTES:
            raise BundleError(f"{path}: {size:,} bytes, expected at most {MAX_TEXT_BYTES:,}; this is no bundle of ours")
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise BundleError(f"{path}: not found; expected a bundle, the folder that `regionrt export` writes") from error
    except UnicodeDecodeError as error:
        raise BundleError(f"{path}: expected UTF-8 text: {error}") from error
    except OSError as error:
        raise BundleError(f"{path}: cannot be read: {error.strerror or error}") from error


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if not folder.is_dir():
        what = "a file" if folder.exists() else "nothing"
        raise BundleError(f"{folder}: expected a bundle, the folder that `regionrt export` writes, found {what}")
    try:
        data = json.loads(_read_text(path))
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path}: expected JSON: {error}; export the bundle again") from error
    form = data.get("format") if isinstance(data, dict) else None
    match = re.fullmatch(r"regionrt-bundle/(\d+)", form) if isinstance(form, str) else None
    if match is None:
        raise BundleError(f'{path}: expected "format": "{FORMAT}", found {str(form)[:80]!r}; this is no bundle of ours')
    if match[0] != FORMAT:
        raise BundleError(
            f"{path}: schema {form}, but this regionrt reads {FORMAT}; update regionrt, or export again with it"
        )
    return data


def _file_entry(name: str, entry: Any) -> FileEntry:
    holds = (
        isinstance(entry, Mapping)
        and type(entry.get("bytes")) is int
        and entry["bytes"] >= 0
        and isinstance(entry.get("sha256"), str)
        and re.fullmatch(r"[0-9a-f]{64}", entry["sha256"]) is not None
    )
    _expect(holds, f"manifest: files: {name}", '{"bytes": n, "sha256": 64 hex digits}', entry)
    return FileEntry(bytes=entry["bytes"], sha256=entry["sha256"])


def _check_size(folder: Path, name: str, entry: FileEntry) -> None:
    path = inside(folder, name)
    if not path.is_file():
        raise BundleError(f"{path}: missing from the bundle; copy or export it again")
    size = path.stat().st_size
    if size != entry["bytes"]:
        what = "cut short" if size < entry["bytes"] else "changed"
        raise BundleError(
            f"{path}: {what}: expected {entry['bytes']:,} bytes, found {size:,}; copy or export the bundle again"
        )


def _read_labels(folder: Path, name: str, entry: FileEntry, task: str) -> tuple[str, ...]:
    path = inside(folder, name)
    labels = tuple(_read_text(path).splitlines())
    if sha256_of(path) != entry["sha256"]:
        raise BundleError(f"{path}: changed since the export (another sha256); copy or export the bundle again")
    if task == "segmentation":
        _expect(2 <= len(labels) <= 255, str(path), "2 to 255 names", f"{len(labels)} names")
    else:
        has_background = len(labels) >= 2 and labels[0] == "__background__"
        _expect(has_background, str(path), "__background__ and at least one name", labels[:2])
    return labels


def _thresholds_of(data: Mapping[str, Any]) -> tuple[str, ...]:
    """The thresholds that a manifest must have: a net that takes proposals has none of its own for them."""
    if data["task"] == "detection" and isinstance(data["thresholds"], Mapping) and "merge" in data["thresholds"]:
        return _MERGING
    names = _THRESHOLDS_OF.get(data["task"], THRESHOLDS)
    return names if data.get("search") is None else tuple(name for name in names if name != "proposal_nms")


def _thresholds(data: Any, names: Iterable[str]) -> dict[str, float]:
    _expect(isinstance(data, Mapping), "manifest: thresholds", "an object", data)
    for name in names:
        value = data.get(name)
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        _expect(number and 0 <= value < float("inf"), f"manifest: thresholds: {name}", "a number ≥ 0", value)
    return dict(data)
