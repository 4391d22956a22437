"""What pasting a mask computes, in plain loops (He et al., Mask R-CNN, arXiv:1703.06870, section 3.1; the arithmetic of
torchvision's `paste_masks_in_image`)."""

import numpy as np

from ..resize.reference import linear_tap


def paste_mask(
    roi_mask: np.ndarray, box: np.ndarray, image_size: tuple[int, int], threshold: float = 0.5
) -> np.ndarray:
    """`roi_mask` float32 [M, M] (probabilities), `box` float32 [4] (photo px) -> uint8 [H, W], 1 above `threshold`

    The mask gets a frame of zeros one cell wide, the box is enlarged by (M + 2) / M about its centre, its corners cut
    to whole pixels; the framed mask is resized to it bilinearly (half-pixel centres), first across, then down, each
    product and each sum rounded to float32.
    """
    side = len(roi_mask)
    framed = np.zeros((side + 2, side + 2), np.float32)
    framed[1:-1, 1:-1] = roi_mask
    half, scale = np.float32(0.5), np.float32((side + 2) / side)
    half_size = (box[2:] - box[:2]) * half * scale
    center = (box[2:] + box[:2]) * half
    (x0, y0), (x1, y1) = ([int(v) for v in corner] for corner in (center - half_size, center + half_size))
    height, width = max(y1 - y0 + 1, 1), max(x1 - x0 + 1, 1)
    out = np.zeros(image_size, np.uint8)
    for y in range(max(y0, 0), min(y1 + 1, image_size[0])):
        top, bottom, down = linear_tap(y - y0, side + 2, height)
        for x in range(max(x0, 0), min(x1 + 1, image_size[1])):
            left, right, across = linear_tap(x - x0, side + 2, width)
            upper = framed[top, left] * (1 - across) + framed[top, right] * across
            lower = framed[bottom, left] * (1 - across) + framed[bottom, right] * across
            out[y, x] = upper * (1 - down) + lower * down > threshold
    return out
