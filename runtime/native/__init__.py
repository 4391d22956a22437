"""Region ops on the CPU, compiled from plugins/*/cpu.cpp and called through ctypes; without the library, in NumPy.

Every op takes and gives NumPy arrays, checks types, shapes and ranges (ValueError), copies an input only where it is
not in C order, writes to `out` where one is given, and may be called from several threads at once: it holds neither the
GIL nor a lock while it computes. The number of `threads` never changes a result. Which variant computes (AVX-512, AVX2,
baseline, NumPy) changes it in the last bits of `roi_align` only.
"""

from __future__ import annotations

from .arrays import narrowed, widened
from .bilinear import resize_bilinear
from .detections import DetectionArrays, detections
from .library import NUMPY, About, about, usable_variants, using
from .masks import paste_crops, paste_masks, paste_rles
from .max_unpool import MaxPooled, max_pool, max_unpool
from .merge import MergedArrays, merge
from .nms import nms
from .proposals import Proposals, proposals
from .pyramid_pool import pyramid_pool, windows_of
from .roi_align import roi_align
from .roi_pool import cells_of, roi_pool
from .warp import warp

__all__ = [
    "NUMPY",
    "About",
    "DetectionArrays",
    "MaxPooled",
    "MergedArrays",
    "Proposals",
    "about",
    "cells_of",
    "detections",
    "max_pool",
    "max_unpool",
    "merge",
    "narrowed",
    "nms",
    "paste_crops",
    "paste_masks",
    "paste_rles",
    "proposals",
    "pyramid_pool",
    "resize_bilinear",
    "roi_align",
    "roi_pool",
    "usable_variants",
    "using",
    "warp",
    "widened",
    "windows_of",
]
