"""What an artefact's engines are built from: its one graph, or each dense stage of the form `staged`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .bundle import Artifact
from .errors import BackendError
from .gpu.steps import why_no_kernels

Profile = Mapping[str, Mapping[str, Sequence[int]]]


@dataclass(frozen=True)
class Part:
    """One ONNX file that becomes one engine.

    stage: the stage's entry in the manifest; None: the file is the whole graph.
    channels_last: inputs that the engine is to take as the kernels before it give them: [R, 1, C, h, w] as
        [R, h, w, C]; and [R, 1, C · Σb²] of a pyramid as [R, Σb², C], where its b are the value.
    """

    file: str
    profiles: tuple[Profile, ...]
    stage: Mapping[str, Any] | None = None
    channels_last: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class MadePart:
    """A part, the name of its engine in the bundle, and what its build found out."""

    part: Part
    engine: str
    facts: dict[str, Any]

    def entry(self) -> dict[str, Any]:
        """The stage's entry in the manifest, of the engine."""
        assert self.part.stage is not None
        stage = dict(self.part.stage)
        shapes = dict(stage["shapes"])
        for name, bins in self.part.channels_last.items():
            shapes[name] = _last(shapes[name], bins)
        last = [*stage["channels_last"], *self.part.channels_last]
        return stage | {"file": self.engine, "shapes": shapes, "channels_last": last}


def parts_of(source: Artifact) -> list[Part]:
    """What to build, in order. BackendError for an artefact without the sizes that an engine needs, or with ops between
    stages that have no CUDA form."""
    profiles = source.profiles or (batch_one(source),)
    if source.form != "staged":
        return [Part(source.files[0], tuple(profiles))]
    if why := why_no_kernels(source.ops_between):
        raise BackendError(f"{source.form} {source.precision}: {why}")
    maps = {name for stage in source.stages for name in stage["channels_last"] if name in stage["outputs"]}
    pooled = {  # whatever op reads maps that are channels last gives its rows so
        name: tuple(op["attributes"].get("bins", ()))
        for op in source.ops_between
        if maps.intersection(op["inputs"])
        for name in op["outputs"]
    }
    parts = []
    for stage in source.stages:
        taken = set(stage["inputs"]) - set(stage["channels_last"])
        last = {name: bins for name, bins in pooled.items() if name in taken}
        parts.append(Part(stage["file"], tuple(_stage_profile(stage, last, of) for of in profiles), stage, last))
    return parts


def _stage_profile(stage: Mapping[str, Any], channels_last: Mapping[str, tuple[int, ...]], whole: Profile) -> Profile:
    """A stage of rows always runs on all slots of each image: their number is fixed by the batch."""
    profile: dict[str, dict[str, list[int]]] = {}
    for name in stage["inputs"]:
        if stage["slots"] is None:
            if name not in whole:
                raise BackendError(f"{stage['name']}: no profile for its input {name} in the manifest; export again")
            profile[name] = {size: list(shape) for size, shape in whole[name].items()}
            continue
        row = stage["shapes"][name]
        if name in channels_last:
            row = _last(row, channels_last[name])
        if not all(isinstance(side, int) for side in row[1:]):
            raise BackendError(f"{stage['name']}: {name}: expected rows of fixed size, found {row}; export again")
        profile[name] = {size: [shape[0] * stage["slots"], *row[1:]] for size, shape in whole["images"].items()}
    return profile


def _last(shape: Sequence[Any], bins: Sequence[int]) -> list[Any]:
    """[R, 1, C, h, w] as [R, h, w, C]; of a pyramid [R, 1, C · Σb²] as [R, Σb², C]."""
    if bins:
        rows, _, values = shape
        cells = sum(side * side for side in bins)
        return [rows, cells, values // cells]
    rows, _, channels, height, width = shape
    return [rows, height, width, channels]


def constants_of(source: Artifact) -> list[str]:
    """Files of the source that its engines need beside them."""
    return [name for name in source.files if name.endswith(".npz")]


def merged_facts(facts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What the builds of all parts found out, as of one engine."""
    if len(facts) == 1:
        return facts[0]
    kinds: dict[str, dict[str, int]] = {}
    for each in facts:
        for kind, counts in each["layer_types"].items():
            for dtype, number in counts.items():
                of = kinds.setdefault(kind, {})
                of[dtype] = of.get(dtype, 0) + number
    layers, inside = (sum(each["proof"][name] for each in facts) for name in ("layers", "in_precision"))
    proved = sorted({each["proof"]["of"] for each in facts})
    return {
        **facts[0],
        "layer_types": kinds,
        "proof": {
            "of": " and ".join(proved),
            "layers": layers,
            "in_precision": inside,
            "share": round(inside / layers, 4),
        },
        "flops": {
            dtype: sum(each.get("flops", {}).get(dtype, 0.0) for each in facts)
            for dtype in sorted({dtype for each in facts for dtype in each.get("flops", {})})
        },
        "data_dependent_shapes": any(each["data_dependent_shapes"] for each in facts),
        "tf32": any(each["tf32"] for each in facts),
        "build_seconds": round(sum(each["build_seconds"] for each in facts), 2),
        "engine_bytes": sum(each["engine_bytes"] for each in facts),
        "sha256": [each["sha256"] for each in facts],
    }


def batch_one(source: Artifact) -> dict[str, Any]:
    """The profile of an artefact that states none: one image, everything else fixed."""
    profile = {}
    for tensor in source.inputs:
        shape = [1, *tensor["shape"][1:]]
        if not all(isinstance(size, int) and size > 0 for size in shape):
            raise BackendError(
                f"input {tensor['name']} of {source.files[0]} has the dynamic shape {tensor['shape']} and the manifest "
                "no profile for it; export the bundle again"
            )
        profile[tensor["name"]] = {"min": shape, "opt": shape, "max": shape}
    return profile
