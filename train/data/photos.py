"""Photos that lie as files inside the scikit-image and scikit-learn wheels: the backgrounds of `shapes`.

Only files that need no download; found without importing either package, which takes seconds. Each split has photos
of its own, so that a net is tested in front of backgrounds it has not seen. Authors and licences: the documentation of
`skimage.data`, and sklearn/datasets/images/README.txt in the wheel.
"""

from __future__ import annotations

from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

from PIL import Image

from regionrt.runtime.image import read_image

from .errors import DataError

PHOTOS = {
    "train": (
        "skimage/data/astronaut.png",
        "skimage/data/motorcycle_left.png",
        "sklearn/datasets/images/flower.jpg",
        "skimage/data/camera.png",
        "skimage/data/rocket.jpg",
        "skimage/data/brick.png",
        "skimage/data/hubble_deep_field.jpg",
        "skimage/data/motorcycle_right.png",
        "skimage/data/gravel.png",
        "skimage/data/text.png",
    ),
    "val": ("skimage/data/coffee.png", "skimage/data/ihc.png", "skimage/data/page.png"),
    "test": ("skimage/data/chelsea.png", "sklearn/datasets/images/china.jpg", "skimage/data/grass.png"),
}


@lru_cache(maxsize=16)
def photo(name: str) -> Image.Image:
    """An RGB photo by its path below site-packages. Raises DataError where the wheel is missing or lacks the file."""
    package, _, rest = name.partition("/")
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        wheel = {"skimage": "scikit-image", "sklearn": "scikit-learn"}[package]
        raise DataError(
            f"the backgrounds of `shapes` are photos in the {wheel} wheel, which is not installed: pip install {wheel}"
        )
    path = Path(spec.submodule_search_locations[0]) / rest
    if not path.is_file():
        raise DataError(f"`shapes` needs the photo {path} as a background, but this version of the wheel lacks it")
    return Image.fromarray(read_image(path))
