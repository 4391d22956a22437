"""What RegionWarp computes, in plain loops (Girshick et al., R-CNN, arXiv:1311.2524, section 2.1 and appendix A)."""

import numpy as np


def warp(
    images: np.ndarray, rois: np.ndarray, counts: np.ndarray, *, output_size: tuple[int, int], context: int
) -> np.ndarray:
    """`images` [N, C, H, W], normalised; `rois` float32 [N, P, 4] (xyxy, canvas px); `counts` int32 [N].

    Each RoI is stretched to the inner (h − 2·context) × (w − 2·context) pixels of the output, whatever its shape; the
    `context` pixels around them show what is around the RoI, at the same scale. Bilinear between the centres of the
    four nearest pixels, those at the border standing for what is beyond them; without antialias. A sample outside the
    image is 0, which is the mean of normalised images. A RoI is at least one pixel wide and high, from its left upper
    corner; one with NaN in it is 0.

    Returns [N, P, C, h, w] in the images' type; rows from counts[n] on are 0.
    """
    check(output_size, context)
    shape = rois.shape[:2]
    out = np.zeros((*shape, images.shape[1], *output_size), images.dtype)
    for n in range(shape[0]):
        image = images[n].astype(np.float64)
        for p in range(int(counts[n])):
            if np.isnan(rois[n, p]).any():
                continue
            left, top, right, bottom = rois[n, p].astype(np.float64)
            for i in range(output_size[0]):
                y = position(top, bottom, i, output_size[0], context)
                for j in range(output_size[1]):
                    x = position(left, right, j, output_size[1], context)
                    if 0 <= y <= image.shape[1] and 0 <= x <= image.shape[2]:
                        out[n, p, :, i, j] = _bilinear(image, y - 0.5, x - 0.5)
    return out


def check(output_size: tuple[int, int], context: int) -> None:
    """ValueError where nothing is left for the RoI itself."""
    if context < 0 or min(output_size) <= 2 * context:
        raise ValueError(
            f"RegionWarp: expected a context of 0 to less than half of the output, got {context} px for "
            f"{output_size[0]} × {output_size[1]}"
        )


def position(low: float, high: float, index: int, size: int, context: int) -> float:
    """Where output pixel `index` of `size` is sampled, in px from the image's edge: pixel k reaches from k to k + 1."""
    with np.errstate(invalid="ignore"):  # infinite RoIs: NaN, which is outside
        step = max(high - low, 1.0) / (size - 2 * context)
        return low + (index + 0.5 - context) * step


def _bilinear(image: np.ndarray, y: float, x: float) -> np.ndarray:
    """Image [C, H, W] at (y, x), in pixels from the centre of the first -> [C]."""
    y, x = min(max(y, 0.0), image.shape[1] - 1.0), min(max(x, 0.0), image.shape[2] - 1.0)
    top, left = int(y), int(x)
    bottom, right = min(top + 1, image.shape[1] - 1), min(left + 1, image.shape[2] - 1)
    dy, dx = y - top, x - left
    upper = image[:, top, left] * (1 - dx) + image[:, top, right] * dx
    lower = image[:, bottom, left] * (1 - dx) + image[:, bottom, right] * dx
    return upper * (1 - dy) + lower * dy
