"""What it costs to quantise one layer alone: the error that this makes in the outputs of its dense stage."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from regionrt.runtime.image import Canvas
from regionrt.runtime.proposals import ProposalInput

from ..compress.calibration import Photo
from ..passes.qdq import Dialect, Range, insert_qdq, quantizable
from ..passes.split import Unit, split
from .collect import run_on, session_of

Progress = Callable[[str, float], None]


def sensitivities(
    model: ir.Model,
    canvas: Canvas,
    photos: Sequence[Photo],
    ranges: Mapping[str, Range],
    dialect: Dialect,
    progress: Progress = lambda text, done: None,
    *,
    proposals: ProposalInput | None = None,
) -> dict[str, float]:
    """By layer of the abstract `model`, the largest error of its stage's outputs when it alone is quantised.

    ‖y' − y‖ / ‖y − mean(y)‖ over the photos, the worst of the stage's outputs, with the layer in `dialect`; of outputs
    that are no floats (classes of pixels) that of the values which they are computed from.
    """
    found: dict[str, float] = {}
    units = [unit for unit in split(model) if unit.op is None and quantizable(unit.model.graph)]
    fed = {name for unit in units for name in unit.inputs}
    feeds = [values for _, values in run_on(model, canvas, photos, sorted(fed), proposals=proposals)]
    total = sum(len(quantizable(unit.model.graph)) for unit in units)
    for unit in units:
        layers = [str(node.name) for node in quantizable(unit.model.graph)]
        outputs = _float_outputs(unit.model)
        exact = _outputs_of(unit.model, unit, feeds, outputs)
        for layer in layers:
            progress(layer, len(found) / total)
            changed, _ = insert_qdq(unit.model, ranges, dialect, [name for name in layers if name != layer])
            found[layer] = max(map(_error, _outputs_of(changed, unit, feeds, outputs), exact), default=0.0)
    return found


def _float_outputs(model: ir.Model) -> list[str]:
    """Names of the float outputs; one of another type is replaced by the float values that it comes from."""
    graph = model.graph
    reached = list(graph.outputs)
    found: list[ir.Value] = []
    for value in reached:
        producer = value.producer()
        if value.dtype == ir.DataType.FLOAT:
            if value not in found and producer is not None:
                found.append(value)
        elif producer is not None:
            reached += [v for v in producer.inputs if v is not None and not v.is_initializer() and v not in reached]
    graph.outputs.extend(value for value in found if value not in graph.outputs)
    return [str(value.name) for value in found]


def _outputs_of(
    model: ir.Model, unit: Unit, feeds: Sequence[Mapping[str, np.ndarray]], outputs: Sequence[str]
) -> list[list[np.ndarray]]:
    """Each output on each photo."""
    session = session_of(model)
    runs = [session.run(outputs, {name: values[name] for name in unit.inputs}) for values in feeds]
    return [list(of_one) for of_one in zip(*runs, strict=True)]


def _error(found: Sequence[np.ndarray], exact: Sequence[np.ndarray]) -> float:
    wanted = np.concatenate([array.reshape(-1) for array in exact]).astype(np.float64)
    differs = np.concatenate([array.reshape(-1) for array in found]) - wanted
    spread = float(np.linalg.norm(wanted - wanted.mean())) if wanted.size else 0.0
    error = float(np.linalg.norm(differs))
    if spread == 0:
        return 0.0 if error == 0 else float("inf")
    return error / spread
