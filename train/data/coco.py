"""COCO object annotations: annotations/instances_<split>.json (arXiv:1405.0312; cocodataset.org/#format-data).

Boxes [x, y, width, height] in pixels are edges already. Category ids become labels 1, 2, … in the order of the ids;
`iscrowd` becomes `ignore`. For the split `val` the file is instances_val.json or, with a year, instances_val2017.json.
"""

from __future__ import annotations

import json
import math
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from .boxes import DroppedBoxes, fit_box
from .classes import map_classes
from .errors import DataError
from .masks import check_segmentation, rle_of
from .paths import inside, listed
from .sample import Sample

MAX_JSON_BYTES = 2 * 2**30  # COCO's own largest file has 0.5 GB; parsed, a file takes about ten times its size


@dataclass
class _Objects:
    """The objects of one image while the file is read."""

    boxes: list[np.ndarray]
    labels: list[int]
    ignore: list[bool]
    areas: list[float]
    segmentations: list[list | dict | None]


class CocoData:
    """A split of a COCO folder; see `DetectionData`. Polygons are made into RLEs when a sample is asked for.

    `has_masks` where every object that is not to be ignored has a segmentation; if only some have, masks are left out.
    """

    def __init__(
        self, root: Path, split: str, labels: Sequence[str] | None = None, classes: Sequence[str] | None = None
    ) -> None:
        file, name = _file_of_split(root, split)
        content = _read_json(file)
        images = _images(content, file)
        categories = _categories(content, file)
        annotations = _annotations(content, images, categories, file)
        used = {categories[record["category_id"]] for record in annotations}
        mapped = map_classes(list(categories.values()), used, labels, classes, f"{root} ({split})")

        self.root = root
        self.split = split
        self.labels = mapped.labels
        self.dropped = DroppedBoxes()
        objects = {image_id: _Objects([], [], [], [], []) for image_id in images}
        for record in annotations:
            image = images[record["image_id"]]
            label = mapped.label_of.get(categories[record["category_id"]])
            if label is None:
                self.dropped.count("class not chosen", image["file_name"])
                continue
            _add(objects[image["id"]], record, label, image, self.dropped, f"{file}: annotation {record.get('id')}")
        self.dropped.warn(f"{root} ({split})")

        counted = [
            segmentation is not None
            for found in objects.values()
            for segmentation, ignore in zip(found.segmentations, found.ignore, strict=True)
            if not ignore
        ]
        self.has_masks = bool(counted) and all(counted)
        if any(counted) and not self.has_masks:
            lacking = counted.count(False)
            warnings.warn(
                f"{root} ({split}): {lacking} of {len(counted)} objects have no mask, so no masks are used",
                stacklevel=2,
            )
        folder = _image_folder(root, name, file, next(iter(images.values()))["file_name"])
        self._segmentations = [objects[image_id].segmentations for image_id in images]
        self._samples = [_sample(image, objects[image_id], folder, file) for image_id, image in images.items()]

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> Sample:
        sample = self._samples[index]
        if not self.has_masks:
            return sample
        masks = []
        for segmentation, box in zip(self._segmentations[index], sample.boxes.tolist(), strict=True):
            # Only an object to be ignored can lack one here; its box says where.
            x1, y1, x2, y2 = box
            masks.append(rle_of(segmentation or [[x1, y1, x2, y1, x2, y2, x1, y2]], sample.size))
        return replace(sample, masks=masks)


def coco_files(root: Path) -> dict[str, Path]:
    """Names of the splits as the files have them (train2017, val2017, …), and the files."""
    found = sorted((root / "annotations").glob("instances_*.json"))
    return {path.stem.removeprefix("instances_"): path for path in found}


def _file_of_split(root: Path, split: str) -> tuple[Path, str]:
    files = coco_files(root)
    matches = [split] if split in files else [name for name in files if re.fullmatch(re.escape(split) + r"\d{4}", name)]
    if len(matches) == 1:
        return files[matches[0]], matches[0]
    if matches:
        raise DataError(f"{root}: the split {split!r} fits {listed(matches)}; give the full name of one")
    raise DataError(
        f"{root}: expected annotations/instances_{split}.json (or with a year) for the split {split!r}, "
        f"found the splits {listed(files)}"
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        size = path.stat().st_size
        if size > MAX_JSON_BYTES:
            raise DataError(
                f"{path}: annotations of {size} bytes are not read, at most {MAX_JSON_BYTES}; split the file"
            )
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"cannot read {path}: {error}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not valid JSON, perhaps truncated: {error}") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: expected images, annotations and categories, found a {type(content).__name__}")
    return content


def _records(content: dict[str, Any], key: str, path: Path) -> list[dict[str, Any]]:
    records = content.get(key)
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise DataError(f"{path}: expected a list of objects under {key!r}, found {type(records).__name__}")
    return records


def _images(content: dict[str, Any], path: Path) -> dict[int | str, dict[str, Any]]:
    images: dict[int | str, dict[str, Any]] = {}
    for record in _records(content, "images", path):
        image_id, name = record.get("id"), record.get("file_name")
        if not isinstance(image_id, int | str) or not isinstance(name, str):
            raise DataError(f"{path}: an image needs an id and a file_name, found {str(record)[:80]}")
        if image_id in images:
            raise DataError(f"{path}: two images have the id {image_id}: {images[image_id]['file_name']} and {name}")
        if not all(type(record.get(side)) is int and record[side] > 0 for side in ("height", "width")):
            raise DataError(
                f"{path}: image {name}: expected height and width in pixels, "
                f"found {record.get('height')!r} and {record.get('width')!r}"
            )
        images[image_id] = record
    if not images:
        raise DataError(f"{path}: expected images, found none")
    return images


def _categories(content: dict[str, Any], path: Path) -> dict[int | str, str]:
    categories: dict[int | str, str] = {}
    for record in sorted(_records(content, "categories", path), key=lambda record: str(record.get("id")).zfill(12)):
        category_id, name = record.get("id"), record.get("name")
        if not isinstance(category_id, int | str) or not isinstance(name, str) or not name:
            raise DataError(f"{path}: a category needs an id and a name, found {str(record)[:80]}")
        if category_id in categories or name in categories.values():
            raise DataError(f"{path}: two categories have the id {category_id} or the name {name!r}")
        categories[category_id] = name
    if not categories:
        raise DataError(f"{path}: expected categories, found none")
    return categories


def _annotations(
    content: dict[str, Any], images: dict[int | str, Any], categories: dict[int | str, str], path: Path
) -> list[dict[str, Any]]:
    """The annotations, each of a known image and a known category."""
    records = _records(content, "annotations", path)
    for record in records:
        image_id, category_id = record.get("image_id"), record.get("category_id")
        where = f"{path}: annotation {record.get('id')}"
        if not isinstance(image_id, int | str) or image_id not in images:
            raise DataError(f"{where} is the annotation of a missing image: no image has the id {image_id}")
        if not isinstance(category_id, int | str) or category_id not in categories:
            raise DataError(f"{where}: expected one of the categories' ids, found {category_id}")
    return records


def _add(
    objects: _Objects, record: dict[str, Any], label: int, image: dict[str, Any], dropped: DroppedBoxes, where: str
) -> None:
    size = (image["height"], image["width"])
    bbox = record.get("bbox")
    if not isinstance(bbox, list) or len(bbox) != 4 or not all(_is_number(value) for value in bbox):
        raise DataError(f"{where}: expected bbox as four finite numbers, found {str(bbox)[:60]}")
    x, y, width, height = bbox
    box = fit_box((x, y, x + width, y + height), size, dropped, image["file_name"])
    if box is None:
        return
    segmentation = check_segmentation(record.get("segmentation"), size, where)
    area = record.get("area")
    box_area = float((box[2] - box[0]) * (box[3] - box[1]))
    objects.boxes.append(box)
    objects.labels.append(label)
    objects.ignore.append(bool(record.get("iscrowd", 0)))
    objects.areas.append(float(area) if area is not None and _is_number(area) and area > 0 else box_area)
    objects.segmentations.append(segmentation)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _image_folder(root: Path, name: str, file: Path, example: str) -> Path:
    """The folder below which the file names of the images stand, found by the first of them."""
    inside(root, example, str(file))
    stem = re.sub(r"\d{4}$", "", name)  # val2017 -> val
    folders = dict.fromkeys([root / name, root / "images" / name, root / stem, root / "images" / stem])
    candidates = [*folders, root / "images", root]
    for folder in candidates:
        if (folder / example).is_file():
            return folder
    looked = listed(str(folder.relative_to(root)) + "/" for folder in candidates[:-1])
    raise DataError(f"{file}: image {example} is missing: looked in {looked} and the folder {root} itself")


def _sample(image: dict[str, Any], objects: _Objects, folder: Path, file: Path) -> Sample:
    path = inside(folder, image["file_name"], f"{file}: image {image['id']}")
    if not path.is_file():
        raise DataError(f"{file}: image {image['id']} is missing: {path} is not there; restore it, or take it out")
    return Sample(
        image_id=image["id"],
        name=image["file_name"],
        boxes=np.array(objects.boxes, dtype=np.float32).reshape(-1, 4),
        labels=np.array(objects.labels, dtype=np.int64),
        masks=None,
        ignore=np.array(objects.ignore, dtype=bool),
        areas=np.array(objects.areas, dtype=np.float32),
        size=(image["height"], image["width"]),
        pixels=path,
    )
