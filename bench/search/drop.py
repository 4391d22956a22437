"""Points lost: how far an artefact's figures lie below its reference's, by the metrics that the contract is about."""

from __future__ import annotations

import math
from collections.abc import Mapping

from regionrt.train.tasks import Task

from ..errors import BenchError


def contract_metrics(task: Task, found: Mapping[str, float]) -> dict[str, float]:
    """The figures (0…1) that --max-drop is about; what the data cannot judge is left out."""
    return {name: found[name] for name in task.contract if name in found and not math.isnan(found[name])}


def points_lost(wanted: Mapping[str, float], found: Mapping[str, float]) -> float:
    """The worst of the metrics in points, negative where all are higher. BenchError where there is none to judge by."""
    if not wanted:
        raise BenchError("the data has no objects to judge by: give another split, or data with annotations")
    return max(100 * (wanted[name] - found.get(name, 0.0)) for name in wanted)
