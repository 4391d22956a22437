"""RoIAlign over one or more feature levels, channels last (RegionRoiAlign: plugins/roi_align)."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from . import arrays, library
from .boxes import whole
from .calls import run

_LEVEL_EPSILON = 1e-6
_MOST_SAMPLES = 65536


def level_thresholds(spatial_scales: Sequence[float], canonical_scale: float, canonical_level: int) -> list[float]:
    """RoI areas (canvas px²) at which the next coarser level begins; one fewer than there are strides.

    torchvision's LevelMapper, solved for the area. ValueError where a stride between the maps has none.
    """
    finest, coarsest = (round(-math.log2(spatial_scales[i])) for i in (0, -1))
    if not 0 <= coarsest - finest < len(spatial_scales):
        strides = ", ".join(f"{1 / scale:g}" for scale in spatial_scales)
        raise ValueError(f"expected maps from fine to coarse with no stride left out, found strides {strides}")
    levels = range(finest + 1, coarsest + 1)
    return [(canonical_scale * 2.0 ** (k - canonical_level - _LEVEL_EPSILON)) ** 2 for k in levels]


def roi_align(
    features: Sequence[np.ndarray],
    rois: np.ndarray,
    counts: np.ndarray,
    *,
    spatial_scales: Sequence[float],
    output_size: tuple[int, int],
    sampling_ratio: int = 2,
    aligned: bool = False,
    mode: str = "avg",
    canonical_scale: float = 224.0,
    canonical_level: int = 4,
    channels_last: bool = False,
    dtype: np.dtype | type | None = None,
    out: np.ndarray | None = None,
    threads: int | None = None,
) -> np.ndarray:
    """RoIAlign (He et al., Mask R-CNN, arXiv:1703.06870, section 3), each RoI from the level its area selects (FPN,
    arXiv:1612.03144, equation 1).

    Each RoI is read in h × w bins of sampling_ratio² bilinear samples (ratio ≤ 0: ceil(RoI side / bins), at most
    65536), averaged or maximised. Samples further than one cell outside the map are 0.

    Args:
        features: levels, fine to coarse, [N, Hl, Wl, C], float32 or bf16 (ml_dtypes' type, or the bits as uint16).
        rois: float32 [N, P, 4], xyxy in pixels of the canvas; counts: int32 [N], how many of each image's are real.
        spatial_scales: map cells per pixel of the canvas, one for each level.
        output_size: (h, w). mode: "avg" or "max".
        channels_last: give [N, P, h, w, C] instead of [N, P, C, h, w].
        dtype: of the result, float32 or bf16; None: the features' own. Sums are float32 in any case.
        out: an array of that shape and type to write to, whatever it holds.
        threads: for RoIs; None: one per usable core. The result does not depend on it.

    Returns:
        [N, P, C, h, w] or [N, P, h, w, C]; rows from counts[n] on are 0.

    Raises:
        ValueError: another type or shape, or an option out of its range.
    """
    if not len(features) == len(spatial_scales) > 0:
        raise ValueError(f"expected a spatial scale for each level, got {len(features)} and {len(spatial_scales)}")
    feature_type = arrays.kind_of("features", features[0])
    images, channels = features[0].shape[0], features[0].shape[-1]
    features = [
        arrays.checked(f"features[{i}]", level, features[0].dtype, (images, None, None, channels))
        for i, level in enumerate(features)
    ]
    rois = arrays.checked("rois", rois, np.float32, (images, None, 4))
    rows = rois.shape[1]
    counts = arrays.counts_in_range(counts, images, rows)
    height, width = (whole("output_size", side, 1) for side in output_size)
    if mode not in ("avg", "max"):
        raise ValueError(f"mode: expected 'avg' or 'max', got {mode!r}")
    ratio = max(int(sampling_ratio), 0)
    if ratio > _MOST_SAMPLES:
        raise ValueError(f"sampling_ratio: expected at most {_MOST_SAMPLES}, got {sampling_ratio}")
    thresholds = np.array(level_thresholds(spatial_scales, canonical_scale, canonical_level), np.float32)
    shape = (images, rows, height, width, channels) if channels_last else (images, rows, channels, height, width)
    out = arrays.output("out", out, features[0].dtype if dtype is None else np.dtype(dtype), shape)
    out_type = arrays.kind_of("dtype", out)
    threads = arrays.thread_count(threads)
    native = library.handle()
    if native is None:
        axis_options = ((height, width), ratio, aligned)
        _in_numpy(features, rois, counts, spatial_scales, thresholds, axis_options, mode, channels_last, out)
        return out
    heights, widths = ((ctypes.c_int32 * len(features))(*[level.shape[axis] for level in features]) for axis in (1, 2))
    scales = (ctypes.c_double * len(features))(*spatial_scales)
    run(
        native,
        "roi_align",
        features=ctypes.addressof(levels := arrays.pointers(features)),
        heights=ctypes.addressof(heights),
        widths=ctypes.addressof(widths),
        spatial_scales=ctypes.addressof(scales),
        area_thresholds=thresholds.ctypes.data,
        rois=rois.ctypes.data,
        counts=counts.ctypes.data,
        out=out.ctypes.data,
        thresholds=len(thresholds),
        images=images,
        rows=rows,
        channels=channels,
        out_height=height,
        out_width=width,
        sampling_ratio=ratio,
        aligned=aligned,
        maximum=mode == "max",
        out_channels_last=channels_last,
        feature_type=feature_type,
        out_type=out_type,
        threads=threads,
    )
    del levels  # alive until here
    return out


def _in_numpy(
    features: Sequence[np.ndarray],
    rois: np.ndarray,
    counts: np.ndarray,
    scales: Sequence[float],
    thresholds: np.ndarray,
    axis_options: tuple[tuple[int, int], int, bool],
    mode: str,
    channels_last: bool,
    out: np.ndarray,
) -> None:
    output_size, ratio, aligned = axis_options
    wide = [arrays.widened(level) for level in features]
    out[:] = np.zeros((), out.dtype)
    for image, count in enumerate(counts):
        for row in range(count):
            roi = rois[image, row]
            with np.errstate(invalid="ignore", over="ignore"):  # what lies at inf or NaN is read as zero
                level = int(((roi[2] - roi[0]) * (roi[3] - roi[1]) >= thresholds).sum())
                feature = wide[level][image]
                box = roi.astype(np.float64) * scales[level] - (0.5 if aligned else 0.0)
                down, across = (
                    _samples(box[axis], box[axis + 2], output_size[1 - axis], ratio, aligned, feature.shape[1 - axis])
                    for axis in (1, 0)
                )
                pooled = np.array([[_bin(feature, y, x, mode) for x in across] for y in down], np.float32)  # [h, w, C]
            out[image, row] = arrays.narrowed(pooled if channels_last else pooled.transpose(2, 0, 1), out.dtype)


@dataclass(frozen=True)
class _AxisSamples:
    """Of one bin along one axis: how many samples, and of those inside the map cells and the upper cell's weight."""

    number: int
    low: np.ndarray
    high: np.ndarray
    weight: np.ndarray


def _samples(low: float, high: float, bins: int, ratio: int, aligned: bool, size: int) -> list[_AxisSamples]:
    length = high - low if aligned or not high - low < 1 else 1.0
    step = length / bins
    number = ratio
    if ratio <= 0:
        number = 0 if not step > 0 else _MOST_SAMPLES if step >= _MOST_SAMPLES else math.ceil(step)
    found = []
    for index in range(bins):
        position = low + (index + (np.arange(number) + 0.5) / max(number, 1)) * step
        position = np.clip(position[(position >= -1) & (position <= size)], 0.0, size - 1.0)
        cell = position.astype(np.int64)
        found.append(_AxisSamples(number, cell, np.minimum(cell + 1, size - 1), position - cell))
    return found


def _bin(feature: np.ndarray, y: _AxisSamples, x: _AxisSamples, mode: str) -> np.ndarray:
    """One bin of a map [H, W, C] -> float32 [C]."""
    if not y.low.size * x.low.size * feature.size:
        return np.zeros(feature.shape[2], np.float32)
    dy, dx = y.weight.astype(np.float32)[:, None, None], x.weight.astype(np.float32)[None, :, None]
    one = np.float32(1)
    upper = feature[np.ix_(y.low, x.low)] * (one - dx) + feature[np.ix_(y.low, x.high)] * dx
    lower = feature[np.ix_(y.high, x.low)] * (one - dx) + feature[np.ix_(y.high, x.high)] * dx
    values = upper * (one - dy) + lower * dy  # [ny, nx, C]
    if mode == "avg":
        return (values.sum((0, 1), dtype=np.float64) / (y.number * x.number)).astype(np.float32)
    largest = values.max((0, 1))
    return largest if values.shape[:2] == (y.number, x.number) else np.maximum(largest, np.float32(0))
