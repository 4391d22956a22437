"""Pascal VOC: Annotations/*.xml, JPEGImages/, ImageSets/Main/<split>.txt (VOC2012 devkit documentation, section 2).

VOC counts pixels from 1 and a box holds its last row and column. Here boxes are edges: (xmin, ymin, xmax, ymax)
becomes (xmin − 1, ymin − 1, xmax, ymax), whose width is VOC's xmax − xmin + 1, so that plain IoU gives the devkit's
numbers and the box of a whole image is 0, 0, width, height. A box with xmax ≤ xmin or ymax ≤ ymin is taken for what
it is in practice, a slip of the mouse, though by the letter xmax = xmin would be one pixel wide.
`SegmentationObject` is not read.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

import numpy as np
from PIL import Image, UnidentifiedImageError

from .boxes import DroppedBoxes, fit_box
from .classes import map_classes
from .errors import DataError
from .paths import inside, listed
from .sample import Sample

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".JPG", ".JPEG", ".PNG")
MAX_XML_BYTES = 16 * 2**20
MAX_XML_DEPTH = 32


@dataclass(frozen=True)
class _Object:
    name: str
    box: tuple[float, float, float, float]  # as in the file: from 1, last row and column included
    difficult: bool


@dataclass(frozen=True)
class _Annotation:
    size: tuple[int, int] | None  # height, width, where the file has them
    filename: str | None
    objects: list[_Object]


class VocData:
    """A split of a VOC folder; see `DetectionData`. Annotations are read when it is opened, pixels when asked for."""

    has_masks = False

    def __init__(
        self, root: Path, split: str, labels: Sequence[str] | None = None, classes: Sequence[str] | None = None
    ) -> None:
        where = f"{root} ({split})"
        splits = voc_splits(root)
        lists = root / "ImageSets" / "Main"
        if not (lists / f"{split}.txt").is_file():
            raise DataError(
                f"{root}: expected ImageSets/Main/{split}.txt for the split {split!r}, "
                f"found the splits {listed(splits)}"
            )
        names = read_split(lists / f"{split}.txt")
        if not names:
            raise DataError(f"{root}: the split {split!r} lists no image")
        annotations = {name: read_annotation(root / "Annotations" / f"{name}.xml") for name in names}
        used = {item.name for annotation in annotations.values() for item in annotation.objects}
        known = sorted(used)
        if labels is None:
            # The same folder must give the same labels for every split, also where one split lacks a class.
            for other in splits:
                for name in read_split(lists / f"{other}.txt"):
                    if name not in annotations:
                        annotations[name] = read_annotation(root / "Annotations" / f"{name}.xml")
            known = sorted({item.name for annotation in annotations.values() for item in annotation.objects})
        if not known:
            raise DataError(f"{where}: expected annotated objects, found none in {len(annotations)} files")

        mapped = map_classes(known, used, labels, classes, where)
        self.root = root
        self.split = split
        self.labels = mapped.labels
        self.dropped = DroppedBoxes()
        files = _image_files(root / "JPEGImages")
        self._samples = [_sample(root, name, annotations[name], mapped.label_of, files, self.dropped) for name in names]
        self.dropped.warn(where)

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> Sample:
        return self._samples[index]


def voc_splits(root: Path) -> list[str]:
    """Names of the splits, without VOC's lists per class (`cat_train.txt` beside `train.txt`)."""
    folder = root / "ImageSets" / "Main"
    stems = sorted(path.stem for path in folder.glob("*.txt"))
    return [stem for stem in stems if "_" not in stem or stem.rsplit("_", 1)[1] not in stems]


def read_split(path: Path) -> list[str]:
    """Image names of a split file: one per line, without folder; a suffix such as .jpg is taken off."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read the split {path}: {error}") from error
    names: list[str] = []
    seen: set[str] = set()
    for number, line in enumerate(lines, start=1):
        name = line.strip()
        if not name:
            continue
        if len(name.split()) > 1:
            raise DataError(
                f"{path}, line {number}: expected one image name, "
                f"found {name[:60]!r} (one of the devkit's lists per class?)"
            )
        if name.endswith(IMAGE_SUFFIXES):
            name = name.rsplit(".", 1)[0]
        inside(path.parent, name, f"{path}, line {number}")
        if name in seen:
            raise DataError(f"{path}, line {number}: image {name!r} is listed twice; remove one")
        seen.add(name)
        names.append(name)
    return names


def read_annotation(path: Path) -> _Annotation:
    """Raises DataError, naming the file, for one that is missing, too large, not XML, or lacks a name or a box."""
    root = _parse_xml(path)
    if root.tag != "annotation":
        raise DataError(f"{path}: expected a VOC <annotation>, found <{root.tag}>")
    size = None
    if root.find("size") is not None:
        height, width = (_number(root, f"size/{side}", path) for side in ("height", "width"))
        if height > 0 and width > 0:  # some tools leave zeros
            size = (int(height), int(width))
    objects = []
    for number, element in enumerate(root.findall("object"), start=1):
        name = (element.findtext("name") or "").strip()
        if not name:
            raise DataError(f"{path}: object {number} has no <name>")
        where = f"object {number} ({name})"
        x1, y1, x2, y2 = (_number(element, f"bndbox/{key}", path, where) for key in ("xmin", "ymin", "xmax", "ymax"))
        difficult = (element.findtext("difficult") or "0").strip() not in ("0", "")
        objects.append(_Object(name, (x1, y1, x2, y2), difficult))
    return _Annotation(size, (root.findtext("filename") or "").strip() or None, objects)


def _parse_xml(path: Path) -> Element:
    """Parse with bounds on size and depth; a document type, the door to entity bombs and other files, is refused."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_XML_BYTES + 1)
    except FileNotFoundError as error:
        raise DataError(f"{path}: a split lists this annotation, but the file is not there") from error
    except OSError as error:
        raise DataError(f"cannot read the annotation {path}: {error}") from error
    if len(data) > MAX_XML_BYTES:
        raise DataError(f"{path}: an annotation of more than {MAX_XML_BYTES} bytes is not read")

    builder = TreeBuilder()
    depth = 0

    def start(tag: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        depth += 1
        if depth > MAX_XML_DEPTH:
            raise DataError(f"{path}: elements nested more than {MAX_XML_DEPTH} deep; not a VOC annotation")
        builder.start(tag, attributes)

    def end(tag: str) -> None:
        nonlocal depth
        depth -= 1
        builder.end(tag)

    def doctype(*_: object) -> None:
        raise DataError(f"{path}: a document type declaration (<!DOCTYPE …>) is refused; VOC annotations need none")

    parser = expat.ParserCreate()
    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.CharacterDataHandler = builder.data
    parser.StartDoctypeDeclHandler = doctype
    try:
        parser.Parse(data, True)
    except (expat.ExpatError, ValueError, LookupError) as error:  # the latter two: undecodable or unknown encoding
        raise DataError(f"{path}: not valid XML, perhaps truncated: {error}") from error
    return builder.close()


def _number(element: Element, tag: str, path: Path, where: str = "the annotation") -> float:
    text = element.findtext(tag)
    try:
        value = float(text or "")
    except ValueError as error:
        raise DataError(f"{path}: {where}: expected a number in <{tag}>, found {text!r}") from error
    if not math.isfinite(value):
        raise DataError(f"{path}: {where}: expected a finite number in <{tag}>, found {text!r}")
    return value


def _image_files(folder: Path) -> set[str]:
    try:
        return {path.name for path in folder.iterdir()}
    except OSError as error:
        raise DataError(f"cannot list the images in {folder}: {error}") from error


def _sample(
    root: Path, name: str, annotation: _Annotation, label_of: dict[str, int], files: set[str], dropped: DroppedBoxes
) -> Sample:
    folder = root / "JPEGImages"
    found = [name + suffix for suffix in IMAGE_SUFFIXES if name + suffix in files]
    if not found and annotation.filename:
        inside(folder, annotation.filename, f"{root / 'Annotations' / name}.xml, <filename>")
        found = [annotation.filename] if (folder / annotation.filename).is_file() else []
    if not found:
        raise DataError(
            f"{root / 'Annotations' / name}.xml is the annotation of a missing image: {folder / name}.jpg is not there "
            "(nor with another suffix); restore it, or take it out of the split"
        )
    path = folder / found[0]
    size = annotation.size or _size_of(path)

    boxes, labels, ignore = [], [], []
    for item in annotation.objects:
        if item.name not in label_of:
            dropped.count("class not chosen", name)
            continue
        x1, y1, x2, y2 = item.box
        if x2 <= x1 or y2 <= y1:
            dropped.count("zero area", name)
            continue
        box = fit_box((x1 - 1, y1 - 1, x2, y2), size, dropped, name)
        if box is not None:
            boxes.append(box)
            labels.append(label_of[item.name])
            ignore.append(item.difficult)
    edges = np.array(boxes, dtype=np.float32).reshape(-1, 4)
    return Sample(
        image_id=name,
        name=found[0],
        boxes=edges,
        labels=np.array(labels, dtype=np.int64),
        masks=None,
        ignore=np.array(ignore, dtype=bool),
        areas=(edges[:, 2] - edges[:, 0]) * (edges[:, 3] - edges[:, 1]),
        size=size,
        pixels=path,
    )


def _size_of(path: Path) -> tuple[int, int]:
    """Height and width as decoded, from the file's header."""
    try:
        with Image.open(path) as image:
            width, height = image.size
            turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)  # orientations that swap the sides
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError, ValueError) as error:
        raise DataError(f"cannot read the size of {path}: {error}") from error
    return (width, height) if turned else (height, width)
