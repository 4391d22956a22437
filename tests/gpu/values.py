"""Inputs and outputs in the kernels' types, and how near their results must be."""

from __future__ import annotations

import numpy as np

from regionrt.runtime import native

TOLERANCES = {"float32": 1e-5, "float16": 2e-3, "bfloat16": 1e-2}
"""Of the largest value: float32 sums of a few dozen terms; 16 bits, the result is rounded once to its type."""


def typed(values: np.ndarray, dtype: str) -> np.ndarray:
    """bfloat16 as uint16."""
    if dtype == "bfloat16":
        return native.narrowed(values.astype(np.float32), np.dtype(np.uint16))
    return values.astype(dtype)


def widened(values: np.ndarray) -> np.ndarray:
    """float32."""
    return native.widened(values) if values.dtype == np.uint16 else values.astype(np.float32)


def near(found: np.ndarray, expected: np.ndarray, tolerance: float) -> None:
    """Within `tolerance` of the largest value; NaN where nothing was written fails."""
    np.testing.assert_allclose(found, expected, atol=tolerance * np.abs(expected).max(initial=1e-30), rtol=0)


def boxes_in(rng: np.random.Generator, shape: tuple[int, ...], side: float, least: float = 4.0) -> np.ndarray:
    """float32 xyxy within [0, side]², of all sizes from `least` on."""
    size = least * (side / least) ** rng.uniform(0, 1, (*shape, 2))
    corner = rng.uniform(0, 1, (*shape, 2)) * (side - size)
    return np.concatenate([corner, corner + size], -1).astype(np.float32)
