"""`shapes`: textured circles, squares, triangles, stars and crosses over real photos, made on the fly.

Everything about image `index` of a split follows from (seed, split, index) alone: the same in every process and in any
order. Boxes and masks are exact: of the part that later shapes leave visible. About one image in twelve has no object.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .boxes import DroppedBoxes
from .classes import map_classes
from .errors import DataError
from .masks import rle_from_mask
from .outlines import POLYGONS
from .paths import listed
from .sample import Sample
from .scene import MOST_SHAPES, draw_scene

SPLITS = ("train", "val", "test")
NAMES = tuple(POLYGONS)


@dataclass(frozen=True)
class ShapesSpec:
    """train, val, test: numbers of images. size: height, width in px. seed: any number ≥ 0.

    turn: degrees, 0 to 180, by which a shape leans at most to either side. most: shapes in one image, 1 to 12.
    """

    train: int = 400
    val: int = 80
    test: int = 80
    size: tuple[int, int] = (256, 256)
    seed: int = 0
    turn: int = 180
    most: int = MOST_SHAPES

    def __post_init__(self) -> None:
        if min(self.train, self.val, self.test) < 1:
            raise DataError("shapes: expected at least one image for each of train, val and test")
        if not all(64 <= side <= 2048 for side in self.size):
            raise DataError(f"shapes: expected a size between 64x64 and 2048x2048, found {self.size[0]}x{self.size[1]}")
        if self.seed < 0:
            raise DataError(f"shapes: expected a seed ≥ 0, found {self.seed}")
        if not 1 <= self.most <= 12:
            raise DataError(f"shapes: expected most from 1 to 12 shapes in an image, found {self.most}")
        if not 0 <= self.turn <= 180:
            raise DataError(f"shapes: expected a turn from 0 to 180 degrees, found {self.turn}")


def is_shapes_spec(path: str | Path) -> bool:
    return isinstance(path, str) and (path == "shapes" or path.startswith("shapes:"))


def parse_spec(text: str) -> ShapesSpec:
    """From `shapes` or `shapes:train=400,val=80,test=80,size=256x256,seed=0,turn=180,most=6` (size: height x width)."""
    known = tuple(field.name for field in fields(ShapesSpec))
    spec: dict[str, object] = {}
    _, _, settings = text.partition(":")
    for setting in filter(None, settings.split(",")):
        key, _, value = (part.strip() for part in setting.partition("="))
        if key not in known or key in spec:
            raise DataError(f"{text}: expected each of {listed(known)} at most once as key=value, found {setting!r}")
        try:
            if key == "size":
                height, width = (int(side) for side in value.split("x"))
                spec[key] = (height, width)
            else:
                spec[key] = int(value)
        except ValueError as error:
            form = "HEIGHTxWIDTH, such as 256x256" if key == "size" else "a whole number"
            raise DataError(f"{text}: expected {key} as {form}, found {value!r}") from error
    return ShapesSpec(**spec)  # type: ignore[arg-type]


class ShapesData:
    """A split of `shapes`; see `DetectionData`. Each access draws the image anew (some 10 ms at 256×256)."""

    has_masks = True

    def __init__(
        self,
        spec: str | ShapesSpec,
        split: str,
        labels: Sequence[str] | None = None,
        classes: Sequence[str] | None = None,
    ) -> None:
        self.spec = parse_spec(spec) if isinstance(spec, str) else spec
        if split not in SPLITS:
            raise DataError(f"shapes: expected one of the splits {listed(SPLITS)}, found {split!r}")
        mapped = map_classes(NAMES, NAMES, labels, classes, "shapes")
        self.split = split
        self.labels = mapped.labels
        self.dropped: Counter[str] = DroppedBoxes()
        self._label_of = mapped.label_of

    def __len__(self) -> int:
        return getattr(self.spec, self.split)

    def __getitem__(self, index: int) -> Sample:
        if not -len(self) <= index < len(self):
            raise IndexError(f"shapes has {len(self)} images in {self.split}, found index {index}")
        index %= len(self)
        rng = np.random.default_rng([self.spec.seed, SPLITS.index(self.split), index])
        pixels, objects = draw_scene(rng, self.spec.size, self.split, self.spec.turn, self.spec.most)
        objects = [(kind, mask) for kind, mask in objects if kind in self._label_of]
        boxes = np.array([_box_of(mask) for _, mask in objects], dtype=np.float32).reshape(-1, 4)
        return Sample(
            image_id=index + 1,
            name=f"shapes_{self.split}_{index:04d}",
            boxes=boxes,
            labels=np.array([self._label_of[kind] for kind, _ in objects], dtype=np.int64),
            masks=[rle_from_mask(mask) for _, mask in objects],
            ignore=np.zeros(len(objects), dtype=bool),
            areas=np.array([mask.sum() for _, mask in objects], dtype=np.float32),
            size=self.spec.size,
            pixels=pixels,
        )


def _box_of(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Edges of a mask that is not empty, xyxy px."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return columns[0], rows[0], columns[-1] + 1, rows[-1] + 1


def write_images(folder: str | Path, count: int, split: str = "test", spec: str | ShapesSpec = "shapes") -> list[Path]:
    """Write the first `count` images of a split as PNG files (`shapes_test_0000.png`, …) and return their paths.

    The folder is made where it is missing. `count` may be larger than the split.
    """
    spec = parse_spec(spec) if isinstance(spec, str) else spec
    counts: dict[str, Any] = {split: count} if split in SPLITS else {}
    data = ShapesData(replace(spec, **counts), split)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for index in range(count):
        sample = data[index]
        path = folder / f"{sample.name}.png"
        Image.fromarray(sample.image()).save(path)
        paths.append(path)
    return paths
