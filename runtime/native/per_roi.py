"""Ops that make one row of each RoI of channels-last maps: what all of them ask of their arrays, and how they run."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from . import arrays, library
from .calls import run


def checked_maps(name: str, maps: np.ndarray, most_cells: int | None = None) -> np.ndarray:
    """[N, H, W, C] in C order, float32 or bf16. ValueError for anything else, and for sides above `most_cells`."""
    arrays.kind_of(name, maps)
    maps = arrays.checked(name, maps, None, (None, None, None, None))
    height, width = maps.shape[1:3]
    if most_cells is not None and max(height, width) > most_cells:
        raise ValueError(f"{name}: expected at most {most_cells} cells a side, got {height} × {width}")
    return maps


def per_roi(
    function: str,
    maps: np.ndarray,
    rois: np.ndarray,
    counts: np.ndarray,
    row_shape: tuple[int, ...],
    in_numpy: Callable[[np.ndarray, np.ndarray], np.ndarray],
    *,
    dtype: np.dtype | type | None,
    out: np.ndarray | None,
    threads: int | None,
    **fields: object,
) -> np.ndarray:
    """[N, P, *row_shape] by the library's `function`, or RoI by RoI by `in_numpy` where there is no library.

    `maps` come from `checked_maps`. `in_numpy` takes a float32 map [H, W, C] and a RoI without NaN and gives a float32
    row. RoIs with NaN in them, and rows beyond an image's count, are 0. `fields`: of the function's structure, but for
    those that all these functions have. ValueError for other types or shapes of `rois`, `counts` and `out`.
    """
    images, height, width, channels = maps.shape
    rois = arrays.checked("rois", rois, np.float32, (images, None, 4))
    rows = rois.shape[1]
    counts = arrays.counts_in_range(counts, images, rows)
    out = arrays.output("out", out, maps.dtype if dtype is None else np.dtype(dtype), (images, rows, *row_shape))
    out_type = arrays.kind_of("dtype", out)
    threads = arrays.thread_count(threads)
    native = library.handle()
    if native is not None:
        run(
            native,
            function,
            rois=rois.ctypes.data,
            counts=counts.ctypes.data,
            out=out.ctypes.data,
            images=images,
            rows=rows,
            channels=channels,
            height=height,
            width=width,
            out_type=out_type,
            threads=threads,
            **fields,
        )
        return out
    out[:] = np.zeros((), out.dtype)
    for image, count in enumerate(counts):
        wide = arrays.widened(maps[image])
        for row in range(count):
            if not np.isnan(rois[image, row]).any():
                out[image, row] = arrays.narrowed(in_numpy(wide, rois[image, row]), out.dtype)
    return out
