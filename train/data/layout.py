"""Which kind of data a path holds: VOC, COCO, label maps, or the made `shapes`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .camvid import CamvidData, camvid_splits
from .coco import CocoData, coco_files
from .errors import DataError
from .pascal_masks import PascalMasksData, is_pascal_masks
from .sample import DetectionData
from .semantic import SemanticData
from .shapes import ShapesData, is_shapes_spec
from .shapes_maps import ShapesMaps
from .voc import VocData

LOOKED_FOR = (
    "looked for VOC (Annotations/, JPEGImages/, ImageSets/Main/*.txt) and COCO (annotations/instances_*.json); "
    "or give shapes for data made on the fly"
)
LOOKED_FOR_MAPS = (
    'looked for CamVid-style pairs (train.txt with "image mask" a line, or train/ and trainannot/) and Pascal-style '
    "masks (JPEGImages/, SegmentationClass/, ImageSets/Segmentation/*.txt); or give shapes for data made on the fly"
)


def open_data(
    path: str | Path, split: str, labels: Sequence[str] | None = None, classes: Sequence[str] | None = None
) -> DetectionData:
    """Open one split of a data set.

    path: a VOC or COCO folder, or `shapes` / `shapes:train=400,size=256x256,turn=30` (a folder of that name: ./shapes).
    labels: a checkpoint's labels, background first; classes are mapped to them by name, and one that the checkpoint
    does not know is an error. None: the data's own classes, the same for every split of a VOC folder; pass the training
    split's labels when opening the others. classes: use these classes only; objects of other classes are left out and
    counted (`dropped["class not chosen"]`), their images stay. Without `labels` they become 1, 2, … in this order.

    Warns once, with counts, of boxes that were dropped (zero area, outside the image) or clipped.
    Raises DataError: no known layout, no such split, broken or missing files, unknown classes.
    """
    if is_shapes_spec(path):
        return ShapesData(str(path), split, labels, classes)
    root = Path(path)
    if not root.is_dir():
        kind = "it is a file" if root.exists() else "it does not exist"
        raise DataError(f"{root}: expected a data folder, but {kind}; {LOOKED_FOR}")
    voc = all((root / part).is_dir() for part in ("Annotations", "JPEGImages", "ImageSets/Main"))
    coco = bool(coco_files(root))
    if voc and coco:
        raise DataError(f"{root}: holds both a VOC and a COCO layout; keep one, or put them into folders of their own")
    if voc:
        return VocData(root, split, labels, classes)
    if coco:
        return CocoData(root, split, labels, classes)
    raise DataError(f"{root}: no known layout: found {_contents(root)}; {LOOKED_FOR}{_hint(root)}")


def open_semantic(
    path: str | Path, split: str, labels: Sequence[str] | None = None, classes: Sequence[str] | None = None
) -> SemanticData:
    """Open one split of data with a class for every pixel: CamVid-style, Pascal-style, or `shapes`.

    labels: a checkpoint's; the data's classes are mapped to them by name. None: the data's own. classes: must be None,
    since a map without some of its classes would have to call them something. Raises DataError.
    """
    if classes is not None:
        raise DataError("classes cannot be chosen of label maps: name those to leave out `void` in labels.txt")
    if is_shapes_spec(path):
        return ShapesMaps(str(path), split, labels)
    root = Path(path)
    if not root.is_dir():
        kind = "it is a file" if root.exists() else "it does not exist"
        raise DataError(f"{root}: expected a data folder, but {kind}; {LOOKED_FOR_MAPS}")
    camvid, pascal = bool(camvid_splits(root)), is_pascal_masks(root)
    if camvid and pascal:
        raise DataError(f"{root}: holds both a CamVid and a Pascal layout; keep one")
    if camvid:
        return CamvidData(root, split, labels)
    if pascal:
        return PascalMasksData(root, split, labels)
    raise DataError(f"{root}: no known layout of label maps: found {_contents(root)}; {LOOKED_FOR_MAPS}")


def _contents(root: Path, most: int = 8) -> str:
    names = sorted(path.name + ("/" if path.is_dir() else "") for path in root.iterdir())
    shown = ", ".join(names[:most]) or "an empty folder"
    return shown + (f", … ({len(names)} entries)" if len(names) > most else "")


def _hint(root: Path) -> str:
    """The usual slips: the folder above the data, or a VOC folder without lists of its splits."""
    for child in sorted(path for path in root.iterdir() if path.is_dir()):
        if (child / "Annotations").is_dir() or coco_files(child):
            return f". Did you mean {child}?"
    if camvid_splits(root) or is_pascal_masks(root):
        return ". It holds label maps: they are for segmentation, such as `regionrt train unet`"
    if (root / "Annotations").is_dir() and (root / "JPEGImages").is_dir():
        return ". It looks like VOC without ImageSets/Main/*.txt: list the image names of each split there, one a line"
    return ""
