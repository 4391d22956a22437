"""Pasting RoI masks into the photo: dense, as crops, or straight to COCO's run-length encoding (plugins/mask_paste)."""

from __future__ import annotations

import ctypes

import numpy as np

from . import arrays, library
from .bilinear import linear_taps
from .calls import run
from .rle import rle_text

THRESHOLD = 0.5
_LARGEST = 1e9  # px


def paste_probabilities(
    roi_mask: np.ndarray, box: np.ndarray, image_size: tuple[int, int]
) -> tuple[int, int, np.ndarray]:
    """One RoI's mask at the resolution of the photo, in NumPy: (y, x, float32 [h, w]), the part inside the photo.

    The arithmetic of torchvision's `paste_masks_in_image` (Mask R-CNN, arXiv:1703.06870, section 3.1: the M × M mask is
    resized to the RoI's size): a frame of zeros one pixel wide, the box enlarged by (M + 2) / M about its centre, its
    corners cut to whole numbers, bilinear with half-pixel centres. Everything outside the returned part is zero.

    Args:
        roi_mask: float [M, M] probabilities. box: xyxy in pixels of the photo. image_size: (height, width).
    """
    if roi_mask.ndim != 2 or roi_mask.shape[0] != roi_mask.shape[1]:
        raise ValueError(f"a RoI's mask is [M, M], got {list(roi_mask.shape)}")
    side = roi_mask.shape[0]
    x0, y0, x1, y1 = _expanded(np.asarray(box, np.float32), np.float32((side + 2) / side))
    height, width = max(y1 - y0 + 1, 1), max(x1 - x0 + 1, 1)
    top, left = max(y0, 0), max(x0, 0)
    bottom, right = max(min(y1 + 1, image_size[0]), top), max(min(x1 + 1, image_size[1]), left)
    padded = np.pad(np.asarray(roi_mask, np.float32), 1)
    # Taps of the visible part only: a huge box that sticks out of the photo costs no more than the photo.
    low, high, weight = linear_taps(side + 2, width, left - x0, right - x0)
    rows = padded[:, low] * (1 - weight) + padded[:, high] * weight  # [M + 2, w]
    low, high, weight = linear_taps(side + 2, height, top - y0, bottom - y0)
    return top, left, rows[low] * (1 - weight)[:, None] + rows[high] * weight[:, None]


def _expanded(box: np.ndarray, scale: np.float32) -> tuple[int, int, int, int]:
    half = np.float32(0.5)
    half_size = (box[2:] - box[:2]) * half * scale
    centre = (box[2:] + box[:2]) * half
    x0, y0, x1, y1 = (int(value) for value in np.concatenate([centre - half_size, centre + half_size]))
    return x0, y0, x1, y1


def paste_masks(
    roi_masks: np.ndarray,
    boxes: np.ndarray,
    image_size: tuple[int, int],
    *,
    out: np.ndarray | None = None,
    threads: int | None = None,
) -> np.ndarray:
    """All masks dense: uint8 [D, H, W], 1 where the probability is above 0.5.

    Args:
        roi_masks: float32 [D, M, M] probabilities. boxes: float32 [D, 4], xyxy in pixels of the photo.
        image_size: (height, width) of the photo.
        out: uint8 [D, H, W] to write to, whatever it holds. None: a new array, whose empty parts cost nothing.
        threads: for masks and strips of them; None: one per usable core. The result does not depend on it.

    Raises:
        ValueError: another type or shape, or a box that is not finite or reaches beyond 1e9 px.
    """
    roi_masks, boxes, (height, width) = _checked(roi_masks, boxes, image_size)
    cleared = out is None
    shape = (len(boxes), height, width)
    out = np.zeros(shape, np.uint8) if out is None else arrays.output("out", out, np.uint8, shape)
    native = library.handle()
    if native is not None:
        _run_paste(native, roi_masks, boxes, (height, width), None, out, cleared, threads)
        return out
    out[:] = 0
    for mask, roi_mask, box in zip(out, roi_masks, boxes, strict=True):
        y, x, part = paste_probabilities(roi_mask, box, (height, width))
        mask[y : y + part.shape[0], x : x + part.shape[1]] = part > THRESHOLD
    return out


def paste_crops(
    roi_masks: np.ndarray, boxes: np.ndarray, image_size: tuple[int, int], *, threads: int | None = None
) -> list[tuple[int, int, np.ndarray]]:
    """Of each mask only the part that can hold pixels: (y, x, bool [h, w]), its corner at (y, x) of the photo.

    Arguments and errors as of `paste_masks`.
    """
    roi_masks, boxes, size = _checked(roi_masks, boxes, image_size)
    native = library.handle()
    if native is None:
        pasted = [paste_probabilities(mask, box, size) for mask, box in zip(roi_masks, boxes, strict=True)]
        return [(y, x, part > THRESHOLD) for y, x, part in pasted]
    extents = np.empty((len(boxes), 4), np.int64)
    run(
        native,
        "extents",
        boxes=boxes.ctypes.data,
        extents=extents.ctypes.data,
        count=len(boxes),
        side=roi_masks.shape[1],
        height=size[0],
        width=size[1],
    )
    ends = np.cumsum(extents[:, 2] * extents[:, 3])
    offsets = np.concatenate([np.zeros(1, np.int64), ends])[:-1]
    pixels = np.empty(int(ends[-1]) if len(ends) else 0, np.uint8)
    _run_paste(native, roi_masks, boxes, size, offsets, pixels, False, threads)
    crops = pixels.view(bool)
    return [
        (y, x, crops[start : start + h * w].reshape(h, w))
        for start, (y, x, h, w) in zip(offsets.tolist(), extents.tolist(), strict=True)
    ]


def paste_rles(
    roi_masks: np.ndarray, boxes: np.ndarray, image_size: tuple[int, int], *, threads: int | None = None
) -> list[str]:
    """The masks as COCO's compressed run-length encodings, byte for byte pycocotools'; their size is `image_size`.

    Natively without the pixels in between. Arguments and errors as of `paste_masks`.
    """
    roi_masks, boxes, size = _checked(roi_masks, boxes, image_size)
    native = library.handle()
    if native is None:
        crops = paste_crops(roi_masks, boxes, size)
        return [rle_text(mask, y, x, size) for y, x, mask in crops]
    ends = np.zeros(len(boxes), np.int64)
    capacity = 2048 * len(boxes)
    while True:
        text = np.empty(capacity, np.uint8)
        run(
            native,
            "rle",
            masks=roi_masks.ctypes.data,
            boxes=boxes.ctypes.data,
            text=text.ctypes.data,
            ends=ends.ctypes.data,
            capacity=capacity,
            threshold=THRESHOLD,
            count=len(boxes),
            side=roi_masks.shape[1],
            height=size[0],
            width=size[1],
            threads=arrays.thread_count(threads),
        )
        wanted = int(ends[-1]) if len(ends) else 0
        if wanted <= capacity:
            break
        capacity = wanted
    whole = text[:wanted].tobytes().decode("ascii")
    return (
        [whole[start:end] for start, end in zip([0, *ends.tolist()[:-1]], ends.tolist(), strict=True)] if wanted else []
    )


def _checked(
    roi_masks: np.ndarray, boxes: np.ndarray, image_size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray, tuple[int, int]]:
    roi_masks = arrays.checked("roi_masks", roi_masks, np.float32, (None, None, None))
    if roi_masks.shape[1] != roi_masks.shape[2] or roi_masks.shape[1] < 1:
        raise ValueError(f"roi_masks: expected [D, M, M] with M ≥ 1, got {list(roi_masks.shape)}")
    boxes = arrays.checked("boxes", boxes, np.float32, (len(roi_masks), 4))
    if not (np.abs(boxes) < _LARGEST).all():
        raise ValueError("boxes: expected finite pixels of the photo, below 1e9")
    height, width = (int(side) for side in image_size)
    if height < 0 or width < 0:
        raise ValueError(f"image_size: expected (height, width) ≥ 0, got {image_size}")
    return roi_masks, boxes, (height, width)


def _run_paste(
    native: ctypes.CDLL,
    roi_masks: np.ndarray,
    boxes: np.ndarray,
    size: tuple[int, int],
    offsets: np.ndarray | None,
    out: np.ndarray,
    cleared: bool,
    threads: int | None,
) -> None:
    run(
        native,
        "paste",
        masks=roi_masks.ctypes.data,
        boxes=boxes.ctypes.data,
        offsets=None if offsets is None else offsets.ctypes.data,
        out=out.ctypes.data,
        threshold=THRESHOLD,
        count=len(boxes),
        side=roi_masks.shape[1],
        height=size[0],
        width=size[1],
        cleared=cleared,
        threads=arrays.thread_count(threads),
    )
