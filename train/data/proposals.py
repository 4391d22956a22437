"""Proposals of a data set: selective search, computed once in parallel, kept by the hash of the image; their recall."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchvision.ops import box_iou

from regionrt.runtime.atomic import replace_file
from regionrt.runtime.cache import cache_folder
from regionrt.runtime.errors import OutputError
from regionrt.runtime.machine import usable_cores
from regionrt.runtime.selective_search import SelectiveSearch, in_one_thread

from .sample import DetectionData

Progress = Callable[[int, int], None]
IOUS = tuple(round(0.5 + 0.05 * i, 2) for i in range(10))
COUNTS = (50, 100, 200, 500, 1000, 2000)
_FEW = 8  # images that starting processes for would take longer than searching them
_VERSION = 1  # of what is kept: another one where the same options give other boxes


class KeptProposals:
    """`search`, with what it found kept in the user's cache: images are known by their pixels, not by their names.

    Nothing is lost where the cache cannot be written: the boxes are computed again.
    """

    def __init__(self, search: SelectiveSearch) -> None:
        self.search = search

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Boxes float32 [M, 4] of RGB uint8 [H, W, 3]; see `SelectiveSearch`."""
        found = self.known(image)
        if found is None:
            found = self.search(image)
            self.keep(image, found)
        return found

    def known(self, image: np.ndarray) -> np.ndarray | None:
        """What is kept of this image; None where there is nothing, or nothing of ours."""
        try:
            with open(self._file(image), "rb") as file:
                found = np.load(file, allow_pickle=False)
        except (OSError, ValueError, EOFError):
            return None
        whole = found.dtype == np.float32 and found.ndim == 2 and found.shape[1] == 4 and np.isfinite(found).all()
        return found if whole else None

    def keep(self, image: np.ndarray, boxes: np.ndarray) -> None:
        try:
            with replace_file(self._file(image)) as beside, open(beside, "wb") as file:
                np.save(file, boxes, allow_pickle=False)
        except (OSError, OutputError):
            pass

    def _file(self, image: np.ndarray) -> Path:
        what = json.dumps([_VERSION, self.search.to_json(), image.shape])
        digest = hashlib.sha256(what.encode() + np.ascontiguousarray(image).tobytes()).hexdigest()
        return cache_folder("proposals") / digest[:2] / f"{digest}.npy"


def kept_for(predict: Any, images: Sequence[np.ndarray]) -> tuple[list[np.ndarray], ...]:
    """What a predictor's `batch` and `prepare` take after the images: proposals from the cache, or nothing.

    predict: one of the runtime's; those that find their proposals themselves are given none.
    """
    wanted = getattr(predict, "proposals", None)
    if wanted is None:
        return ()
    kept = KeptProposals(wanted.search)
    return ([kept(image)[: wanted.most] for image in images],)


def compute_proposals(
    data: DetectionData,
    search: SelectiveSearch,
    *,
    most_images: int | None = None,
    workers: int | None = None,
    progress: Progress = lambda done, total: None,
) -> int:
    """Fill the cache for the first `most_images` (None: all) of a split; how many had to be computed.

    workers: processes; None: one for each usable core, or none where images are few. progress: called with (images
    done, images in all).
    Raises BackendError without OpenCV, and what the data raises.
    """
    kept = KeptProposals(search)
    total = len(data) if most_images is None else min(most_images, len(data))
    progress(0, total)
    images = (data[index].image() for index in range(total))
    computed = 0
    workers = workers or (usable_cores() if total > _FEW else 1)
    for done, (image, boxes) in enumerate(_searched(kept, images, workers), start=1):
        if boxes is not None:
            kept.keep(image, boxes)
            computed += 1
        progress(done, total)
    return computed


def _searched(
    kept: KeptProposals, images: Iterator[np.ndarray], workers: int
) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """Each image and what was computed for it, None where it was known; in any order, few at a time."""
    if workers == 1:
        for image in images:
            yield image, None if kept.known(image) is not None else kept.search(image)
        return
    context = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang
    waiting: dict[Future[np.ndarray], np.ndarray] = {}
    with ProcessPoolExecutor(workers, mp_context=context, initializer=in_one_thread) as pool:
        try:
            for image in images:
                if kept.known(image) is not None:
                    yield image, None
                    continue
                waiting[pool.submit(kept.search, image)] = image
                if len(waiting) >= 2 * workers:
                    yield from _finished(waiting)
            while waiting:
                yield from _finished(waiting)
        finally:
            pool.shutdown(cancel_futures=True)


def _finished(waiting: dict[Future[np.ndarray], np.ndarray]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for future in wait(waiting, return_when=FIRST_COMPLETED).done:
        yield waiting.pop(future), future.result()


@dataclass(frozen=True)
class Recall:
    """The share of objects that a proposal covers: by class and IoU (`IOUS`), and by how many are taken (`COUNTS`).

    by_iou: class (and "all") → a share for each IoU, with the first `most`. by_count: for each count, at IoU 0.5.
    """

    images: int
    boxes_per_image: float
    most: int
    objects: dict[str, int]
    by_iou: dict[str, list[float]]
    by_count: list[tuple[int, float]]


def recall(
    data: DetectionData,
    search: SelectiveSearch,
    *,
    most: int = 2000,
    most_images: int | None = None,
    progress: Progress = lambda done, total: None,
) -> Recall:
    """How well the proposals of a split cover its objects; those that are marked to be ignored do not count."""
    kept = KeptProposals(search)
    total = len(data) if most_images is None else min(most_images, len(data))
    counts = [count for count in COUNTS if count < most] + [most]
    best: dict[str, list[float]] = defaultdict(list)
    best_of_first: dict[int, list[float]] = defaultdict(list)
    boxes = 0
    for index in range(total):
        sample = data[index]
        proposals = kept(sample.image())
        boxes += min(len(proposals), most)
        wanted = ~sample.ignore
        objects, found = (torch.from_numpy(b.astype(np.float64)) for b in (sample.boxes[wanted], proposals[:most]))
        overlap = box_iou(objects, found).numpy()  # [objects, proposals]
        for label, row in zip(sample.labels[wanted], overlap, strict=True):
            best[data.labels[label]].append(float(row.max(initial=0.0)))
        for count in counts:
            best_of_first[count] += overlap[:, :count].max(1, initial=0.0).tolist()
        progress(index + 1, total)
    every = [value for values in best.values() for value in values]
    names = [name for name in data.labels[1:] if name in best]
    return Recall(
        images=total,
        boxes_per_image=boxes / max(total, 1),
        most=most,
        objects={**{name: len(best[name]) for name in names}, "all": len(every)},
        by_iou={**{name: _shares(best[name], IOUS) for name in names}, "all": _shares(every, IOUS)},
        by_count=[(count, _shares(best_of_first[count], (0.5,))[0]) for count in counts],
    )


def _shares(values: Sequence[float], least: Sequence[float]) -> list[float]:
    found = np.asarray(values)
    return [float((found >= limit).mean()) if len(found) else float("nan") for limit in least]
