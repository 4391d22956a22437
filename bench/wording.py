"""How a report speaks of a task: its metric, what is counted, what is found."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Words:
    """metric: what headline, table and plots speak of; per_class: the same of a class. results: what a request ends
    with. objects: what the data's objects are. found, agreed: what a picture counts, and what verification compares.
    """

    metric: str
    per_class: str
    results: str
    objects: str
    found: str
    agreed: str


_BOXES = Words("AP", "AP", "boxes", "objects", "detection", "detections")
_WORDS = {
    "detection": _BOXES,
    "instance-segmentation": Words("mask_AP", "mask_AP", "boxes and masks", "objects", "detection", "detections"),
    "segmentation": Words("mIoU", "IoU", "label maps", "pixels", "class", "pixels"),
    "localisation": Words("localisation", "localisation", "class and box", "images with an object", "box", "boxes"),
}


def words_of(task: str) -> Words:
    """Words for a task of a bundle; a detector's where the task is not known."""
    return _WORDS.get(task, _BOXES)
