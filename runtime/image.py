"""The way from a photo to the canvas that a net sees, and back: decode, resize, place, the inverse map for boxes."""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .errors import BundleError, ImageError
from .native.bilinear import resize_bilinear

MAX_PIXELS = 100_000_000
"""Largest photo that is decoded (height · width); 100 megapixels are 300 MB as RGB."""

# Pillow also opens formats that run other programs (EPS calls Ghostscript) or are no photos: those are refused by name.
FORMATS = frozenset(
    {
        "AVIF",
        "BMP",
        "DIB",
        "GIF",
        "ICO",
        "JPEG",
        "JPEG2000",
        "MPO",
        "PCX",
        "PNG",
        "PPM",
        "QOI",
        "SGI",
        "TGA",
        "TIFF",
        "WEBP",
    }
)
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read_image(source: str | Path | bytes) -> np.ndarray:
    """A photo, from a path or from the bytes of a file, as RGB uint8 [H, W, 3], turned upright as EXIF says.

    Grey and palette images become RGB; transparent pixels are laid over white; 16-bit grey keeps its upper eight bits
    (as Pillow does with 16-bit RGB); CMYK is converted without a colour profile; of an animation, the first frame.

    Raises:
        ImageError: no file, zero bytes, truncated, of an unknown format or pixel type, or more than `MAX_PIXELS` pixels
            (found from the header, before anything is decoded).
    """
    if isinstance(source, bytes):
        return _decode(io.BytesIO(source), len(source), f"image of {len(source)} bytes")
    name = os.fspath(source)
    try:
        status = os.stat(name)
        if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
            found = "a folder" if stat.S_ISDIR(status.st_mode) else "something that is no regular file"
            raise ImageError(f"{name}: expected an image file, found {found}")
        with open(name, "rb") as file:
            return _decode(file, status.st_size, name)
    except OSError as error:
        raise ImageError(f"{name}: cannot be read: {error.strerror or error}") from error
    except ValueError as error:  # a NUL byte in the name
        raise ImageError(f"{name!r}: is no file name: {error}") from error


def _decode(file: Any, size: int, name: str) -> np.ndarray:
    if size == 0:
        raise ImageError(f"{name}: expected an image, found a file of zero bytes; copy it again")
    too_many = f"{name}: expected at most {MAX_PIXELS:,} pixels (read_image.MAX_PIXELS), found"
    try:
        with Image.open(file) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise ImageError(f"{too_many} {width:,} × {height:,}; resize it, or cut it into tiles")
            if image.format not in FORMATS:
                raise ImageError(f"{name}: expected a photo ({', '.join(sorted(FORMATS))}), found {image.format}")
            image.load()
            return _rgb(_upright(image), image.format or "", name)
    except ImageError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(f"{too_many} more ({error}); resize it, or cut it into tiles") from error
    except Image.UnidentifiedImageError as error:
        raise ImageError(f"{name}: expected an image, found {size} bytes of no known image format") from error
    # Decoders that are fed arbitrary bytes raise almost anything (struct.error, zlib.error, KeyError, MemoryError …).
    except Exception as error:
        raise ImageError(f"{name}: cannot be decoded, it is truncated or damaged ({error})") from error


def _upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(0x0112, 1)
    except Exception:  # EXIF that cannot be parsed states no orientation, and the pixels are fine
        orientation = 1
    turn = _TURNS.get(orientation)
    return image if turn is None else image.transpose(turn)


def _rgb(image: Image.Image, form: str, name: str) -> np.ndarray:
    mode = image.mode
    if mode.startswith("I;16") or (mode == "I" and form in ("PNG", "PPM")):  # Pillow opens 16-bit PNG or PGM as either
        grey = np.asarray(image).astype(np.int32)
        return np.repeat((np.clip(grey, 0, 65535) >> 8).astype(np.uint8)[..., None], 3, axis=2)
    if mode in ("I", "F"):
        raise ImageError(
            f"{name}: expected 8 or 16 bits per channel, found 32, whose range is unknown; convert it first"
        )
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return np.array(image.convert("RGB"))


@dataclass(frozen=True)
class Placement:
    """How one photo lies on the canvas: `original` (h, w) in photo pixels became `resized` (h, w), at the top left."""

    original: tuple[int, int]
    resized: tuple[int, int]

    def boxes_to_original(self, boxes: np.ndarray) -> np.ndarray:
        """xyxy boxes [D, 4] in canvas pixels -> float32 in photo pixels, clipped to the photo."""
        height, width = self.original
        scaled = np.asarray(boxes, np.float32) * _ratios(self.original, self.resized)
        return np.clip(scaled, 0, np.array([width, height, width, height], np.float32))

    def map_to_original(self, labels: np.ndarray) -> np.ndarray:
        """A label map of the canvas [H, W] -> that of the photo [h, w], of the same type: its valid part, nearest."""
        rows, columns = (nearest(new, old) for new, old in zip(self.original, self.resized, strict=True))
        if self.original == self.resized:
            return labels[: self.resized[0], : self.resized[1]].copy()
        return labels[rows[:, None], columns]

    def map_to_canvas(self, labels: np.ndarray, size: tuple[int, int], padding: int) -> np.ndarray:
        """A label map of the photo [h, w] -> that of a canvas of `size`, nearest, with `padding` where no photo is."""
        canvas = np.full(size, padding, labels.dtype)
        rows, columns = (nearest(new, old) for new, old in zip(self.resized, self.original, strict=True))
        canvas[: self.resized[0], : self.resized[1]] = labels[rows[:, None], columns]
        return canvas

    def boxes_to_canvas(self, boxes: np.ndarray) -> np.ndarray:
        """xyxy boxes [D, 4] in photo pixels -> float32 in canvas pixels."""
        return np.asarray(boxes, np.float32) * _ratios(self.resized, self.original)


def nearest(new: int, old: int) -> np.ndarray:
    """int64 [new]: the pixel of `old` in which the centre of each of `new` pixels lies, along one side."""
    return (2 * np.arange(new) + 1) * old // (2 * new)


def _ratios(to: tuple[int, int], of: tuple[int, int]) -> np.ndarray:
    down, across = (np.float32(a) / np.float32(b) for a, b in zip(to, of, strict=True))
    return np.array([across, down, across, down], np.float32)


@dataclass(frozen=True)
class Canvas:
    """The net's input and the rule that resizes photos onto it.

    `height`, `width`: the canvas in pixels, with `dynamic` the largest allowed; multiples of `multiple` (the stride).
    `min_size`, `max_size`: the model's rule (Faster R-CNN, arXiv:1506.01497, section 3.3): the shorter side becomes
    `min_size` unless the longer one would then pass `max_size`. `enlarge` False: photos that are smaller stay as they
    are.
    """

    height: int
    width: int
    min_size: int
    max_size: int
    multiple: int = 32
    dynamic: bool = False
    enlarge: bool = True

    def __post_init__(self) -> None:
        for name in ("height", "width", "min_size", "max_size", "multiple"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"canvas {name}: expected a whole number of pixels ≥ 1, found {value!r}")
        for name in ("height", "width"):
            value = getattr(self, name)
            if value % self.multiple:
                below, above = value // self.multiple * self.multiple, -(-value // self.multiple) * self.multiple
                near = f"{below} or {above}" if below else f"{above}"
                raise ValueError(f"canvas {name} {value} is no multiple of the stride {self.multiple}: take {near}")

    def resized_size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) of a photo on the canvas, each ≥ 1.

        torchvision's `GeneralizedRCNNTransform` to the pixel; where its result would not fit, the photo shrinks on.
        """
        scale = min(self.min_size / min(height, width), self.max_size / max(height, width))
        if scale > 1 and not self.enlarge:
            scale = 1.0
        resized = max(1, int(height * scale)), max(1, int(width * scale))
        if resized[0] <= self.height and resized[1] <= self.width:
            return resized
        if (
            self.height * width <= self.width * height
        ):  # in whole numbers: the side that limits fills the canvas exactly
            return self.height, max(1, width * self.height // height)
        return max(1, height * self.width // width), self.width

    def size_for(self, resized: Sequence[tuple[int, int]]) -> tuple[int, int]:
        """(H, W) of the canvas that holds a batch of resized photos."""
        if not self.dynamic:
            return self.height, self.width
        tallest, widest = (max(size[axis] for size in resized) for axis in (0, 1))
        return -(-tallest // self.multiple) * self.multiple, -(-widest // self.multiple) * self.multiple

    def place(self, images: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray, list[Placement]]:
        """RGB uint8 [h, w, 3] photos of any sizes -> canvas uint8 [N, H, W, 3], int32 [N, 2] (h, w), placements."""
        for image in images:
            check_rgb(image)
        placements = [Placement(image.shape[:2], self.resized_size(*image.shape[:2])) for image in images]
        sizes = [placement.resized for placement in placements]
        canvas = np.zeros((len(images), *(self.size_for(sizes) if sizes else (self.height, self.width)), 3), np.uint8)
        for target, image, (height, width) in zip(canvas, images, sizes, strict=True):
            resize_bilinear(image, height, width, out=target[:height, :width])
        return canvas, np.array(sizes, np.int32).reshape(-1, 2), placements

    def to_json(self) -> dict[str, Any]:
        """As the manifest has it; `enlarge` only where it is not what it was before there was a choice."""
        values = asdict(self)
        return values if not self.enlarge else {k: v for k, v in values.items() if k != "enlarge"}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Canvas:
        """Raises BundleError if a field is missing, unknown or out of its range."""
        known = {field.name for field in fields(cls)}
        if not isinstance(data, Mapping) or not {"height", "width", "min_size", "max_size"} <= set(data) <= known:
            raise BundleError(f"canvas: expected an object with the fields {', '.join(sorted(known))}, found {data!r}")
        try:
            canvas = cls(**data)
        except ValueError as error:
            raise BundleError(f"canvas: {error}") from error
        for name in ("dynamic", "enlarge"):
            if not isinstance(getattr(canvas, name), bool):
                raise BundleError(f"canvas: {name}: expected true or false, found {getattr(canvas, name)!r}")
        return canvas


def check_rgb(image: np.ndarray) -> None:
    """Raises ImageError unless `image` is a non-empty RGB uint8 [H, W, 3] array."""
    if not isinstance(image, np.ndarray):
        raise ImageError(
            f"expected a NumPy array RGB uint8 [H, W, 3], found {type(image).__name__}; read files with read_image"
        )
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ImageError(
            f"expected an RGB uint8 array [H, W, 3], found {image.dtype} {list(image.shape)}; use read_image"
        )
