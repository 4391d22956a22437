"""Writes small VOC and COCO folders for tests of what reads them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

WIDTH, HEIGHT = 100, 80


def write_photo(path: Path, size: tuple[int, int] = (WIDTH, HEIGHT), **options: Any) -> None:
    """size: width, height. The pixels follow from the name, so that a mix-up of files shows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shade = sum(path.name.encode()) % 200
    pixels = np.full((size[1], size[0], 3), shade, dtype=np.uint8)
    Image.fromarray(pixels).save(path, **options)


def voc_object(name: str, box: Sequence[object], difficult: int = 0) -> str:
    x1, y1, x2, y2 = box
    return (
        f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox><xmin>{x1}</xmin><ymin>{y1}</ymin>"
        f"<xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>"
    )


def voc_xml(*objects: str, size: tuple[int, int] | None = (WIDTH, HEIGHT), filename: str = "x.jpg") -> str:
    sides = f"<size><width>{size[0]}</width><height>{size[1]}</height></size>" if size else ""
    return f"<annotation><filename>{filename}</filename>{sides}{''.join(objects)}</annotation>"


def write_voc(root: Path, annotations: Mapping[str, str], splits: Mapping[str, Sequence[str]]) -> Path:
    """annotations: XML by image name; an image is written for each."""
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for name, xml in annotations.items():
        (root / "Annotations" / f"{name}.xml").write_text(xml, encoding="utf-8")
        write_photo(root / "JPEGImages" / f"{name}.jpg")
    for split, names in splits.items():
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))
    return root


def coco_image(image_id: int, name: str | None = None, **changes: Any) -> dict[str, Any]:
    return {"id": image_id, "file_name": name or f"{image_id:04d}.jpg", "height": HEIGHT, "width": WIDTH} | changes


def coco_object(object_id: int, image_id: int, category_id: int, bbox: Sequence[float], **more: Any) -> dict[str, Any]:
    x, y, w, h = bbox
    polygon = [x, y, x + w, y, x + w, y + h, x, y + h]
    content = {"id": object_id, "image_id": image_id, "category_id": category_id, "bbox": list(bbox), "iscrowd": 0}
    return content | {"segmentation": [polygon], "area": w * h} | more


def write_coco(
    root: Path,
    annotations: Sequence[Mapping[str, Any]],
    images: Sequence[Mapping[str, Any]] | None = None,
    categories: Mapping[int, str] | None = None,
    split: str = "train",
    folder: str | None = None,
) -> Path:
    """folder: of the image files below root; by default that of the split."""
    images = [coco_image(1), coco_image(2)] if images is None else images
    categories = categories or {3: "cat", 7: "dog"}
    content = {
        "images": list(images),
        "annotations": list(annotations),
        "categories": [{"id": number, "name": name} for number, name in categories.items()],
    }
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    for image in images:
        if ".." not in image["file_name"] and not image["file_name"].startswith("/"):
            write_photo(root / (split if folder is None else folder) / image["file_name"])
    return root
