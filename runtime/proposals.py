"""Proposals that a net takes from outside: checked, brought onto the canvas, and padded to as many rows as it has."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .errors import ProposalError
from .image import Placement
from .selective_search import SelectiveSearch

Boxes = Any  # what np.asarray makes [M, 4] of: xyxy in pixels of the photo


@dataclass(frozen=True)
class ProposalInput:
    """The `proposals` of a net with `most` rows, P; `search` gives them for photos that come without."""

    most: int
    search: SelectiveSearch = field(default_factory=SelectiveSearch)

    def place(
        self, images: Sequence[Any], given: Sequence[Boxes | None] | None, placements: Sequence[Placement]
    ) -> dict[str, np.ndarray]:
        """`proposals` float32 [N, P, 4] in canvas px and `proposal_counts` int32 [N], zero behind the counts.

        given: boxes for each photo, in its own pixels; None: they are searched for. What reaches beyond its photo is
        clipped, what has no area in it is left out, and of more than P the first P are taken: both are warned of,
        with counts. Raises ProposalError (no boxes at all are fine, those with NaN are not), and what `search` does.
        """
        if given is not None and len(given) != len(images):
            raise ProposalError(
                f"expected proposals for each of {len(images)} photos, found {len(given)}: give a list of boxes, or "
                "None to have them searched for, for each"
            )
        proposals = np.zeros((len(images), self.most, 4), np.float32)
        counts = np.zeros(len(images), np.int32)
        outside = beyond = 0
        for n, placement in enumerate(placements):
            boxes = given[n] if given is not None else None
            if boxes is None:
                kept = _inside(checked(self._searched(images[n]), n), placement)[0][: self.most]
            else:
                kept, dropped = _inside(checked(boxes, n), placement)
                outside += dropped
                beyond += max(len(kept) - self.most, 0)
                kept = kept[: self.most]
            counts[n] = len(kept)
            proposals[n, : len(kept)] = placement.boxes_to_canvas(kept)
        if outside:
            warnings.warn(f"{outside} proposals have no area inside their photo and are left out", stacklevel=4)
        if beyond:
            warnings.warn(
                f"{beyond} proposals are left out, the net takes the first {self.most} of a photo: pass the best "
                "first, or export with more --proposals",
                stacklevel=4,
            )
        return {"proposals": proposals, "proposal_counts": counts}

    def _searched(self, image: Any) -> np.ndarray:
        if not isinstance(image, np.ndarray):
            raise ProposalError("a photo on the GPU: pass its proposals with it, they are searched for on the CPU only")
        return self.search(image)


def checked(boxes: Boxes, number: int = 0) -> np.ndarray:
    """Boxes as float32 [M, 4]. ProposalError for another shape or type, and for those that are not finite."""
    try:
        found = np.asarray(boxes)
        whole = found.size == 0 or (found.ndim == 2 and found.shape[1] == 4 and found.dtype.kind in "iuf")
    except ValueError:  # rows of different lengths
        found, whole = np.empty(0), False
    if not whole:
        told = f"{found.dtype} {list(found.shape)}" if found.size else type(boxes).__name__
        raise ProposalError(f"proposals of image {number}: expected boxes [M, 4] (xyxy, px of the photo), found {told}")
    found = found.reshape(-1, 4)
    with np.errstate(over="ignore"):
        found = found.astype(np.float32)
    if broken := int((~np.isfinite(found)).any(axis=1).sum()):
        raise ProposalError(
            f"proposals of image {number}: {broken} of {len(found)} hold NaN or infinite values: leave them out"
        )
    return found


def _inside(boxes: np.ndarray, placement: Placement) -> tuple[np.ndarray, int]:
    """Boxes clipped to their photo, and how many had no area there."""
    height, width = placement.original
    clipped = np.clip(boxes, 0, np.array([width, height, width, height], np.float32))
    real = (clipped[:, 2:] > clipped[:, :2]).all(axis=1)
    return clipped[real], int((~real).sum())
