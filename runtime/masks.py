"""Instance masks: pasting M × M probabilities into the photo, and COCO's run-length encoding (RLE)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import native
from .native.rle import rle_text


@dataclass(frozen=True)
class Crop:
    """The part of a mask that can hold pixels: `mask` bool [h, w], its top left corner at (`y`, `x`) of the photo."""

    y: int
    x: int
    mask: np.ndarray


def paste_crop(roi_mask: np.ndarray, box: np.ndarray, image_size: tuple[int, int]) -> Crop:
    """One RoI's mask in the photo (torchvision's `paste_masks_in_image`): pixels whose probability is above 0.5.

    Args:
        roi_mask: float [M, M] probabilities. box: xyxy in pixels of the photo. image_size: (height, width).
    """
    if roi_mask.ndim != 2 or roi_mask.shape[0] != roi_mask.shape[1]:
        raise ValueError(f"a RoI's mask is [M, M], got {list(roi_mask.shape)}")
    masks, boxes = np.asarray(roi_mask, np.float32)[None], np.asarray(box, np.float32)[None]
    return Crop(*native.paste_crops(masks, boxes, image_size, threads=1)[0])


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
    return {"size": list(image_size), "counts": rle_text(crop.mask, crop.y, crop.x, image_size)}


def paste_rles(roi_masks: np.ndarray, boxes: np.ndarray, image_size: tuple[int, int]) -> list[dict[str, Any]]:
    """`rle_encode_crop` of each `paste_crop`, of masks [D, M, M] and boxes [D, 4], without the pixels in between."""
    texts = native.paste_rles(np.asarray(roi_masks, np.float32), np.asarray(boxes, np.float32), image_size)
    return [{"size": list(image_size), "counts": text} for text in texts]


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
