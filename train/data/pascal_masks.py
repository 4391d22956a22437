"""Pascal VOC segmentation: JPEGImages/, SegmentationClass/*.png, ImageSets/Segmentation/<split>.txt (VOC2012 devkit).

The masks' palette indices are the ids; 255, the border of an object, is void. Class names are VOC's 20 and the
background, or those of `labels.txt` in the folder.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from .camvid import IMAGE_SUFFIXES
from .errors import DataError
from .paths import listed
from .semantic import SemanticSample, class_ids, names_in, sample_of
from .voc import read_split

VOC_CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip


class PascalMasksData:
    """A split of a Pascal-style folder; see `SemanticData`."""

    has_masks = False

    def __init__(self, root: Path, split: str, labels: Sequence[str] | None = None) -> None:
        lists = root / "ImageSets" / "Segmentation"
        if not (lists / f"{split}.txt").is_file():
            found = listed(sorted(path.stem for path in lists.glob("*.txt")))
            raise DataError(f"{root}: expected ImageSets/Segmentation/{split}.txt, found the splits {found}")
        names = read_split(lists / f"{split}.txt")
        if not names:
            raise DataError(f"{root}: the split {split!r} lists no image")
        ids = class_ids(names_in(root) or VOC_CLASSES, labels, str(root))
        files = {path.stem: path for path in (root / "JPEGImages").iterdir() if path.suffix.lower() in IMAGE_SUFFIXES}
        absent = [name for name in names if name not in files]
        if absent:
            raise DataError(f"{root / 'JPEGImages'}: the split lists images that are missing: {listed(absent[:6])}")
        self.root = root
        self.split = split
        self.labels = ids.labels
        self.dropped: Counter[str] = Counter()
        self._samples = [
            sample_of(files[name], root / "SegmentationClass" / f"{name}.png", ids, name) for name in names
        ]

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> SemanticSample:
        return self._samples[index]


def is_pascal_masks(root: Path) -> bool:
    return all((root / part).is_dir() for part in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"))
