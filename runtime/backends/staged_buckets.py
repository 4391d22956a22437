"""How many rows of RoIs a dense stage runs on at once: an engine prepares for each number anew, so it sees few."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple


class _Sizes(NamedTuple):
    """step: rows are rounded up to multiples of it. most: no more go at once. lanes: chunks are multiples of that."""

    step: int
    most: int
    lanes: int


_SMALL = _Sizes(32, 256, 8)
"""Rows that a stage makes numbers of: 256 and their features stay in the cache (fc6 of 1000 RoIs: a quarter faster).
250 take OpenVINO as long."""
_LARGE = _Sizes(8, 32, 1)
"""Rows of more than this that convolutions read, which have them channels last: 200 MFLOP and more each, so that a
spare one costs more than a call; and their maps are larger than they are (256 crops of 224×224 px take gigabytes in
VGG16)."""
_LARGE_BYTES = 128 << 10


def chunks_of(stage: Mapping[str, Any], rows: int) -> list[int]:
    """On how many rows a stage runs, one time after the other, for `rows` real ones.

    Full chunks, of which the slots of an image fill a whole number or nearly so, and what is left rounded up. Behind a
    full chunk that is a half or a whole one where the stage's weights are large beside a row: for OpenVINO each number
    of rows is another copy of them.
    """
    step, most, lanes = sizes = _sizes_of(stage)
    slots = stage["slots"]
    if slots > most:
        chunk = _up(math.ceil(slots / math.ceil(slots / most)), lanes)
    else:  # of one image, or of as many images as go at once
        chunk = slots if rows <= slots else slots * (most // slots)
    whole, left = divmod(rows, chunk)
    if whole and sizes is _SMALL:
        step = _up(chunk // 2, lanes)
    return [chunk] * whole + ([min(_up(left, step), chunk)] if left else [])


def _up(number: int, step: int) -> int:
    return -(-number // step) * step


def usual_shapes(stage: Mapping[str, Any]) -> dict[str, list[int | None]]:
    """The shapes of a stage's inputs for one image, all of its slots in use; None where a dynamic canvas decides."""
    first = 1 if stage["slots"] is None else chunks_of(stage, stage["slots"])[0]
    return {name: [first, *stage["shapes"][name][1:]] for name in stage["inputs"]}


def _sizes_of(stage: Mapping[str, Any]) -> _Sizes:
    maps = [stage["shapes"][name] for name in stage["inputs"] if name in stage["channels_last"]]
    largest = max((math.prod(filter(None, shape)) for shape in maps), default=0)
    return _LARGE if 4 * largest > _LARGE_BYTES else _SMALL
