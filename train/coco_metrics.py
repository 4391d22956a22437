"""COCO average precision by pycocotools, and the same figure on many resamples of the images in NumPy.

Matching detections to objects happens per image and does not depend on which images are drawn, so `Matches` does it
once (with pycocotools) and accumulates per resample. The figures are those of pycocotools on a data set in which an
image drawn w times stands w times in a row, up to the rounding of sums (1e-12).
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from .data.sample import RLE, Sample

MAX_DETECTIONS = 100
_CHUNK_ELEMENTS = 2_000_000  # of the largest array per step: 16 MB
_EPS = np.spacing(1)  # as pycocotools' accumulate has it


@dataclass(frozen=True, eq=False)
class Truth:
    """The objects of one image, without its pixels; fields as in `Sample`."""

    image_id: int | str
    size: tuple[int, int]
    boxes: np.ndarray
    labels: np.ndarray
    ignore: np.ndarray
    areas: np.ndarray
    masks: list[RLE] | None


def truth_of(sample: Sample) -> Truth:
    return Truth(sample.image_id, sample.size, sample.boxes, sample.labels, sample.ignore, sample.areas, sample.masks)


@dataclass(frozen=True, eq=False)
class _Class:
    """All detections of one class, best score first, and how they match at each of T IoU thresholds."""

    image: np.ndarray  # int [D], index of the image
    group: np.ndarray  # int [D]: the same for detections of one image with equal scores, which copies interleave
    true: np.ndarray  # bool [T, D]: matches an object that counts
    counted: np.ndarray  # bool [T, D]: not matched to an object to be ignored
    objects: np.ndarray  # int [I]: objects that count, per image


class Matches:
    """Detections matched to objects, per image and class.

    truths: one per image. predictions: COCO results whose `category_id` is the label and whose `image_id` is that of a
    truth. labels: with the background first. kind: "bbox" or "segm".
    Objects with `ignore` are COCO's crowds: they may be matched by many detections, which then do not count, by the
    share of the detection that lies inside.
    """

    def __init__(
        self, truths: Sequence[Truth], predictions: Sequence[dict[str, Any]], labels: Sequence[str], kind: str = "bbox"
    ) -> None:
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints
            self._eval = COCOeval(_truths_as_coco(truths, labels), _predictions_as_coco(truths, predictions), kind)
            params = self._eval.params
            params.imgIds = list(range(1, len(truths) + 1))
            params.catIds = list(range(1, len(labels)))
            params.maxDets = [1, 10, MAX_DETECTIONS]
            self._eval.evaluate()
        self.labels = tuple(labels)
        self.images = len(truths)
        self.iou_thresholds = np.asarray(params.iouThrs)
        self._recalls = np.asarray(params.recThrs)
        self._classes = [self._gather(index) for index in range(len(labels) - 1)]

    def summary(self) -> tuple[dict[str, float], list[dict[str, float]]]:
        """pycocotools' own accumulation: AP, AP50, AP75, AP_small, …, AR1, … and per class (label order) AP and AP50.

        A class without objects that count has NaN and is left out of the means.
        """
        with contextlib.redirect_stdout(io.StringIO()):
            self._eval.accumulate()
        precision, recall = self._eval.eval["precision"], self._eval.eval["recall"]  # [T, R, K, A, M], [T, K, A, M]
        metrics = {
            "AP": _mean(precision[:, :, :, 0, 2]),
            "AP50": _mean(precision[0, :, :, 0, 2]),
            "AP75": _mean(precision[5, :, :, 0, 2]),
        }
        for area, name in enumerate(("small", "medium", "large"), start=1):
            metrics[f"AP_{name}"] = _mean(precision[:, :, :, area, 2])
        for index, most in enumerate(self._eval.params.maxDets):
            metrics[f"AR{most}"] = _mean(recall[:, :, 0, index])
        per_class = [
            {"AP": _mean(precision[:, :, k, 0, 2]), "AP50": _mean(precision[0, :, k, 0, 2])}
            for k in range(len(self.labels) - 1)
        ]
        return metrics, per_class

    def resampled(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """AP, AP50 and AP75 on R resamples, each float64 [R]; NaN where a resample has no object.

        weights: int [R, I], how often image i is drawn in resample r (0 or more).
        """
        weights = np.asarray(weights)
        if weights.ndim != 2 or weights.shape[1] != self.images or weights.dtype.kind not in "iu":
            raise ValueError(
                f"weights: expected whole numbers [R, {self.images}], found {weights.dtype} {list(weights.shape)}"
            )
        if weights.min(initial=0) < 0:
            raise ValueError("weights: expected counts of 0 or more, found a negative one")
        ap = np.stack([self._class_ap(one, weights) for one in self._classes])  # [K, R, T]
        return {"AP": _nanmean(ap.mean(axis=2)), "AP50": _nanmean(ap[:, :, 0]), "AP75": _nanmean(ap[:, :, 5])}

    def _gather(self, index: int) -> _Class:
        """Collect pycocotools' matches of one class: all areas, at most 100 detections per image."""
        areas, images = len(self._eval.params.areaRng), self.images
        found = self._eval.evalImgs[index * areas * images :][:images]
        objects = np.array([0 if one is None else np.sum(np.asarray(one["gtIgnore"]) == 0) for one in found], dtype=int)
        kept = [(i, one) for i, one in enumerate(found) if one is not None and one["dtScores"]]
        thresholds = len(self.iou_thresholds)
        if not kept:
            nothing = np.zeros((thresholds, 0), dtype=bool)
            none = np.zeros(0, dtype=int)
            return _Class(none, none, nothing, nothing, objects)
        scores = np.concatenate([one["dtScores"] for _, one in kept])
        image = np.repeat([i for i, _ in kept], [len(one["dtScores"]) for _, one in kept])
        order = np.argsort(-scores, kind="mergesort")
        matched = np.concatenate([one["dtMatches"] for _, one in kept], axis=1)[:, order] > 0
        counted = ~np.concatenate([one["dtIgnore"] for _, one in kept], axis=1)[:, order].astype(bool)
        scores, image = scores[order], image[order]
        starts = np.concatenate([[False], (scores[1:] != scores[:-1]) | (image[1:] != image[:-1])])
        return _Class(image, np.cumsum(starts), matched & counted, counted, objects)

    def _class_ap(self, one: _Class, weights: np.ndarray) -> np.ndarray:
        """float64 [R, T]: mean precision over pycocotools' 101 recalls; NaN where no object is drawn."""
        objects = weights @ one.objects  # [R]
        ap = np.full((len(weights), len(self.iou_thresholds)), np.nan)
        rows = np.flatnonzero(objects > 0)
        ap[rows] = 0
        if not len(one.image) or not len(rows):
            return ap
        layouts = [_Points.of(one, t, int(weights.max())) for t in range(len(self.iou_thresholds))]
        always = bool(one.counted.all())
        step = max(1, _CHUNK_ELEMENTS // len(one.image))
        for start in range(0, len(rows), step):
            part = rows[start : start + step]
            drawn = weights[part][:, one.image]  # [B, D]
            ranks = np.cumsum(drawn, axis=1) if always else None
            for t, points in enumerate(layouts):
                if len(points.detection):
                    counts = ranks if ranks is not None else np.cumsum(drawn * one.counted[t], axis=1)
                    ap[part, t] = self._average(points, drawn, counts, objects[part])
        return ap

    def _average(self, points: _Points, drawn: np.ndarray, counts: np.ndarray, objects: np.ndarray) -> np.ndarray:
        """AP [B]: sum over the true detections of (recall levels reached at each) · (best precision from there on)."""
        times = drawn[:, points.detection]  # [B, P]: how often the image of the point's detection is drawn
        lump = points.copy < 0
        exists = points.copy < times
        before = counts[:, points.last] - times * points.group_size
        single = before + np.minimum(points.copy, times) * points.group_size + points.rank * exists
        seen = np.where(lump, counts[:, points.detection], single)
        true = np.cumsum(np.where(lump, times, exists), axis=1)
        precision = true / (seen + _EPS)
        best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        # Level r is read at the first point with recall ≥ r; points of weight zero reach no new level.
        reached = np.searchsorted(self._recalls, true / objects[:, None], side="right")
        new = np.diff(reached, axis=1, prepend=0)
        return (new * best).sum(axis=1) / len(self._recalls)


@dataclass(frozen=True, eq=False)
class _Points:
    """The true detections at one threshold, in the order in which precision is to be read.

    An image drawn w times brings w copies of each detection. The copies of one score follow each other, so all w can be
    one point ("lump", copy −1). Where one image has true and false detections of equal score, the copies of the whole
    group follow each other, and each true detection becomes a point per copy (0, 1, …).
    """

    detection: np.ndarray  # int [P]
    copy: np.ndarray  # int [P]
    rank: np.ndarray  # int [P]: counted detections of the group up to and with this one
    group_size: np.ndarray  # int [P]: counted detections of the group
    last: np.ndarray  # int [P]: the group's last detection

    @classmethod
    def of(cls, one: _Class, t: int, most: int) -> _Points:
        true, counted = one.true[t], one.counted[t]
        size = np.bincount(one.group, weights=counted).astype(int)
        hits = np.bincount(one.group, weights=true).astype(int)
        running = np.cumsum(counted)
        last = np.flatnonzero(np.diff(one.group, append=-1))
        rank = running - (running[last] - size)[one.group]
        mixed = ((hits > 0) & (hits < size))[one.group]
        lumps = np.flatnonzero(true & ~mixed)
        singles = np.flatnonzero(true & mixed)
        detection = np.concatenate([lumps, np.tile(singles, most)])
        copy = np.concatenate([np.full(len(lumps), -1), np.repeat(np.arange(most), len(singles))])
        order = np.lexsort((detection, copy, one.group[detection]))
        detection, copy = detection[order], copy[order]
        group = one.group[detection]
        return cls(detection, copy, rank[detection], size[group], last[group])


def _truths_as_coco(truths: Sequence[Truth], labels: Sequence[str]) -> COCO:
    annotations: list[dict[str, Any]] = []
    for image, truth in enumerate(truths, start=1):
        for index, (x1, y1, x2, y2) in enumerate(truth.boxes.astype(float).tolist()):
            annotation = {
                "id": len(annotations) + 1,  # from 1: pycocotools takes 0 for "not matched"
                "image_id": image,
                "category_id": int(truth.labels[index]),
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "area": float(truth.areas[index]),
                "iscrowd": int(truth.ignore[index]),
            }
            if truth.masks is not None:
                annotation["segmentation"] = truth.masks[index]
            annotations.append(annotation)
    return _coco(truths, annotations, labels)


def _predictions_as_coco(truths: Sequence[Truth], predictions: Sequence[dict[str, Any]]) -> COCO:
    number_of = {truth.image_id: image for image, truth in enumerate(truths, start=1)}
    annotations: list[dict[str, Any]] = []
    for prediction in predictions:
        annotation = {**prediction, "id": len(annotations) + 1, "image_id": number_of[prediction["image_id"]]}
        mask = annotation.get("segmentation")
        width, height = annotation["bbox"][2:]
        annotation["area"] = float(coco_mask.area(mask)) if mask is not None else width * height
        annotation["iscrowd"] = 0
        annotations.append(annotation)
    return _coco(truths, annotations, ())


def _coco(truths: Sequence[Truth], annotations: list[dict[str, Any]], labels: Sequence[str]) -> COCO:
    coco = COCO()
    coco.dataset = {
        "images": [{"id": i, "height": t.size[0], "width": t.size[1]} for i, t in enumerate(truths, start=1)],
        "annotations": annotations,
        "categories": [{"id": label, "name": name} for label, name in enumerate(labels) if label > 0],
    }
    coco.createIndex()
    return coco


def _mean(values: np.ndarray) -> float:
    """Mean of what pycocotools defines (it writes −1 where a class has no object), else NaN."""
    defined = values[values > -1]
    return float(defined.mean()) if defined.size else float("nan")


def _nanmean(values: np.ndarray) -> np.ndarray:
    """Mean over the classes [K, R] that have objects in the resample; NaN where none has."""
    defined = ~np.isnan(values)
    total = np.where(defined, values, 0).sum(axis=0)
    with np.errstate(invalid="ignore"):
        return total / defined.sum(axis=0)
