"""Proposals for nets that take them from outside: selective search (Uijlings et al., IJCV 2013), by OpenCV."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from .errors import BackendError, BundleError
from .image import check_rgb

MODES = ("fast", "quality")
_SEED = 0  # of the shuffle that replaces OpenCV's, which is another one at every call


@dataclass(frozen=True)
class SelectiveSearch:
    """Called with a photo, RGB uint8 [H, W, 3], it gives boxes float32 [M, 4], xyxy in pixels of the photo.

    mode: "fast" (the hierarchies of two colour spaces, two measures of likeness) or "quality" (of five, four measures;
    several times the boxes and the time). width: px that a wider photo is resized to first. k, step: scale of the first
    segments (Felzenszwalb and Huttenlocher, IJCV 2004) and what is added for the next; smaller: more and smaller boxes.

    The order follows from the boxes alone: a fixed shuffle in which larger ones tend to come first, as the method
    ranks them; so the first of them are a fair choice where all are too many. BackendError without OpenCV.
    """

    mode: str = "fast"
    width: int = 400
    k: int = 30
    step: int = 50

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"selective search: mode {self.mode!r}: expected {' or '.join(MODES)}")
        for name, least in (("width", 32), ("k", 1), ("step", 1)):
            value = getattr(self, name)
            if type(value) is not int or value < least:
                raise ValueError(f"selective search: {name} {value!r}: expected a whole number ≥ {least}")

    def __call__(self, image: np.ndarray) -> np.ndarray:
        check_rgb(image)
        cv2 = _opencv()
        height, width = image.shape[:2]
        scale = min(1.0, self.width / width)
        size = (max(round(width * scale), 1), max(round(height * scale), 1))
        small = image if scale == 1 else cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        if min(size) < 2:  # nothing to segment
            return np.zeros((0, 4), np.float32)
        search = cv2.ximgproc.segmentation.createSelectiveSearchSegmentation()
        search.setBaseImage(np.ascontiguousarray(small[..., ::-1]))
        if self.mode == "fast":
            search.switchToSelectiveSearchFast(self.k, self.step)
        else:
            search.switchToSelectiveSearchQuality(self.k, self.step)
        found = np.asarray(search.process(), np.float64).reshape(-1, 4)
        found[:, 2:] += found[:, :2]  # x, y, width, height
        found *= [width / size[0], height / size[1]] * 2
        return _ranked(found.astype(np.float32))

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Any) -> SelectiveSearch:
        """BundleError where a field is unknown or out of its range; those that are missing are the usual ones."""
        known = {field.name for field in fields(cls)}
        if not isinstance(data, Mapping) or not set(data) <= known:
            raise BundleError(f"selective search: expected the fields {', '.join(sorted(known))}, found {data!r}")
        try:
            return cls(**data)
        except ValueError as error:
            raise BundleError(str(error)) from error


def in_one_thread() -> None:
    """For processes that search beside each other. Without OpenCV nothing: the search says so."""
    try:
        _opencv().setNumThreads(1)
    except BackendError:
        return


def _ranked(boxes: np.ndarray) -> np.ndarray:
    """Each box once, by a random number times its place when the largest is the first (IJCV 2013, section 4.1)."""
    boxes = np.unique(boxes, axis=0)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    boxes = boxes[np.argsort(-areas, kind="stable")]
    rank = np.random.default_rng(_SEED).random(len(boxes)) * np.arange(1, len(boxes) + 1)
    return np.ascontiguousarray(boxes[np.argsort(rank, kind="stable")])


def _opencv() -> Any:
    try:
        import cv2

        _ = cv2.ximgproc.segmentation
    except (ImportError, AttributeError) as error:
        raise BackendError(
            f"this net takes proposals; they can be computed where OpenCV's contributed modules are, and here they are "
            f"not ({error}): pass predict(image, proposals=boxes), or pip install 'regionrt[proposals]'"
        ) from error
    return cv2
