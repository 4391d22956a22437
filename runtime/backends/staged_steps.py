"""What the manifest says of an artefact of the form `staged`: its stages and ops, in the order in which they run."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Collection, Mapping
from types import NoneType
from typing import Any

import numpy as np

from regionrt.runtime.bundle import Artifact, Manifest
from regionrt.runtime.errors import BackendError, BundleError

OUTPUTS = ("num_detections", "boxes", "scores", "labels", "overflow", "masks", "probabilities")


def checked_stages(artifact: Artifact, known_ops: Collection[str]) -> tuple[Mapping[str, Any], ...]:
    """The dense stages of a staged artefact. BundleError where the manifest does not describe them as it should,
    BackendError for an op between them that is not one of `known_ops`."""
    wanted: dict[str, Any] = {
        "name": str,
        "file": str,
        "inputs": list,
        "outputs": list,
        "shapes": dict,
        "slots": (int, NoneType),
        "channels_last": list,
    }
    for stage in artifact.stages:
        for key, kind in wanted.items():
            if not isinstance(stage, Mapping) or key not in stage or not isinstance(stage[key], kind):
                raise BundleError(f"manifest: stages: expected {key} of each stage; export the bundle again")
        if stage["file"] not in artifact.files:
            raise BundleError(f"manifest: stages: {stage['file']!r} is none of the artefact's files")
    for op in artifact.ops_between:
        if not isinstance(op, Mapping) or op.get("op") not in known_ops:
            found = op.get("op") if isinstance(op, Mapping) else op
            raise BackendError(
                f"{artifact}: this version of regionrt knows no op {found!r} between stages; update it, or use the "
                "form native"
            )
        if not all(isinstance(op.get(key), kind) for key, kind in
                   (("inputs", list), ("outputs", list), ("attributes", dict))):  # fmt: skip
            raise BundleError(f"manifest: ops_between: {op['op']} is not whole; export the bundle again")
    return artifact.stages


def in_order(stages: list[Mapping[str, Any]], ops: list[Mapping[str, Any]], known: set[str]) -> list[Mapping[str, Any]]:
    """Stages and ops in an order in which each finds its inputs, `known` first. BundleError where there is none."""
    have = set(known)
    left = [*stages, *ops]
    ordered: list[Mapping[str, Any]] = []
    while left:
        step = next((s for s in left if have.issuperset(s["inputs"])), None)
        if step is None:
            missing = sorted({name for s in left for name in s["inputs"]} - have)
            raise BundleError(f"manifest: stages: nothing gives {', '.join(missing)}; export the bundle again")
        ordered.append({"name": f"{step['op']}_{len(ordered)}", **step} if "op" in step else step)
        have.update(step["outputs"])
        left.remove(step)
    return ordered


def read_constants(manifest: Manifest, artifact: Artifact) -> dict[str, np.ndarray]:
    """Inputs of ops that never change, from the artefact's .npz."""
    found: dict[str, np.ndarray] = {}
    for name in artifact.files:
        if name.endswith(".npz"):
            try:
                with np.load(manifest.path(name), allow_pickle=False) as arrays:
                    found |= {key: np.ascontiguousarray(arrays[key]) for key in arrays.files}
            except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
                raise BundleError(
                    f"{manifest.path(name)}: expected arrays: {error}; export the bundle again"
                ) from error
    return found
