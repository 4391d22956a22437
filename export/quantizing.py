"""What a precision needs to know of the data: ranges of the values, and which layers stay in floating point."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from regionrt.runtime.image import Canvas
from regionrt.runtime.proposals import ProposalInput

from .calibration.collect import Calibration, calibrate
from .calibration.sensitivity import sensitivities
from .compress.calibration import Photo, spread
from .errors import ExportError
from .passes.fp8 import E4M3
from .passes.int8 import U8S8
from .passes.layers import LAYERS
from .passes.qdq import quantizable

QUANTIZED = {"int8": U8S8, "fp8": E4M3}
"""Precisions of 8 bits → the dialect that sensitivities are measured in."""
MOST_ERROR = 0.1
"""A layer whose quantisation alone moves an output of its stage by more than this part of the output's spread stays."""
_SENSITIVITY_PHOTOS = 2  # each layer is a run on each of them, and all of their pixels count
_FP16_ROOM = float(np.finfo(np.float16).max) / 2  # half: the photos to come are not those that were looked at
Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class Quantization:
    """kept: layers that stay in floating point, the most sensitive first. sensitivity: by layer, most sensitive first.

    why: by kept layer, in words.
    """

    precision: str
    calibration: Calibration
    sensitivity: dict[str, float]
    kept: tuple[str, ...]
    why: dict[str, str]

    def keeping(self, names: Collection[str], layers: Sequence[str]) -> Quantization:
        """With these of the `layers` in fp32 too. ExportError for other names, and where no layer would be left."""
        _check_names(names, layers)
        why = {**dict.fromkeys((name for name in names if name not in self.why), "asked for"), **self.why}
        if self.sensitivity and set(self.sensitivity) <= set(why):
            raise ExportError(f"no layer would be in {self.precision}: export with --precision fp32")
        kept = tuple(sorted(why, key=lambda name: -self.sensitivity.get(name, 0.0)))
        return replace(self, kept=kept, why=why)

    def shares(self, total: Sequence[str]) -> dict[str, dict[str, float]]:
        """Of the layers `total`, how many and what part of the multiplications and additions, by precision."""
        flops = self.calibration.flops
        whole = sum(flops.get(name, 0.0) for name in total) or 1.0
        found: dict[str, dict[str, float]] = {}
        for name in total:
            low = name not in self.kept and (name in self.sensitivity or self.precision not in QUANTIZED)
            of = found.setdefault(self.precision if low else "fp32", {"layers": 0, "flops": 0.0})
            of["layers"] += 1
            of["flops"] += flops.get(name, 0.0) / whole
        return found

    def to_json(self, total: Sequence[str]) -> dict[str, Any]:
        """As `precision.json` has it: the table of sensitivities and the shares."""
        flops = self.calibration.flops
        whole = sum(flops.values()) or 1.0
        return {
            "precision": self.precision,
            "calibration": self.calibration.method,
            "photos": self.calibration.photos,
            "shares": self.shares(total),
            "layers": [
                {
                    "name": name,
                    "sensitivity": self.sensitivity.get(name),
                    "flops": flops.get(name, 0.0) / whole,
                    "kept": self.why.get(name),
                }
                for name in sorted(total, key=lambda n: -self.sensitivity.get(n, 0.0))
            ],
        }


def quantization_of(
    model: ir.Model,
    canvas: Canvas,
    photos: Sequence[Photo],
    precision: str,
    *,
    method: str,
    most_error: float = MOST_ERROR,
    proposals: ProposalInput | None = None,
    progress: Progress = lambda text, done: None,
) -> Quantization:
    """Calibrate the abstract `model` on photos and decide what stays in floating point.

    int8, fp8: layers more sensitive than `most_error`. fp16: what comes near the end of its range. bf16 reaches as far
    as fp32: only that all values are finite is looked at. An infinite `most_error` spares measuring
    sensitivities: all are 0. Raises ExportError as `calibrate`, and where no layer would be left in `precision`.
    """
    layers = layer_names(model)
    found = calibrate(
        model, canvas, photos, method, lambda text, done: progress(f"calibrating on {text}", done / 2),
        proposals=proposals,
    )  # fmt: skip
    why: dict[str, str] = {}
    sensitivity: dict[str, float] = {}
    if precision in QUANTIZED:
        some = spread(photos, _SENSITIVITY_PHOTOS)
        dialect = QUANTIZED[precision]
        measured = (
            dict.fromkeys(quantizable_names(model), 0.0)
            if math.isinf(most_error)
            else sensitivities(
                model, canvas, some, found.ranges, dialect,
                lambda text, done: progress(f"sensitivity of {text}", 0.5 + done / 2), proposals=proposals,
            )
        )  # fmt: skip
        sensitivity = dict(sorted(measured.items(), key=lambda item: -item[1]))
        why |= {
            name: f"alone it moves an output by {error:.1%} of its spread, allowed are {most_error:.1%}"
            for name, error in sensitivity.items()
            if not error <= most_error
        }
        layers = list(sensitivity)
    elif precision == "fp16":
        why |= _beyond_fp16(model, found)
    if layers and set(layers) <= set(why):
        raise ExportError(
            f"no layer would be in {precision}: all {len(layers)} are kept in fp32, the first because "
            f"{layers[0]}: {why[layers[0]]}; allow a larger error per layer, or export with --precision fp32"
        )
    kept = tuple(sorted(why, key=lambda name: -sensitivity.get(name, 0.0)))
    return Quantization(precision, found, sensitivity, kept, why)


def layer_names(model: ir.Model) -> list[str]:
    """Names of the layers, in their order."""
    return [str(node.name) for node in model.graph if node.domain == "" and node.op_type in LAYERS]


def quantizable_names(model: ir.Model) -> list[str]:
    """Names of the layers that can be quantised, in their order."""
    return [str(node.name) for node in quantizable(model.graph)]


def _check_names(given: Collection[str], layers: Sequence[str]) -> None:
    for name in given:
        if name not in layers:
            near = difflib.get_close_matches(name, layers, 3, 0.0)
            raise ExportError(
                f"no layer {name!r} to keep in fp32: expected one of the graph's, such as {', '.join(near)}"
            )


def _beyond_fp16(model: ir.Model, found: Calibration) -> dict[str, str]:
    """Nodes that read or write values near the end of fp16 → the value and how far it came."""
    why: dict[str, str] = {}
    for node in model.graph:
        for value in (*node.inputs, *node.outputs):
            extreme = found.extremes.get(str(value.name)) if value is not None else None
            if extreme is not None and extreme.largest > _FP16_ROOM:
                assert value is not None
                why[str(node.name)] = f"{value.name} reached {extreme.largest:.4g}, fp16 ends at 65504"
                break
    return why
