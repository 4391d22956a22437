"""The inputs of an artefact by name: those of every net, and those of nets that take proposals from outside."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from .errors import BackendError

INPUTS: dict[str, np.dtype] = {"images": np.dtype(np.uint8), "image_sizes": np.dtype(np.int32)}
"""Of every request: the canvas [N, H, W, 3], and the size of its valid part [N, 2]."""
PROPOSAL_INPUTS: dict[str, np.dtype] = {"proposals": np.dtype(np.float32), "proposal_counts": np.dtype(np.int32)}
"""Beside them: boxes on the canvas [N, P, 4], xyxy px, and how many of each image's rows are real [N]."""


def known_inputs(found: Mapping[str, np.dtype], where: str) -> dict[str, np.dtype]:
    """The inputs of a net, in our order, if they are those of a net of ours. BackendError for others."""
    for wanted in (INPUTS, INPUTS | PROPOSAL_INPUTS):
        if dict(found) == wanted:
            return wanted
    expected = ", ".join(f"{name} {dtype}" for name, dtype in INPUTS.items())
    others = " and ".join(f"{name} {dtype}" for name, dtype in PROPOSAL_INPUTS.items())
    told = ", ".join(f"{name} {dtype}" for name, dtype in found.items())
    raise BackendError(
        f"{where}: expected the inputs {expected}, with or without {others}, found {told}; this is no detector of ours"
    )


def inputs_of(described: Iterable[Mapping[str, Any]]) -> dict[str, np.dtype]:
    """The inputs of an artefact whose manifest describes them so (nothing: those of every net)."""
    names = {entry.get("name") for entry in described}
    return INPUTS | PROPOSAL_INPUTS if names & set(PROPOSAL_INPUTS) else INPUTS


def request_of(inputs: Iterable[str], images: Any, image_sizes: Any, others: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a request by name. BackendError where it has not what the net takes, or more."""
    values = {"images": images, "image_sizes": image_sizes, **others}
    if set(values) != set(inputs):
        raise BackendError(f"expected the inputs {', '.join(inputs)}, found {', '.join(values)}")
    return values
