"""Run a graph over photos in ONNX Runtime and count what its values are."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from regionrt.runtime.atomic import write_file_atomic
from regionrt.runtime.cache import cache_folder
from regionrt.runtime.errors import RegionRTError
from regionrt.runtime.image import Canvas
from regionrt.runtime.proposals import ProposalInput
from regionrt.train.requests import request_for

from ..compress.calibration import Photo
from ..errors import ExportError
from ..passes.layers import LAYERS
from ..passes.lower import lower
from ..passes.qdq import Range
from .ranges import METHODS, Histogram

LEAST_PHOTOS = 5
_VERSION = 1
Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class Calibration:
    """What values and layers of a graph did on photos.

    ranges: by name of the value, by the method; extremes: exact, of the same values; flops: multiplications and
    additions of each layer, by its name, a mean over the photos.
    """

    method: str
    photos: int
    ranges: dict[str, Range]
    extremes: dict[str, Range]
    flops: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        pairs = {k: {n: [r.low, r.high] for n, r in getattr(self, k).items()} for k in ("ranges", "extremes")}
        return {"version": _VERSION, "method": self.method, "photos": self.photos, "flops": self.flops, **pairs}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Calibration:
        """Raises KeyError, TypeError or ValueError for anything that `to_json` did not write."""
        if data["version"] != _VERSION or data["method"] not in METHODS:
            raise ValueError("another version")
        ranges, extremes = (
            {str(n): Range(float(low), float(high)) for n, (low, high) in data[k].items()}
            for k in ("ranges", "extremes")
        )
        flops = {str(n): float(v) for n, v in data["flops"].items()}
        return cls(data["method"], int(data["photos"]), ranges, extremes, flops)


def calibrate(
    model: ir.Model,
    canvas: Canvas,
    photos: Sequence[Photo],
    method: str,
    progress: Progress = lambda text, done: None,
    *,
    proposals: ProposalInput | None = None,
) -> Calibration:
    """The ranges of all float values of the abstract `model` that layers read or write, or that are summed.

    proposals: what a net is given that takes them.
    What was found before for the same graph, photos and method is read from the user's cache. Raises ExportError for
    fewer than 5 photos, for photos of one colour each, and where a layer computes NaN or infinite values, naming it
    and the photo.
    """
    if method not in METHODS:
        raise ExportError(f"calibration {method!r}: expected one of {', '.join(METHODS)}")
    if len(photos) < LEAST_PHOTOS:
        raise ExportError(f"{len(photos)} images to calibrate on: give {LEAST_PHOTOS} or more")
    key = _key(model, canvas, photos, method, proposals)
    known = _from_cache(key)
    if known is not None:
        return known
    names = _observed(model)
    histograms = {name: Histogram() for name in names}
    layers = [node for node in model.graph if node.domain == "" and node.op_type in LAYERS]
    flops = dict.fromkeys((str(layer.name) for layer in layers), 0.0)
    for photo, values in run_on(model, canvas, photos, names, progress, proposals=proposals):
        for name, array in values.items():
            if not (np.isfinite(array.min(initial=0)) and np.isfinite(array.max(initial=0))):
                raise ExportError(f"{photo}: {names[name]} computes NaN or infinite values: leave the image out")
            histograms[name].add(array)
        for layer in layers:
            flops[str(layer.name)] += _flops(layer, values) / len(photos)
    found = Calibration(
        method,
        len(photos),
        {name: histogram.range(method) for name, histogram in histograms.items()},
        {name: histogram.range("minmax") for name, histogram in histograms.items()},
        flops,
    )
    _to_cache(key, found)
    return found


def run_on(
    model: ir.Model,
    canvas: Canvas,
    photos: Sequence[Photo],
    names: Iterable[str],
    progress: Progress = lambda text, done: None,
    *,
    proposals: ProposalInput | None = None,
) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """(name of the photo, the values of these names), for one photo after the other."""
    watched = lower(model, "native")
    by_name = {value.name: value for node in watched.graph for value in node.outputs}
    own = {value.name for value in watched.graph.outputs}
    watched.graph.outputs.extend(by_name[name] for name in names if name not in own and name in by_name)
    session = session_of(watched)
    inputs = {value.name for value in session.get_inputs()}
    wanted = [name for name in names if name in by_name]
    shows_something = False
    for number, photo in enumerate(photos):
        progress(photo.name, number / len(photos))
        pixels = photo.pixels()
        shows_something = shows_something or bool((pixels != pixels[0, 0]).any())
        request = request_for(canvas, proposals, [pixels])
        feeds = {name: value for name, value in request.items() if name in inputs}
        values = dict(zip(wanted, session.run(wanted, feeds), strict=True)) if wanted else {}  # none would mean all
        yield photo.name, {**values, **{name: request[name] for name in names if name in request}}
    if not shows_something:
        raise ExportError(f"{len(photos)} images of one colour each: give photos of what the net is to see")


def session_of(model: ir.Model) -> Any:
    """The model in ONNX Runtime, threads at rest between the nodes.

    fp8 is computed as it stands: the optimiser moves fp8 values to operators that have no kernel for them.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if any(value.dtype == ir.DataType.FLOAT8E4M3FN for value in model.graph.initializers.values()):
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    data = ir.to_proto(model).SerializeToString()
    return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def _observed(model: ir.Model) -> dict[str, str]:
    """Names of the float values to look at, with what is to be said of each; the first in the order of computing."""
    seen: dict[str, str] = {}
    for node in model.graph:
        if node.domain != "":
            continue
        for value in (*node.inputs, *node.outputs):
            if value is None or value.is_initializer() or value.dtype != ir.DataType.FLOAT or value.name in seen:
                continue
            producer = value.producer()
            maker = producer or node
            seen[str(value.name)] = f"layer {maker.name} ({maker.op_type})"
    return seen


def _flops(layer: ir.Node, values: Mapping[str, np.ndarray]) -> float:
    """Two for each weight that a value of the output is made with."""
    weight, output = layer.inputs[1], values.get(str(layer.outputs[0].name))
    if output is None or weight is None or weight.const_value is None:
        return 0.0
    elements = int(np.prod(weight.const_value.shape.numpy()))
    if layer.op_type == "ConvTranspose":
        source = values.get(str(layer.inputs[0].name))  # type: ignore[union-attr]
        return 0.0 if source is None else 2.0 * source.size * elements / source.shape[1]
    channels = output.shape[1] if layer.op_type == "Conv" else output.shape[-1]
    return 2.0 * output.size * elements / channels


def _key(model: ir.Model, canvas: Canvas, photos: Sequence[Photo], method: str, proposals: ProposalInput | None) -> str:
    """Hash of graph, weights, canvas, photos, method and what the net is given beside."""
    taken = [] if proposals is None else [proposals.most, repr(proposals.search)]
    digest = hashlib.sha256(json.dumps([_VERSION, method, canvas.to_json(), *taken]).encode())
    for node in model.graph:
        attributes = {name: str(attribute.value) for name, attribute in sorted(node.attributes.items())}
        names = [[v.name if v is not None else None for v in values] for values in (node.inputs, node.outputs)]
        digest.update(json.dumps([node.domain, node.op_type, node.name, attributes, names]).encode())
    for name, value in sorted(model.graph.initializers.items()):
        if value.const_value is not None:
            digest.update(name.encode() + value.const_value.tobytes())
    for photo in photos:
        pixels = photo.pixels()
        digest.update(json.dumps([photo.name, pixels.shape]).encode() + pixels.tobytes())
    return digest.hexdigest()


def _from_cache(key: str) -> Calibration | None:
    try:
        text = (cache_folder("calibration") / f"{key}.json").read_text(encoding="utf-8")
        return Calibration.from_json(json.loads(text))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # nothing there, or nothing of ours: it is computed, and written anew


def _to_cache(key: str, found: Calibration) -> None:
    folder = cache_folder("calibration")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_file_atomic(folder / f"{key}.json", json.dumps(found.to_json()))
    except (OSError, RegionRTError):
        pass  # a cache that cannot be written to costs time at the next export, and nothing else
