"""What was found drawn on the photo: masks, boxes, label maps, and names legible from thumbnails to posters."""

from __future__ import annotations

import colorsys
import functools
import io
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .image import check_rgb

if TYPE_CHECKING:
    from .results import Detections
    from .semantic import SemanticMap

Colour = tuple[int, int, int]
Rectangle = tuple[int, int, int, int]

MASK_OPACITY = 0.45
MAP_OPACITY = 0.55
BACKGROUNDS = ("__background__", "background")
SMALLEST_TEXT_PX = 11
_TEXT_PER_SIDE = 0.028  # of the shorter side of the photo


def draw_detections(image: np.ndarray, found: Detections) -> np.ndarray:
    """RGB uint8 [H, W, 3] -> a new picture of the same size with every detection of `found` on it, the best on top.

    Raises ImageError if `image` is no RGB photo, ValueError if it is not the photo that `found` belongs to.
    """
    check_rgb(image)
    if image.shape[:2] != tuple(found.image_size):
        raise ValueError(f"the detections belong to a photo of {found.image_size}, this one is {image.shape[:2]}")
    pixels = image.copy()
    order = range(len(found) - 1, -1, -1)
    if found.roi_masks is not None:
        for index in order:
            _blend(pixels, found, index)
    picture = Image.fromarray(pixels)
    draw = ImageDraw.Draw(picture)
    text_px = max(SMALLEST_TEXT_PX, round(min(picture.size) * _TEXT_PER_SIDE))
    for index in order:
        _outline(draw, _whole(found.boxes_xyxy[index]), label_colour(int(found.labels[index])), max(1, text_px // 7))
    taken: list[Rectangle] = []
    for index in range(len(found)):  # the best first: it gets its place beside the box
        _label(draw, found, index, text_px, taken)
    return np.array(picture)


def draw_map(image: np.ndarray, found: SemanticMap) -> np.ndarray:
    """RGB uint8 [H, W, 3] -> a new picture of the same size with the classes laid over it, and a legend of those there.

    A class that is called background stays as it is in the photo.
    Raises ImageError if `image` is no RGB photo, ValueError if it is not the photo that `found` belongs to.
    """
    check_rgb(image)
    if image.shape[:2] != found.image_size:
        raise ValueError(f"the label map belongs to a photo of {found.image_size}, this one is {image.shape[:2]}")
    colours = np.array([label_colour(label) for label in range(256)], np.float32)
    pixels = np.rint(image * (1 - MAP_OPACITY) + colours[found.labels] * MAP_OPACITY).astype(np.uint8)
    behind = [label for label, name in enumerate(found.names) if name in BACKGROUNDS]
    shown = np.isin(found.labels, behind)
    pixels[shown] = image[shown]
    picture = Image.fromarray(pixels)
    _legend(picture, [item for item in found.shares().items() if item[0] not in BACKGROUNDS], found.names)
    return np.array(picture)


def palette_png(labels: np.ndarray) -> bytes:
    """A label map uint8 [H, W] as a PNG whose palette indices are the labels, shown in `label_colour`s."""
    picture = Image.fromarray(labels)
    picture.putpalette([channel for label in range(256) for channel in label_colour(label)], "RGB")
    data = io.BytesIO()
    picture.save(data, "PNG")
    return data.getvalue()


def _legend(picture: Image.Image, shares: list[tuple[str, float]], names: tuple[str, ...]) -> None:
    """Names and shares on patches of their colours in the lower left, the largest first, as many as fit."""
    draw = ImageDraw.Draw(picture)
    text_px = max(SMALLEST_TEXT_PX, round(min(picture.size) * _TEXT_PER_SIDE))
    font, pad = _font(text_px), max(1, text_px // 6)
    texts = [(name, f"{name} {share:.0%}" if share >= 0.005 else f"{name} <1%") for name, share in shares]
    boxes = [[round(v) for v in draw.textbbox((0, 0), text, font=font)] for _, text in texts]
    height = max((bottom - top for _, top, _, bottom in boxes), default=0) + 2 * pad
    column, x, y = 0, 0, picture.height - height
    for (name, text), (left, top, right, _) in zip(texts, boxes, strict=True):
        width = right - left + 2 * pad
        if y < 0:  # the next column
            column, x, y = 0, x + column, picture.height - height
        if y < 0 or x + width > picture.width:
            return
        colour = label_colour(names.index(name))
        draw.rectangle((x, y, x + width - 1, y + height - 1), fill=colour)
        draw.text((x + pad - left, y + pad - top), text, fill=text_colour(colour), font=font)
        column, y = max(column, width), y - height


def label_colour(label: int) -> Colour:
    """One colour per label, always the same: hues a golden section apart, so that neighbours differ most."""
    hue = (label * 0.61803398875) % 1.0
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.85 if label % 2 else 0.65, 1.0 if label % 3 else 0.85)
    return round(red * 255), round(green * 255), round(blue * 255)


def text_colour(background: Colour) -> Colour:
    """Black or white, whichever contrasts more (relative luminance, ITU-R BT.709)."""
    red, green, blue = ((channel / 255) ** 2.2 for channel in background)
    return (0, 0, 0) if 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.18 else (255, 255, 255)


def _blend(pixels: np.ndarray, found: Detections, index: int) -> None:
    crop = found.crop(index)
    height, width = crop.mask.shape
    part = pixels[crop.y : crop.y + height, crop.x : crop.x + width]
    colour = np.array(label_colour(int(found.labels[index])), np.float32)
    part[crop.mask] = np.rint(part[crop.mask] * (1 - MASK_OPACITY) + colour * MASK_OPACITY)


def _whole(box: np.ndarray) -> Rectangle:
    x0, y0, x1, y1 = (round(float(value)) for value in box)
    return x0, y0, max(x1 - 1, x0), max(y1 - 1, y0)  # the last pixel inside


def _outline(draw: ImageDraw.ImageDraw, box: Rectangle, colour: Colour, width: int) -> None:
    around = (box[0] - 1, box[1] - 1, box[2] + 1, box[3] + 1)
    draw.rectangle(around, outline=text_colour(colour), width=width + 2)  # a rim, for photos of the label's own colour
    draw.rectangle(box, outline=colour, width=width)


@functools.lru_cache(maxsize=32)
def _font(size_px: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    try:
        return ImageFont.load_default(size_px)
    except ImportError:  # a Pillow without FreeType: its one bitmap font
        return ImageFont.load_default()


def _label(draw: ImageDraw.ImageDraw, found: Detections, index: int, text_px: int, taken: list[Rectangle]) -> None:
    colour = label_colour(int(found.labels[index]))
    name, percent = found.name(index), f"{float(found.scores[index]):.0%}"
    font, pad = _font(text_px), max(1, text_px // 6)
    picture_width, picture_height = draw.im.size
    for text in (f"{name} {percent}", percent):  # in a picture narrower than the name the score still fits
        left, top, right, bottom = (round(value) for value in draw.textbbox((0, 0), text, font=font))
        width, height = right - left + 2 * pad, bottom - top + 2 * pad
        if width <= picture_width and height <= picture_height:
            break
    else:
        return
    place = _free_place(_whole(found.boxes_xyxy[index]), width, height, picture_width, picture_height, taken)
    taken.append(place)
    draw.rectangle(place, fill=colour)
    draw.text((place[0] + pad - left, place[1] + pad - top), text, fill=text_colour(colour), font=font)


def _free_place(
    box: Rectangle, width: int, height: int, picture_width: int, picture_height: int, taken: list[Rectangle]
) -> Rectangle:
    """Above the box, inside its top, inside its bottom, below it: the first place where it hides no label."""
    places = []
    for y in (box[1] - height, box[1], box[3] - height + 1, box[3] + 1):
        x = min(max(box[0], 0), picture_width - width)
        y = min(max(y, 0), picture_height - height)
        places.append((x, y, x + width - 1, y + height - 1))
    return next((place for place in places if not any(_overlap(place, other) for other in taken)), places[0])


def _overlap(one: Rectangle, other: Rectangle) -> bool:
    return one[0] <= other[2] and other[0] <= one[2] and one[1] <= other[3] and other[1] <= one[3]
