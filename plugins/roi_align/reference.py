"""What RegionRoiAlign computes, in plain loops (He et al., Mask R-CNN, arXiv:1703.06870, section 3; levels as in
Lin et al., Feature Pyramid Networks, arXiv:1612.03144, equation 1)."""

import math
from collections.abc import Sequence

import numpy as np

LEVEL_EPSILON = 1e-6


def level_thresholds(spatial_scales: Sequence[float], canonical_scale: float, canonical_level: int) -> list[float]:
    """RoI areas (canvas px²) at which the next coarser level begins; one fewer than there are strides.

    floor(level0 + log2(sqrt(area) / scale0) + 1e-6) >= k, solved for the area: comparing areas gives every backend
    the same level, where its own log2 might round to the other side. As in torchvision's LevelMapper the levels are
    the strides from the first map's to the last map's: of two maps of one stride (MobileNetV3) only the first is read.
    ValueError where a stride between them has no map: torchvision silently gives zeros to its RoIs.
    """
    finest, coarsest = (round(-math.log2(spatial_scales[i])) for i in (0, -1))
    if not 0 <= coarsest - finest < len(spatial_scales):
        strides = ", ".join(f"{1 / scale:g}" for scale in spatial_scales)
        raise ValueError(f"expected maps from fine to coarse with no stride left out, found strides {strides}")
    levels = range(finest + 1, coarsest + 1)
    return [(canonical_scale * 2.0 ** (k - canonical_level - LEVEL_EPSILON)) ** 2 for k in levels]


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
) -> np.ndarray:
    """`features`: levels [N, C, Hl, Wl]; `rois` float32 [N, P, 4] (xyxy, canvas px); `counts` int32 [N].

    Each RoI is read from the level that its area selects, in h × w bins of sampling_ratio² bilinear samples
    (ratio <= 0: ceil(roi side / bins)), averaged or maximised. Samples further than one cell outside the map are 0.
    Returns [N, P, C, h, w] in the features' type; rows from counts[n] on are 0.
    """
    thresholds = np.array(level_thresholds(spatial_scales, canonical_scale, canonical_level), np.float32)
    images, most = rois.shape[:2]
    height, width = output_size
    out = np.zeros((images, most, features[0].shape[1], height, width), np.float64)
    for n in range(images):
        for p in range(int(counts[n])):
            roi = rois[n, p]
            level = int(((roi[2] - roi[0]) * (roi[3] - roi[1]) >= thresholds).sum())
            box = roi.astype(np.float64) * spatial_scales[level] - (0.5 if aligned else 0.0)
            roi_w, roi_h = box[2] - box[0], box[3] - box[1]
            if not aligned:
                roi_w, roi_h = max(roi_w, 1.0), max(roi_h, 1.0)
            bin_h, bin_w = roi_h / height, roi_w / width
            ny = sampling_ratio if sampling_ratio > 0 else math.ceil(bin_h)
            nx = sampling_ratio if sampling_ratio > 0 else math.ceil(bin_w)
            for i in range(height):
                for j in range(width):
                    samples = [
                        _bilinear(
                            features[level][n],
                            box[1] + (i + (sy + 0.5) / ny) * bin_h,
                            box[0] + (j + (sx + 0.5) / nx) * bin_w,
                        )
                        for sy in range(ny)
                        for sx in range(nx)
                    ]
                    if samples:
                        out[n, p, :, i, j] = np.mean(samples, 0) if mode == "avg" else np.max(samples, 0)
    return out.astype(features[0].dtype)


def _bilinear(feature: np.ndarray, y: float, x: float) -> np.ndarray:
    """Feature [C, H, W] at (y, x), in cells -> [C]."""
    height, width = feature.shape[1:]
    if y < -1 or y > height or x < -1 or x > width:
        return np.zeros(feature.shape[0])
    y, x = min(max(y, 0.0), height - 1.0), min(max(x, 0.0), width - 1.0)
    top, left = int(y), int(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    dy, dx = y - top, x - left
    f = feature.astype(np.float64)
    upper = f[:, top, left] * (1 - dx) + f[:, top, right] * dx
    lower = f[:, bottom, left] * (1 - dx) + f[:, bottom, right] * dx
    return upper * (1 - dy) + lower * dy
