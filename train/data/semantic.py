"""One image with a class for every pixel, and what every such data set offers; reads masks from PNG files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image, UnidentifiedImageError

from regionrt.runtime.image import MAX_PIXELS, read_image

from .errors import DataError
from .paths import listed

VOID = 255
"""In every label map: no class, neither learnt nor counted."""
VOID_NAMES = frozenset({"void", "unlabelled", "unlabeled", "ignore"})
MAX_CLASSES = 255
CLASS_FILES = ("labels.txt", "classes.txt")
_MAX_NAMES_BYTES = 2**20


@dataclass(frozen=True, eq=False)
class SemanticSample:
    """An image with its label map. Pixels are decoded when asked for.

    image_id: unique within the data set. name: what to show a person. size: (height, width) in px. pixels, mask: a file
    each, or the arrays themselves. table: uint8 [256], the label of each id in the mask file, `VOID` among them; ids
    that mean nothing are listed in `unknown`.
    """

    image_id: int | str
    name: str
    size: tuple[int, int]
    pixels: Path | np.ndarray
    mask: Path | np.ndarray
    table: np.ndarray | None = field(default=None, repr=False)
    unknown: frozenset[int] = frozenset()
    classes: int = 0  # of the data, for the message only

    def image(self) -> np.ndarray:
        """RGB uint8 [height, width, 3], decoded the way the runtime does it. ImageError, or DataError for a size."""
        image = self.pixels.copy() if isinstance(self.pixels, np.ndarray) else read_image(self.pixels)
        if image.shape[:2] != self.size:
            raise DataError(_other_size(self.name, image.shape[:2], self.size))
        return image

    def label_map(self) -> np.ndarray:
        """uint8 [height, width]: labels and `VOID`. DataError for an id that is no class, naming file and id."""
        if isinstance(self.mask, np.ndarray):
            return self.mask.copy()
        ids = read_mask(self.mask)
        if ids.shape != self.size:
            raise DataError(_other_size(str(self.mask), self.size, ids.shape))
        if self.table is None:
            return ids
        if self.unknown and (found := sorted(self.unknown & set(np.unique(ids).tolist()))):
            raise DataError(
                f"{self.mask}: expected the ids of {self.classes} classes (0…{self.classes - 1}) or of void, found "
                f"{listed(map(str, found[:6]))}: list all classes in {CLASS_FILES[0]}, one a line, or mend the mask"
            )
        return self.table[ids]


def _other_size(name: str, image: Sequence[int], mask: Sequence[int]) -> str:
    return (
        f"{name}: expected a mask of the image's size {image[1]}×{image[0]}, found {mask[1]}×{mask[0]}: "
        "make masks of the images as they are (EXIF orientation applied)"
    )


class SemanticData(Protocol):
    """What training and evaluation of segmentation use."""

    @property
    def labels(self) -> tuple[str, ...]:
        """Class names; the index is the label in the maps."""

    @property
    def split(self) -> str: ...

    @property
    def has_masks(self) -> bool: ...

    @property
    def dropped(self) -> Counter[str]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> SemanticSample: ...


@dataclass(frozen=True)
class ClassIds:
    """names: the data's classes in the order of their labels. table, unknown: as in `SemanticSample`."""

    labels: tuple[str, ...]
    table: np.ndarray
    unknown: frozenset[int]
    classes: int


def class_ids(known: Sequence[str], labels: Sequence[str] | None, where: str) -> ClassIds:
    """Which id of a mask file becomes which label.

    known: names by id, as the data has them; one of `VOID_NAMES` is void. labels: a checkpoint's; every class of the
    data must be among them. DataError otherwise.
    """
    names = [name for name in known if name.lower() not in VOID_NAMES]
    if not 1 <= len(names) <= MAX_CLASSES or len(set(names)) != len(names):
        raise DataError(f"{where}: expected 1 to {MAX_CLASSES} different class names, found {listed(known[:12])}")
    wanted = tuple(names if labels is None else labels)
    place = {name: label for label, name in enumerate(wanted)}
    missing = [name for name in names if name not in place]
    if missing:
        raise DataError(
            f"{where}: classes {listed(missing[:12])} are unknown to the checkpoint, which has {listed(wanted[:12])}: "
            "train with this data's classes"
        )
    table = np.full(256, VOID, np.uint8)
    for number, name in enumerate(known):
        if name in place and name.lower() not in VOID_NAMES:
            table[number] = place[name]
    unknown = frozenset(range(len(known), VOID))
    return ClassIds(wanted, table, unknown, len(names))


def names_in(root: Path) -> list[str] | None:
    """Class names by id from `labels.txt` or `classes.txt`, one a line; None where there is no such file."""
    path = next((root / name for name in CLASS_FILES if (root / name).is_file()), None)
    if path is None:
        return None
    try:
        if path.stat().st_size > _MAX_NAMES_BYTES:
            raise DataError(f"{path}: expected one class name a line, found {path.stat().st_size:,} bytes")
        names = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read the class names in {path}: {error}") from error
    while names and not names[-1]:
        names.pop()
    if not names or not all(names):
        raise DataError(f"{path}: expected one class name a line and no empty lines")
    return names


def read_mask(path: Path) -> np.ndarray:
    """uint8 [h, w]: ids of a mask of one channel (grey, or a palette whose colours mean nothing here). DataError."""
    try:
        with Image.open(path) as image:
            if image.width * image.height > MAX_PIXELS:
                raise DataError(f"{path}: expected at most {MAX_PIXELS:,} pixels, found {image.width * image.height:,}")
            if image.mode not in ("L", "P", "1"):
                raise DataError(
                    f"{path}: expected a mask of one 8-bit channel with class ids, found {image.mode} pixels: "
                    "convert colours to ids"
                )
            return np.array(image if image.mode != "1" else image.convert("L").point(lambda v: v // 255), np.uint8)
    except DataError:
        raise
    except FileNotFoundError as error:
        raise DataError(f"{path}: expected the mask of an image, found no such file") from error
    # Decoders that are fed arbitrary bytes raise almost anything.
    except Exception as error:
        raise DataError(f"{path}: cannot be read as a mask, it is truncated or no PNG ({error})") from error


def size_of(path: Path, what: str) -> tuple[int, int]:
    """(height, width) from the header of an image file, upright. DataError where it is missing or no image."""
    try:
        with Image.open(path) as image:
            turned = what == "image" and image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
            return (image.width, image.height) if turned else (image.height, image.width)
    except FileNotFoundError as error:
        raise DataError(f"{path}: expected an {what} that the split lists, found no such file") from error
    except (OSError, ValueError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: cannot be read as an {what}: {error}") from error


def sample_of(image: Path, mask: Path, ids: ClassIds, name: str) -> SemanticSample:
    """A sample of two files, whose sizes are compared by their headers. DataError where they differ."""
    size, of_mask = size_of(image, "image"), size_of(mask, "annotation")
    if size != of_mask:
        raise DataError(_other_size(str(mask), size, of_mask))
    return SemanticSample(name, name, size, image, mask, ids.table, ids.unknown, ids.classes)


def pixels_of_classes(data: SemanticData) -> tuple[np.ndarray, np.ndarray]:
    """Pixels of each class, and pixels of the images in which it occurs, void left out of both: int64 [K] each."""
    count = len(data.labels)
    own, around = np.zeros(count, np.int64), np.zeros(count, np.int64)
    for index in range(len(data)):
        found = np.bincount(data[index].label_map().ravel(), minlength=256)[:count]
        own += found
        around += np.where(found > 0, found.sum(), 0)
    return own, around


def median_frequency_weights(data: SemanticData) -> np.ndarray:
    """float32 [K]: median frequency balancing (Eigen and Fergus, arXiv:1411.4734, section 6.3.2; SegNet, 1511.00561).

    freq(c) = pixels of c / pixels of the images with c; weight = median of freq / freq(c). A class that does not occur
    weighs nothing.
    """
    own, around = pixels_of_classes(data)
    frequency = np.divide(own, around, out=np.zeros(len(own)), where=around > 0)
    present = frequency > 0
    if not present.any():
        raise DataError(f"{data.split}: expected pixels of at least one class, found only void")
    weights = np.zeros(len(own))
    weights[present] = np.median(frequency[present]) / frequency[present]
    return weights.astype(np.float32)
