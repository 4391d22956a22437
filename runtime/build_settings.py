"""What the two ways to build an engine share, TensorRT's own calls and Polygraphy's loaders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from .errors import BackendError

_KEPT: list[np.ndarray] = []
"""Constants of the network, of which TensorRT has the addresses; the process is one build's."""


@dataclass(frozen=True)
class Built:
    """What came of a build. `kept`: objects that must live as long as the network does."""

    network: Any
    config: Any
    engine: bytes | None  # None: TensorRT could not build it, and has told its logger why
    kept: tuple[Any, ...]


def strong_typing(trt: ModuleType) -> Any:
    """The flag that makes a network strongly typed; None where every network is: from TensorRT 11 on it may be gone."""
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    if flag is None and int(trt.__version__.split(".")[0]) < 11 and trt.__name__ != "tensorrt_rtx":
        raise BackendError(
            f"{trt.__name__} {trt.__version__} has no strongly typed networks: TensorRT 10.0 or newer is needed"
        )
    return flag


def parse(parser: Any, network: Any, path: str) -> None:
    """BackendError with the node that the parser refuses."""
    if parser.parse_from_file(path) and network.num_outputs > 0:
        return
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    told = []
    for error in errors[-3:]:
        where = f"{error.node_operator()} (node {error.node_name()!r}): " if error.node_operator() else ""
        told.append(where + one_line(error.desc()))
    found = "; ".join(told) or "no network in it"  # the parser takes an empty file for an empty network
    raise BackendError(f"TensorRT's parser refuses {Path(path).name}: {found}")


def take_channels_last(trt: ModuleType, network: Any, job: dict[str, Any]) -> None:
    """The job's inputs of RoI features become what our kernels write: [R, 1, C, h, w] as [R, h, w, C], and where the
    sides b of a pyramid are named [R, 1, C · Σb²] as [R, Σb², C]."""
    for name, bins in job.get("channels_last", {}).items():
        _take_channels_last(trt, network, name, bins)


def _take_channels_last(trt: ModuleType, network: Any, name: str, bins: Sequence[int]) -> None:
    inputs = {network.get_input(index).name: network.get_input(index) for index in range(network.num_inputs)}
    value = inputs[name]
    readers = [
        (network.get_layer(index), place)
        for index in range(network.num_layers)
        for place in range(network.get_layer(index).num_inputs)
        if getattr(network.get_layer(index).get_input(place), "name", None) == name
    ]
    moved = _moved_pyramid(trt, network, value, bins) if bins else _moved_map(trt, network, value)
    for layer, place in readers:
        layer.set_input(place, moved)


def _moved_map(trt: ModuleType, network: Any, value: Any) -> Any:
    rows, one, channels, height, width = value.shape
    value.shape = (rows, height, width, channels)
    shuffle = network.add_shuffle(value)
    shuffle.first_transpose = trt.Permutation([0, 3, 1, 2])
    shuffle.reshape_dims = (-1, one, channels, height, width)
    return shuffle.get_output(0)


def _moved_pyramid(trt: ModuleType, network: Any, value: Any, bins: Sequence[int]) -> Any:
    """Its values are gathered: one level by the other would take a slice, a transposition and a part of a sum each."""
    rows, one, values = value.shape
    cells = sum(side * side for side in bins)
    value.shape = (rows, cells, values // cells)
    flat = network.add_shuffle(value)
    flat.reshape_dims = (-1, values)
    order = pyramid_channels_first(bins, values // cells)
    _KEPT.append(order)
    indices = network.add_constant(order.shape, trt.Weights(order))
    gathered = network.add_gather(flat.get_output(0), indices.get_output(0), 1)
    shuffle = network.add_shuffle(gathered.get_output(0))
    shuffle.reshape_dims = (-1, one, values)
    return shuffle.get_output(0)


def pyramid_channels_first(bins: Sequence[int], channels: int) -> np.ndarray:
    """Where the values of a row of a pyramid, level by level [C, b, b], lie in [Σb², C]: int32 [C · Σb²]."""
    places = np.arange(sum(side * side for side in bins) * channels, dtype=np.int32).reshape(-1, channels)
    ends = np.cumsum([side * side for side in bins])
    return np.concatenate([level.T.ravel() for level in np.split(places, ends[:-1])])


def check_profiles(network: Any, job: dict[str, Any]) -> None:
    inputs = {network.get_input(index).name for index in range(network.num_inputs)}
    for shapes in job["profiles"]:
        if shapes.keys() != inputs:
            raise BackendError(
                f"expected a profile for the inputs {sorted(inputs)}, found one for {sorted(shapes)} in the manifest; "
                "export the bundle again"
            )


def set_capabilities(trt: ModuleType, config: Any, job: dict[str, Any]) -> None:
    if job["compute_capability"]:
        config.num_compute_capabilities = len(job["compute_capability"])
        for index, member in enumerate(_capability_members(trt, job["compute_capability"])):
            config.set_compute_capability(member, index)


def hardware_level(trt: ModuleType, job: dict[str, Any]) -> Any:
    """TensorRT's member for the level asked for; None if none is."""
    if job["hardware_compatibility"] is None:
        return None
    levels = trt.HardwareCompatibilityLevel.__members__
    level = job["hardware_compatibility"].upper()
    if level not in levels:
        raise BackendError(
            f"{trt.__name__} {trt.__version__} has no hardware compatibility {job['hardware_compatibility']!r}: "
            f"it knows {', '.join(name.lower() for name in levels)}"
        )
    return levels[level]


def known_capabilities(trt: ModuleType) -> dict[str, Any]:
    """What the library can build for, by name ("8.6"); empty for full TensorRT, which builds for the GPU it runs on."""
    members = trt.ComputeCapability.__members__ if hasattr(trt, "ComputeCapability") else {}
    return {f"{name[2:-1]}.{name[-1]}": member for name, member in members.items() if name.startswith("SM")}


def _capability_members(trt: ModuleType, asked: list[str]) -> list[Any]:
    known = known_capabilities(trt)
    unknown = [capability for capability in asked if capability not in known]
    if unknown:
        can = f"it knows {', '.join(known)}" if known else "it builds for the GPU that it runs on, leave the option out"
        raise BackendError(
            f"{trt.__name__} {trt.__version__} cannot build for compute capability {', '.join(unknown)}: {can}"
        )
    return [known[capability] for capability in asked]


def one_line(text: str) -> str:
    return " ".join(text.split())[:600]
