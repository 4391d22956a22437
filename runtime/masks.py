"""Instance masks: pasting M × M probabilities into the photo, and COCO's run-length encoding (RLE), in NumPy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .image import linear_taps

MASK_THRESHOLD = 0.5


@dataclass(frozen=True)
class Crop:
    """The part of a mask that can hold pixels: `mask` bool [h, w], its top left corner at (`y`, `x`) of the photo."""

    y: int
    x: int
    mask: np.ndarray


def paste_probabilities(
    roi_mask: np.ndarray, box: np.ndarray, image_size: tuple[int, int]
) -> tuple[int, int, np.ndarray]:
    """One RoI's mask at the resolution of the photo: (y, x, float32 [h, w]), the part inside the photo.

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


def paste_crop(roi_mask: np.ndarray, box: np.ndarray, image_size: tuple[int, int]) -> Crop:
    """`paste_probabilities`, thresholded: a pixel belongs to the object where its probability is above 0.5."""
    y, x, probabilities = paste_probabilities(roi_mask, box, image_size)
    return Crop(y, x, probabilities > MASK_THRESHOLD)


def full_mask(crop: Crop, image_size: tuple[int, int]) -> np.ndarray:
    """The crop in its place: bool [H, W]."""
    mask = np.zeros(image_size, bool)
    mask[crop.y : crop.y + crop.mask.shape[0], crop.x : crop.x + crop.mask.shape[1]] = crop.mask
    return mask


def rle_encode(mask: np.ndarray) -> dict[str, Any]:
    """bool or 0/1 [H, W] -> {"size": [H, W], "counts": str}, the compressed RLE of pycocotools, byte for byte."""
    if mask.ndim != 2:
        raise ValueError(f"a mask is [H, W], got {list(mask.shape)}")
    return rle_encode_crop(Crop(0, 0, mask != 0), (mask.shape[0], mask.shape[1]))


def rle_encode_crop(crop: Crop, image_size: tuple[int, int]) -> dict[str, Any]:
    """The RLE of `full_mask(crop, image_size)` without making it: runs go down the columns, as in COCO."""
    height, width = image_size
    rows, columns = crop.mask.shape
    framed = np.zeros((columns, rows + 2), np.int8)
    framed[:, 1:-1] = crop.mask.T
    step = np.diff(framed, axis=1)  # +1 where a run begins, −1 behind its end
    starts = _flat(np.argwhere(step == 1), crop, height)
    ends = _flat(np.argwhere(step == -1), crop, height)
    joined = np.flatnonzero(ends[:-1] == starts[1:])  # from the bottom of one column to the top of the next
    starts, ends = np.delete(starts, joined + 1), np.delete(ends, joined)
    borders = np.empty(2 * len(starts), np.int64)
    borders[0::2], borders[1::2] = starts, ends
    total = height * width
    edges = np.concatenate([[0], borders] if len(borders) and borders[-1] == total else [[0], borders, [total]])
    counts = np.diff(edges) if total else np.zeros(1, np.int64)
    return {"size": [height, width], "counts": _compress(counts)}


def _flat(places: np.ndarray, crop: Crop, height: int) -> np.ndarray:
    return (places[:, 0] + crop.x) * height + places[:, 1] + crop.y


def rle_decode(rle: Mapping[str, Any]) -> np.ndarray:
    """COCO RLE, compressed (str or bytes) or a list of counts -> bool [H, W]. ValueError if it does not add up."""
    height, width = rle["size"]
    counts = _counts(rle)
    values = np.zeros(len(counts), bool)
    values[1::2] = True
    return np.repeat(values, counts).reshape(width, height).T


def rle_area(rle: Mapping[str, Any]) -> int:
    """Pixels of the object in a COCO RLE, without decoding it."""
    return int(_counts(rle)[1::2].sum())


def _counts(rle: Mapping[str, Any]) -> np.ndarray:
    height, width = rle["size"]
    given = rle["counts"]
    if isinstance(given, str):
        given = given.encode("ascii", "replace")
    counts = _decompress(given) if isinstance(given, bytes) else np.asarray(given, np.int64)
    if counts.ndim != 1 or (counts < 0).any() or counts.sum() != height * width:
        raise ValueError(f"RLE: expected runs that add up to {height} × {width} pixels, found {int(counts.sum())}")
    return counts


def _compress(counts: np.ndarray) -> str:
    """COCO's text: from the fourth on, each count minus the one two before, in groups of five bits, low first."""
    values = counts.astype(np.int64)
    values[3:] -= counts[1:-2]
    groups = []
    going = np.ones(len(values), bool)
    while going.any():
        low = values & 0x1F
        values = values >> 5  # keeps the sign
        more = going & np.where(low & 0x10, values != -1, values != 0)
        groups.append(np.where(going, low | np.where(more, 0x20, 0), -1))
        going = more
    text = np.stack(groups, axis=1).ravel() if groups else np.zeros(0, np.int64)
    return (text[text >= 0] + 48).astype(np.uint8).tobytes().decode("ascii")


def _decompress(text: bytes) -> np.ndarray:
    codes = np.frombuffer(text, np.uint8).astype(np.int64) - 48
    if ((codes < 0) | (codes > 0x3F)).any() or (len(codes) and codes[-1] & 0x20):
        raise ValueError("RLE: expected COCO's compressed counts, found other characters or an open end")
    if not len(codes):
        return np.zeros(0, np.int64)
    last = np.flatnonzero(codes & 0x20 == 0)
    first = np.concatenate([[0], last[:-1] + 1])
    length = last - first + 1
    if length.max() > 12:
        raise ValueError("RLE: a count of more than 60 bits")
    shift = 5 * (np.arange(len(codes)) - np.repeat(first, length))
    values = np.add.reduceat((codes & 0x1F) << shift, first)
    values -= np.where(codes[last] & 0x10, np.int64(1) << (5 * length), 0)
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values
