"""COCO's compressed run-length encoding (RLE) of a mask, in NumPy."""

from __future__ import annotations

import numpy as np


def rle_text(mask: np.ndarray, y: int, x: int, image_size: tuple[int, int]) -> str:
    """The counts of a photo of (height, width) that is empty but for `mask` bool [h, w], its corner at (`y`, `x`).

    Runs go down the columns. Byte for byte the text of pycocotools.
    """
    height, width = image_size
    rows, columns = mask.shape
    framed = np.zeros((columns, rows + 2), np.int8)
    framed[:, 1:-1] = mask.T
    step = np.diff(framed, axis=1)  # +1 where a run begins, −1 behind its end
    starts, ends = (
        ((places[:, 0] + x) * height + places[:, 1] + y) for places in map(np.argwhere, (step == 1, step == -1))
    )
    joined = np.flatnonzero(ends[:-1] == starts[1:])  # from the bottom of one column to the top of the next
    starts, ends = np.delete(starts, joined + 1), np.delete(ends, joined)
    borders = np.empty(2 * len(starts), np.int64)
    borders[0::2], borders[1::2] = starts, ends
    total = height * width
    edges = np.concatenate([[0], borders] if len(borders) and borders[-1] == total else [[0], borders, [total]])
    return _compress(np.diff(edges) if total else np.zeros(1, np.int64))


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
