"""Whether an artefact can run on this machine, judged before anything is loaded; an engine by its birth certificate.

What only the GPU can tell is asked when the engine is opened (`why_not_this_gpu`): initialising CUDA costs GPU memory
and forbids it to forked children.
"""

from __future__ import annotations

import importlib.metadata
import platform
import re
import shlex
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from .machine import why_no_driver

if TYPE_CHECKING:
    from .bundle import Artifact, Manifest

RUNNABLE = {"onnxruntime": ("native", "portable", "staged"), "openvino": ("staged",), "ncnn": ("staged",)}
"""Forms that each backend executes."""
_BESIDE = {"ncnn": ("onnxruntime",)}
"""Libraries that a backend needs besides its own, for what that does not compute."""
LIBRARIES = {"tensorrt-rtx": ("tensorrt_rtx",), "tensorrt": ("tensorrt", "tensorrt_lean")}
"""Modules that execute an engine of this flavour, first choice first."""
_GET = {
    "tensorrt-rtx": "pip install 'regionrt[rtx]'",
    "tensorrt": "pip install 'regionrt[tensorrt]'",
}


def why_not(manifest: Manifest, artifact: Artifact, allow_host_code: bool = False) -> str | None:
    """Why `artifact` cannot run here, in one line; None if nothing is known against it."""
    if artifact.backend in RUNNABLE:
        if artifact.form not in RUNNABLE[artifact.backend]:
            return f"this version of regionrt does not execute the form {artifact.form!r} in {artifact.backend}"
        for library in (artifact.backend, *_BESIDE.get(artifact.backend, ())):
            if find_spec(library) is None:
                extra = {"onnxruntime": "ort"}.get(artifact.backend, artifact.backend)
                return f"the library {library} is not installed (pip install 'regionrt[{extra}]')"
        return None
    if artifact.backend in LIBRARIES:
        return _why_no_engine(manifest, artifact, allow_host_code)
    return f"this version of regionrt does not execute the backend {artifact.backend!r}"


def _why_no_engine(manifest: Manifest, artifact: Artifact, allow_host_code: bool) -> str | None:
    """Everything that stands in the way, so that a user does not mend one thing only to meet the next."""
    if artifact.form == "staged":
        from .gpu.steps import why_no_kernels

        if why := why_no_kernels(artifact.ops_between):
            return why  # whatever else there is, building it again does not help
    if artifact.engine is None and artifact.files[0].endswith(".onnx"):
        return f"it runs as engines, which are built from it: {rebuild_command(manifest, artifact)}"
    certificate = artifact.engine or {}
    machine, engine = [], []
    library = library_for(artifact.backend)
    if library is None:
        machine.append(f"the library {LIBRARIES[artifact.backend][0]} is not installed ({_GET[artifact.backend]})")
    else:
        if library == "tensorrt_lean" and not certificate.get("version_compatible"):
            engine.append(
                "tensorrt_lean executes version-compatible engines only: build it with "
                "--version-compatible, or install tensorrt"
            )
        version = _installed_version(library)
        if version is not None:
            engine += _version_differs(certificate, version)
    if find_spec("cuda") is None and find_spec("pycuda") is None:
        machine.append("neither cuda-python nor pycuda is installed (pip install cuda-python)")
    no_driver = why_no_driver()
    if no_driver is not None:
        machine.append(no_driver)
    for name, found in (("os", platform.system()), ("machine", platform.machine())):
        built = certificate.get(name)
        if built is not None and built != found:
            engine.append(f"built on {built}, this is {found}")
    engine += _differs_from_manifest(manifest, artifact, certificate)
    engine += _why_no_plugins(certificate)
    if certificate.get("host_code") and not allow_host_code:
        machine.append(
            "it brings code for the host (its own lean runtime), which would run with the rights of this process: "
            "load(…, allow_host_code=True) if you trust it, or build it with --exclude-lean-runtime"
        )
    if engine:
        engine.append(f"build it again: {rebuild_command(manifest, artifact)}")
    return "; ".join(machine + engine) or None


def library_for(flavour: str) -> str | None:
    """The module that would execute an engine of this flavour here."""
    return next((name for name in LIBRARIES[flavour] if find_spec(name) is not None), None)


def _installed_version(module: str) -> str | None:
    try:
        return importlib.metadata.version(module)
    except importlib.metadata.PackageNotFoundError:  # a JetPack without metadata: asked again when it is imported
        return None


def _why_no_plugins(certificate: Mapping[str, Any]) -> list[str]:
    """Plugins of ours that the engine needs in this process, and that are not here in that version."""
    needed = certificate.get("plugins") or []
    if not needed:
        return []
    from .engine_plugins.registration import why_not_here

    why = why_not_here(needed)
    return [] if why is None else [why]


def _differs_from_manifest(manifest: Manifest, artifact: Artifact, certificate: Mapping[str, Any]) -> list[str]:
    told = []
    flavour, precision = certificate.get("flavour"), certificate.get("precision")
    if flavour is not None and flavour != artifact.backend:
        told.append(f"the engine is for {flavour}, the manifest lists it for {artifact.backend}")
    if precision is not None and precision != artifact.precision:
        told.append(f"the engine is {precision}, the manifest lists it as {artifact.precision}")
    for name, sha256 in (certificate.get("built_from") or {}).items():
        entry = manifest.files.get(name)
        if entry is not None and entry["sha256"] != sha256:
            told.append(f"built from another {name} ({sha256[:12]}…) than the bundle holds ({entry['sha256'][:12]}…)")
    for name in artifact.engine_files:
        entry = manifest.files.get(name)
        if entry is None:
            continue
        path = manifest.path(name)
        if not path.is_file():
            told.append(f"{name} is missing from the bundle")
        elif path.stat().st_size != entry["bytes"]:
            told.append(
                f"{name} is cut short or changed: expected {entry['bytes']:,} bytes, found {path.stat().st_size:,}"
            )
    return told


def why_not_this_library(certificate: Mapping[str, Any], version: str) -> str | None:
    """What differs between the library that built the engine and the one that was imported."""
    return "; ".join(_version_differs(certificate, version)) or None


def _version_differs(certificate: Mapping[str, Any], version: str) -> list[str]:
    """TensorRT executes engines of exactly its own version; version-compatible ones of its major version that are not
    newer, and TensorRT 11 those of TensorRT 10 (its support matrix, "Engine Portability")."""
    built = certificate.get("version")
    if built is None or built == version:
        return []
    if certificate.get("version_compatible"):
        mine, its = _numbers(version), _numbers(built)
        if (mine[:1] == its[:1] and mine >= its) or (its[:1], mine[:1]) == ((10,), (11,)):
            return []
        later = " or 11.x" if its[:1] == (10,) else ""
        return [f"built with version {built}: needs {its[0]}.x from {built} on{later}, this is {version}"]
    return [f"built with version {built}, this is {version}"]


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version))


def why_not_this_gpu(certificate: Mapping[str, Any], compute_capability: str, name: str) -> str | None:
    """What differs between the GPUs that the engine was built for and this one."""
    capabilities = certificate.get("compute_capabilities") or []
    level = certificate.get("hardware_compatibility", "none")
    if not capabilities or compute_capability in capabilities:
        return None
    if level == "ampere_plus" and _numbers(compute_capability) >= (8, 0):
        return None
    return f"built for compute capability {', '.join(capabilities)}, this is {name} with {compute_capability}"


def _without(arguments: Sequence[str], option: str) -> list[str]:
    kept, skip = [], False
    for argument in arguments:
        if not skip and argument != option:
            kept.append(argument)
        skip = argument == option
    return kept


def rebuild_command(manifest: Manifest, artifact: Artifact, compute_capability: str | None = None) -> str:
    """The command that builds this engine anew on this machine, for this GPU where one is named."""
    arguments = ["regionrt", "build", str(manifest.folder), "--target", artifact.backend, "--ops", artifact.form]
    certificate = artifact.engine or {}
    options = list(certificate.get("options") or ())
    if compute_capability is not None and artifact.backend == "tensorrt-rtx":
        options = [*_without(options, "--compute-capability"), "--compute-capability", compute_capability]
    return shlex.join(arguments + options)
