"""COCO segmentations (polygons, RLE) checked in Python before pycocotools' C code sees them, then made into RLEs."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from .errors import DataError
from .sample import RLE


def check_segmentation(segmentation: Any, size: tuple[int, int], where: str) -> list | dict | None:
    """What is usable of an annotation's `segmentation`: polygons of at least three points, or an RLE; None: nothing.

    size: height, width of the image. Raises DataError (`where` begins the message) for an RLE of another size, runs
    that do not cover the image, or coordinates far outside it, for which the C code would ask for endless memory.
    """
    if isinstance(segmentation, dict):
        return _check_rle(segmentation, size, where)
    if not segmentation:
        return None
    if not isinstance(segmentation, list) or not all(isinstance(polygon, list) for polygon in segmentation):
        raise DataError(f"{where}: expected polygons or an RLE as segmentation, found {type(segmentation).__name__}")
    height, width = size
    polygons = []
    for polygon in segmentation:
        if len(polygon) % 2 or not all(type(value) in (int, float) and math.isfinite(value) for value in polygon):
            raise DataError(f"{where}: expected a polygon as finite numbers x, y, x, y, …, found {str(polygon)[:60]}")
        xs, ys = polygon[0::2], polygon[1::2]
        if polygon and (min(xs) < -width or max(xs) > 2 * width or min(ys) < -height or max(ys) > 2 * height):
            raise DataError(f"{where}: a polygon reaches far outside its image of {width}×{height} pixels")
        if len(polygon) >= 6:
            polygons.append(polygon)
    return polygons or None


def rle_of(segmentation: list | dict, size: tuple[int, int]) -> RLE:
    """A checked segmentation as one compressed RLE, as pycocotools makes it (`COCO.annToRLE`)."""
    height, width = size
    if isinstance(segmentation, list):
        return _as_text(coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width)))
    if isinstance(segmentation["counts"], list):
        return _as_text(coco_mask.frPyObjects(segmentation, height, width))
    return _as_text(segmentation)


def rle_from_mask(mask: np.ndarray) -> RLE:
    """mask: bool [H, W]."""
    return _as_text(coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8)))


def _as_text(rle: RLE) -> RLE:
    """With `counts` as str, which JSON can hold; pycocotools gives bytes and takes either."""
    counts = rle["counts"]
    return {"size": list(rle["size"]), "counts": counts.decode("ascii") if isinstance(counts, bytes) else counts}


def _check_rle(rle: dict, size: tuple[int, int], where: str) -> dict:
    if list(rle.get("size") or ()) != list(size):
        raise DataError(
            f"{where}: the mask's RLE size is {rle.get('size')}, its image has [height, width] = {list(size)}; "
            "the mask belongs to another image, or the image was resized"
        )
    counts = rle.get("counts")
    if isinstance(counts, list):
        runs = counts if all(type(run) is int for run in counts) else [-1]
    elif isinstance(counts, str | bytes):
        runs = _runs_of(counts.encode("utf-8", "replace") if isinstance(counts, str) else counts)
    else:
        runs = [-1]
    if min(runs, default=-1) < 0 or sum(runs) != size[0] * size[1]:
        raise DataError(f"{where}: the runs of the mask's RLE do not cover its image of {size[1]}×{size[0]} pixels")
    return rle


def _runs_of(counts: bytes) -> list[int]:
    """Run lengths of a compressed RLE (cocoapi maskApi.c, rleFrString); [-1] for what is none."""
    runs: list[int] = []
    position = 0
    while position < len(counts):
        value = shift = 0
        more = True
        while more:
            if position == len(counts) or not 48 <= counts[position] < 48 + 64 or shift > 30:
                return [-1]
            bits = counts[position] - 48
            value |= (bits & 31) << shift
            more = bool(bits & 32)
            position += 1
            shift += 5
        if bits & 16:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
    return runs
