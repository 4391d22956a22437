"""How many rows of RoIs a dense stage runs on at once: an engine prepares for each number anew, so it sees few."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

_STEP = 32  # rows are rounded up to multiples of this, and
_CHUNK = 256  # at most so many at once: their features then stay in the cache (fc6 of 1000 RoIs: a quarter faster),
_CHUNK_BYTES = 32 << 20  # and no more than this of larger ones: 256 crops of 224 × 224 px take gigabytes in VGG16


def chunk_of(stage: Mapping[str, Any]) -> int:
    """How many rows go through a stage at once, at most."""
    largest = max(math.prod(filter(None, stage["shapes"][name])) for name in stage["inputs"])
    return min(_CHUNK, max(_STEP, _CHUNK_BYTES // (4 * largest) // _STEP * _STEP))


def bucket_of(rows: int, most: int, chunk: int | None = None) -> int:
    """How many rows a stage runs on for `rows` real ones of at most `most`: one of few numbers, at least 1."""
    chunk = chunk or _CHUNK
    if rows > chunk:
        return -(-rows // chunk) * chunk
    return max(min(-(-rows // _STEP) * _STEP, most), 1)


def usual_shapes(stage: Mapping[str, Any]) -> dict[str, list[int | None]]:
    """The shapes of a stage's inputs for one image, all of its slots in use; None where a dynamic canvas decides."""
    if stage["slots"] is None:
        first = 1
    else:
        chunk = chunk_of(stage)
        first = min(bucket_of(stage["slots"], stage["slots"], chunk), chunk)
    return {name: [first, *stage["shapes"][name][1:]] for name in stage["inputs"]}
