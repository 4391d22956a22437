"""What `infer` writes for a run over many photos: JSON, COCO results, or pictures, each file whole or not at all."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .atomic import write_file_atomic
from .errors import OutputError
from .results import Detections
from .semantic import SemanticMap

JPEG_QUALITY = 92
_JPEG_SIDE = 65_500  # the longest side that a JPEG can have
Echo = Callable[[str], None]
Found = Detections | SemanticMap


class JsonWriter:
    """One JSON object per photo: a line for `echo`, or with a folder the file `<name>.json` in it."""

    def __init__(self, names: Mapping[str, str], out: Path | None, echo: Echo) -> None:
        self._names, self._out, self._echo = names, out, echo

    def write(self, file: str, image: np.ndarray, found: Found) -> int:
        """Returns how many objects were written."""
        entry = {"file": file, **found.to_json()}
        if self._out is None:
            self._echo(json.dumps(entry))
        else:
            write_file_atomic(self._out / f"{self._names[file]}.json", json.dumps(entry, indent=1) + "\n")
        return len(found)

    def finish(self) -> None:
        """Nothing is held back."""


class CocoWriter:
    """One list of COCO results for all photos: for `echo`, or `results.json` with `images.json` (ids) beside it."""

    def __init__(self, names: Mapping[str, str], out: Path | None, echo: Echo) -> None:
        self._ids = image_ids(names)
        self._out, self._echo = out, echo
        self._results: list[dict[str, Any]] = []
        self._images: list[dict[str, Any]] = []
        self._labels: tuple[str, ...] = ()

    def write(self, file: str, image: np.ndarray, found: Found) -> int:
        """Returns how many objects were added."""
        self._labels = found.names
        self._results += found.to_coco(self._ids[file])
        height, width = found.image_size
        self._images.append({"id": self._ids[file], "file_name": file, "height": height, "width": width})
        return len(found)

    def finish(self) -> None:
        """Writes the lists; category ids are the model's labels, and `images.json` names them."""
        if self._out is None:
            self._echo(json.dumps(self._results))
            return
        named = enumerate(self._labels)
        categories = [{"id": label, "name": name} for label, name in named if name != "__background__"]
        key = {"images": self._images, "categories": categories}
        write_file_atomic(self._out / "images.json", json.dumps(key, indent=1) + "\n")
        write_file_atomic(self._out / "results.json", json.dumps(self._results) + "\n")


class ImageWriter:
    """The photos with what was found above `score` drawn on them: `<name>.jpg` in the folder."""

    def __init__(self, names: Mapping[str, str], out: Path, score: float) -> None:
        self._names, self._out, self._score = names, out, score
        spare_photos(names, out, (".jpg", ".png"))

    def write(self, file: str, image: np.ndarray, found: Found) -> int:
        """Returns how many objects were drawn."""
        shown = found.above(self._score)
        picture = Image.fromarray(shown.draw(image, self._score))
        data = io.BytesIO()
        if max(picture.size) <= _JPEG_SIDE:
            picture.save(data, "JPEG", quality=JPEG_QUALITY, subsampling=0)  # full colour: thin lines stay sharp
            suffix = ".jpg"
        else:
            picture.save(data, "PNG")
            suffix = ".png"
        write_file_atomic(self._out / f"{self._names[file]}{suffix}", data.getvalue())
        return len(shown)

    def finish(self) -> None:
        """Nothing is held back."""


class PaletteWriter:
    """Label maps as PNGs of palette indices, in the photo's size: `<name>.png` in the folder."""

    def __init__(self, names: Mapping[str, str], out: Path) -> None:
        self._names, self._out = names, out
        spare_photos(names, out, (".png",))

    def write(self, file: str, image: np.ndarray, found: Found) -> int:
        """Returns how many classes occur. OutputError where the net finds objects, not label maps."""
        if not isinstance(found, SemanticMap):
            raise OutputError("--format palette: this bundle finds objects; take json, coco or image")
        write_file_atomic(self._out / f"{self._names[file]}.png", found.palette_png())
        return len(found)

    def finish(self) -> None:
        """Nothing is held back."""


def spare_photos(names: Mapping[str, str], out: Path, suffixes: Sequence[str]) -> None:
    """OutputError where an output would take the place of an input."""
    inputs = {Path(file).resolve() for file in names}
    for name in names.values():
        for suffix in suffixes:
            target = (out / name).with_name(name + suffix)
            if target.resolve() in inputs:
                raise OutputError(f"{target}: would overwrite the photo itself; give another folder with --out")


def output_names(files: Sequence[str]) -> dict[str, str]:
    """File → the name of its output without a suffix: its own, numbered where two folders hold the same one."""
    names: dict[str, str] = {}
    taken = {Path(file).stem for file in files}
    used: set[str] = set()
    for file in files:
        stem = name = Path(file).stem
        number = 2
        while name in used or (name != stem and name in taken):
            name, number = f"{stem}-{number}", number + 1
        used.add(name)
        names[file] = name
    return names


def image_ids(names: Mapping[str, str]) -> dict[str, int]:
    """COCO image ids: the file's own number where all are called by one (000000000139.jpg → 139), else 1, 2, 3 …"""
    stems = [Path(file).stem for file in names]
    numbers = [int(stem) for stem in stems if stem.isascii() and stem.isdigit()]
    if len(set(numbers)) == len(stems):
        return dict(zip(names, numbers, strict=True))
    return {file: index for index, file in enumerate(names, start=1)}
