"""Engines from a bundle's ONNX files: built in a child process, proved to be what was asked for, put in the manifest.

Needs the standard library, numpy and one TensorRT, so that it runs on the device itself. TensorRT for RTX also builds
ahead of time on a machine without a GPU.
"""

import contextlib
import fcntl
import json
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .atomic import replace_file, write_file_atomic
from .build_parts import MadePart, Part, constants_of, merged_facts, parts_of
from .build_process import run_build
from .bundle import MANIFEST, Artifact, Manifest, sha256_of
from .errors import BackendError, BundleError
from .polygraphy_build import polygraphy_version

ENGINES = "engines"
FORMS = ("native", "portable", "plugin", "staged")
"""Of our ops, in ONNX files that engines are built from."""
Files = dict[str, dict[str, Any]]  # entries of the manifest's `files`
HARDWARE_LEVELS = ("same_compute_capability", "ampere_plus")
LOADERS = ("polygraphy", "api")


@dataclass(frozen=True)
class Target:
    """What engines can be built for: the library's module, the forms it takes (first choice first), how to get it."""

    module: str
    forms: tuple[str, ...]
    get: str


TARGETS = {
    "tensorrt-rtx": Target("tensorrt_rtx", ("portable", "plugin", "staged"), 'pip install "regionrt[rtx]"'),
    "tensorrt": Target("tensorrt", ("native", "portable", "plugin", "staged"), 'pip install "regionrt[tensorrt]"'),
}


@dataclass(frozen=True)
class BuildOptions:
    """How to build. Raises ValueError for values out of range.

    ops: form of the ONNX file to build from, "native", "portable", "plugin" (with our kernels as TensorRT plugins) or
        "staged" (an engine of each dense stage, for our kernels to run between); None: the first that the target takes.
    compute_capability: GPUs to build for, such as ("8.6", "8.9"); RTX only; (): 8.0 and all newer that it knows.
    optimization_level: 0 (quick to build) to 5 (quick to run); None: the library's own.
    workspace_mib: memory that a layer may use while it runs; None: the library's own limit.
    version_compatible: later versions of the same major TensorRT execute it too, and so does the lean runtime. It
        then carries code for the host (a lean runtime of its own), unless `exclude_lean_runtime`.
    hardware_compatibility: "same_compute_capability" or "ampere_plus" (8.0 and newer), at the price of some speed;
        None: the GPU it is built on. RTX has compute_capability instead.
    refittable: the weights can be changed without building again.
    timing_cache: a file that keeps what was measured, so that the next build is quicker and chooses the same; made if
        it is not there. Full TensorRT only.
    loader: "polygraphy" builds through Polygraphy's loaders, "api" by TensorRT's own calls; None: full TensorRT
        through Polygraphy where that is installed.
    timeout_s: for each engine; then the build is stopped.
    verbose: TensorRT's messages go to standard error.
    """

    ops: str | None = None
    compute_capability: tuple[str, ...] = ()
    optimization_level: int | None = None
    workspace_mib: int | None = None
    version_compatible: bool = False
    exclude_lean_runtime: bool = False
    hardware_compatibility: str | None = None
    refittable: bool = False
    timing_cache: Path | None = None
    loader: str | None = None
    timeout_s: float = 3600.0
    verbose: bool = False

    def __post_init__(self) -> None:
        if self.ops not in (None, *FORMS):
            raise ValueError(f"ops {self.ops!r}: expected {', '.join(FORMS)}")
        if isinstance(self.compute_capability, str):
            raise ValueError(f"compute_capability {self.compute_capability!r}: expected a tuple such as ('8.6', '8.9')")
        for capability in self.compute_capability:
            if not re.fullmatch(r"\d{1,2}\.\d", capability):
                raise ValueError(f"compute capability {capability!r}: expected a form like 8.6")
        if len(set(self.compute_capability)) < len(self.compute_capability):
            raise ValueError(f"compute_capability {self.compute_capability}: each may be named once")
        if self.optimization_level is not None and not 0 <= self.optimization_level <= 5:
            raise ValueError(f"optimization_level {self.optimization_level}: expected 0 to 5")
        if self.workspace_mib is not None and self.workspace_mib < 1:
            raise ValueError(f"workspace_mib {self.workspace_mib}: expected at least 1")
        if self.exclude_lean_runtime and not self.version_compatible:
            raise ValueError("exclude_lean_runtime: only a version-compatible engine holds a lean runtime")
        if self.hardware_compatibility not in (None, *HARDWARE_LEVELS):
            raise ValueError(
                f"hardware_compatibility {self.hardware_compatibility!r}: expected {' or '.join(HARDWARE_LEVELS)}"
            )
        if self.loader not in (None, *LOADERS):
            raise ValueError(f"loader {self.loader!r}: expected {' or '.join(LOADERS)}")
        if not self.timeout_s > 0:
            raise ValueError(f"timeout_s {self.timeout_s}: expected more than 0")

    def arguments(self) -> list[str]:
        """The options of `regionrt build` that give the same engine, but for `--ops`."""
        words: list[str] = []
        for option, value in (
            ("--compute-capability", ",".join(self.compute_capability)),
            ("--optimization-level", self.optimization_level),
            ("--workspace", self.workspace_mib),
            ("--hardware-compatibility", self.hardware_compatibility),
            ("--loader", self.loader),
        ):
            if value not in (None, ""):
                words += [option, str(value)]
        flags = (
            ("--version-compatible", self.version_compatible),
            ("--exclude-lean-runtime", self.exclude_lean_runtime),
            ("--refittable", self.refittable),
        )
        return words + [option for option, wanted in flags if wanted]


DEFAULT_OPTIONS = BuildOptions()


def build_engines(
    bundle: Path,
    target: str = "tensorrt-rtx",
    options: BuildOptions = DEFAULT_OPTIONS,
    progress: Callable[[str, float], None] | None = None,
) -> list[Artifact]:
    """Build an engine from each precision of the bundle's ONNX file and enter them in its manifest.

    The engines appear together, in one step, as `engines/<target>-<form>-<precision>-….engine` (staged: one for each
    dense stage); one that was built before for the same target, form, precision and compute capabilities is replaced.
    When anything fails the bundle stays as it was. The same ONNX file gives the same bytes again where its sizes are
    fixed.

    Args:
        bundle: the bundle's folder.
        target: "tensorrt-rtx" or "tensorrt".
        progress: called with what is being done and the fraction done, 0 to 1.

    Returns: the new artefacts, each with its birth certificate in `engine`.

    Raises:
        BundleError: no bundle, or one whose files changed.
        BackendError: TensorRT is missing, refuses the graph, runs out of memory or time, crashes, or built another
            precision than the artefact names.
        OutputError: the disk is full or cannot be written to.
        ValueError: an unknown target, or an option that it does not have.
    """
    if target not in TARGETS:
        raise ValueError(f"target {target!r}: expected {' or '.join(TARGETS)}")
    _check_target(target, options)
    bundle = Path(bundle)
    manifest = Manifest.read(bundle)
    work = [(source, parts_of(source)) for source in _sources(manifest, target, options)]
    built: list[tuple[dict[str, Any], Files]] = []  # manifest entry, its engines
    new: list[str] = []
    try:
        for index, (source, parts) in enumerate(work):
            manifest.verify_files(source.files)
            label = f"{target} {source.precision}"
            files: Files = {}
            made: list[MadePart] = []
            for number, part in enumerate(parts):
                start = (index + number / len(parts)) / len(work)

                def tell(phase: str, fraction: float, label: str = label, start: float = start) -> None:
                    if progress is not None:
                        progress(f"{label}: {phase}", start + fraction / len(parts) / len(work))  # noqa: B023

                with tempfile.TemporaryDirectory() as scratch:
                    engine = Path(scratch, "engine")
                    job = _job(manifest, source, part, target, options, engine)
                    facts = run_build(job, options.timeout_s, tell)
                    digest = sha256_of(engine)
                    name = f"{ENGINES}/{_stem(source, part, target, options)}-{digest[:12]}.engine"
                    if not (bundle / name).exists():
                        new.append(name)
                    with replace_file(bundle / name) as temporary:
                        shutil.copyfile(engine, temporary)
                files[name] = {"bytes": facts["engine_bytes"], "sha256": digest}
                made.append(MadePart(part, name, {**facts, "sha256": digest}))
                tell("done", 1.0)
            hashes = {file: sha256_of(manifest.path(file)) for file in source.files}
            built.append((_entry(source, job, made, hashes), files))
        _enter(bundle, built)
    except BaseException:
        _discard(bundle, new)
        raise
    names = {name for _, files in built for name in files}
    return [artifact for artifact in Manifest.read(bundle).artifacts if artifact.files[0] in names]


def _check_target(target: str, options: BuildOptions) -> None:
    if target != "tensorrt-rtx":
        return
    for option, instead in (
        ("version_compatible", "build it with the version that will execute it"),
        ("hardware_compatibility", "compute_capability says which GPUs execute it"),
        ("timing_cache", "it measures nothing when it builds"),
    ):
        if getattr(options, option):
            raise ValueError(f"{option}: {target} does not have it: {instead}")


def _sources(manifest: Manifest, target: str, options: BuildOptions) -> list[Artifact]:
    """The ONNX artefacts to build from: all precisions of the first form that the target takes and the bundle has."""
    forms = TARGETS[target].forms if options.ops is None else (options.ops,)
    graphs = [
        artifact
        for artifact in manifest.artifacts
        # bf16 stages are fp32 files that an engine on a CPU computes in bf16; int8 ones have zero points, for CPUs too
        if all(name.endswith(".onnx") for name in ([s["file"] for s in artifact.stages] or artifact.files[:1]))
        and (artifact.form, artifact.precision) not in (("staged", "bf16"), ("staged", "int8"), ("native", "int8"))
    ]
    for form in forms:
        chosen = {artifact.precision: artifact for artifact in reversed(graphs) if artifact.form == form}
        if chosen:
            return list(reversed(chosen.values()))
    found = ", ".join(sorted({artifact.form for artifact in graphs})) or "no ONNX file"
    raise BackendError(
        f"{target} is built from the {' or '.join(forms)} form, the bundle holds {found}; "
        f"export it with `regionrt export … --ops {forms[0]}`"
    )


def _job(
    manifest: Manifest, source: Artifact, part: Part, target: str, options: BuildOptions, engine: Path
) -> dict[str, Any]:
    return {
        "target": target,
        "module": TARGETS[target].module,
        "form": source.form,
        "get": TARGETS[target].get,
        "onnx": str(manifest.path(part.file).absolute()),
        "engine": str(engine),
        "precision": source.precision,
        "quantized": list(source.quantized),
        "profiles": list(part.profiles),
        "channels_last": {name: list(bins) for name, bins in part.channels_last.items()},
        "compute_capability": list(options.compute_capability),
        "optimization_level": options.optimization_level,
        "workspace_mib": options.workspace_mib,
        "version_compatible": options.version_compatible,
        "exclude_lean_runtime": options.exclude_lean_runtime,
        "hardware_compatibility": options.hardware_compatibility,
        "refittable": options.refittable,
        "timing_cache": None if options.timing_cache is None else str(options.timing_cache.absolute()),
        "loader": options.loader or ("polygraphy" if target == "tensorrt" and polygraphy_version() else "api"),
        "options": options.arguments(),
        "verbose": options.verbose,
    }


def _stem(source: Artifact, part: Part, target: str, options: BuildOptions) -> str:
    capabilities = "".join(f"-sm{capability.replace('.', '')}" for capability in options.compute_capability)
    stage = f"-{part.stage['name']}" if part.stage is not None else ""
    return f"{target}-{source.form}-{source.precision}{capabilities}{stage}"


def _entry(source: Artifact, job: dict[str, Any], made: Sequence[MadePart], hashes: dict[str, str]) -> dict[str, Any]:
    """The entry in `artifacts`, with the birth certificate. `hashes`: sha256 of each file it was built from."""
    profiles = list(source.profiles) or made[0].part.profiles
    return {
        "backend": job["target"],
        "form": source.form,
        "precision": source.precision,
        "files": [*(each.engine for each in made), *constants_of(source)],
        "inputs": list(source.inputs),
        "outputs": list(source.outputs),
        "profiles": list(profiles),
        "stages": [each.entry() for each in made if each.part.stage is not None],
        "ops_between": list(source.ops_between),
        **({"quantized": list(source.quantized)} if source.quantized else {}),
        "engine": {
            "flavour": job["target"],
            **merged_facts([each.facts for each in made]),
            "version_compatible": job["version_compatible"],
            "host_code": job["version_compatible"] and not job["exclude_lean_runtime"],
            "hardware_compatibility": job["hardware_compatibility"] or "none",
            "refittable": job["refittable"],
            "options": job["options"],
            "os": platform.system(),
            "machine": platform.machine(),
            "precision": source.precision,
            "profiles": list(profiles),
            "onnx_sha256": hashes[source.files[0]],
            "built_from": hashes,
        },
    }


def _enter(bundle: Path, built: list[tuple[dict[str, Any], Files]]) -> None:
    """Add the engines to manifest.json in one step, then remove the files of the engines that they replace."""
    with _locked(bundle):
        manifest = json.loads((bundle / MANIFEST).read_text(encoding="utf-8"))
        for entry, _ in built:
            for file, sha256 in entry["engine"]["built_from"].items():
                if manifest["files"].get(file, {}).get("sha256") != sha256:
                    raise BundleError(f"{bundle}: {file} was exported anew during the build; build again")
        identities = [_identity(entry) for entry, _ in built]
        kept = [
            entry for entry in manifest["artifacts"] if not (entry.get("engine") and _identity(entry) in identities)
        ]
        kept.sort(key=lambda entry: not entry.get("engine"))  # engines first: where one can run, it is fastest
        manifest["artifacts"] = [entry for entry, _ in built] + kept
        used = {file for entry in manifest["artifacts"] for file in entry["files"]}
        gone = [file for file in manifest["files"] if file.startswith(f"{ENGINES}/") and file not in used]
        for file in gone:
            del manifest["files"][file]
        for _, files in built:
            manifest["files"].update(files)
        write_file_atomic(bundle / MANIFEST, json.dumps(manifest, indent=2) + "\n")
        for file in gone:
            with contextlib.suppress(OSError):  # the manifest no longer names it: it only takes space
                (bundle / file).unlink()


def _discard(bundle: Path, new: list[str]) -> None:
    """Remove the engines of a build that failed; not those that the manifest names, should it have come so far."""
    with contextlib.suppress(OSError, ValueError):  # the error that led here is the one to tell
        named = json.loads((bundle / MANIFEST).read_text(encoding="utf-8"))["files"]
        for name in new:
            if name not in named:
                (bundle / name).unlink(missing_ok=True)
        (bundle / ENGINES).rmdir()  # goes only if it is empty


def _identity(entry: dict[str, Any]) -> tuple[Any, ...]:
    capabilities = (entry.get("engine") or {}).get("compute_capabilities", [])
    return entry["backend"], entry["form"], entry["precision"], tuple(capabilities)


@contextlib.contextmanager
def _locked(bundle: Path) -> Iterator[None]:
    """One writer of the manifest at a time; the lock ends with its process."""
    folder = os.open(bundle, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)
