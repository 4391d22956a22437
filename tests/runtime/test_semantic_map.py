"""Label maps behind the Predictor: mapped back to the pixel, told, drawn, and refused where the artefact is broken."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from regionrt.runtime import BackendError, Canvas, ImageError, SemanticMap
from regionrt.runtime.drawing import label_colour
from regionrt.runtime.semantic import SegmentationPredictor

NAMES = ("sky", "road", "car", "tree")
CANVAS = Canvas(48, 64, 48, 64, 16, enlarge=False)


class Red:
    """Says of each canvas pixel its red value / 40, as a net would that sees perfectly."""

    name = "fake"
    probabilities = False

    def run(self, images: np.ndarray, image_sizes: np.ndarray) -> dict[str, np.ndarray]:
        labels = (images[..., 0] // 40).astype(np.uint8)
        for n, (height, width) in enumerate(image_sizes):  # what lies outside is anything
            labels[n, height:], labels[n, :, width:] = 3, 3
        found = {"labels": labels}
        if self.probabilities:
            found["probabilities"] = np.eye(len(NAMES), dtype=np.float32)[labels].transpose(0, 3, 1, 2)
        return found

    def close(self) -> None:
        pass


def photo(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    labels = np.random.default_rng(height * 100 + width).integers(0, 4, (height, width)).astype(np.uint8)
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0] = 40 * labels
    return pixels, labels


def predictor(runner: object = None, canvas: Canvas = CANVAS) -> SegmentationPredictor:
    return SegmentationPredictor(runner or Red(), canvas, NAMES, {})


@pytest.mark.parametrize("dynamic", [False, True])
def test_odd_sizes_come_back_to_the_pixel(dynamic: bool) -> None:
    """Padded and cropped back exactly, a pixel below, at and above multiples of the stride, in mixed batches."""
    canvas = Canvas(48, 64, 48, 64, 16, dynamic=dynamic, enlarge=False)
    sizes = [(h, w) for h in (15, 16, 17, 31, 32, 33, 47, 48) for w in (15, 17, 33, 63, 64)]
    photos, truths = zip(*(photo(*size) for size in sizes), strict=True)
    with predictor(canvas=canvas) as predict:
        for size, found, truth in zip(sizes, predict.batch(photos), truths, strict=True):
            assert found.image_size == size
            assert np.array_equal(found.labels, truth), size


@pytest.mark.parametrize("factor", [2, 3])
def test_larger_photos_are_mapped_back_by_the_nearest_pixel(factor: int) -> None:
    _, small = photo(48, 64)
    large = np.kron(small, np.ones((factor, factor), np.uint8))
    pixels = np.zeros((*large.shape, 3), np.uint8)
    pixels[..., 0] = 40 * large
    found = predictor()(pixels)
    assert found.labels.shape == large.shape
    if factor == 3:  # an odd factor samples pixel centres: nothing is mixed
        assert np.array_equal(found.labels, large)
    blocks = found.labels.reshape(48, factor, 64, factor).transpose(0, 2, 1, 3).reshape(48 * 64, -1)
    assert (blocks == blocks[:, :1]).all()


def test_small_photos_are_enlarged_where_the_canvas_says_so() -> None:
    canvas = Canvas(48, 64, 48, 64, 16)
    assert canvas.resized_size(24, 32) == (48, 64)
    assert CANVAS.resized_size(24, 32) == (24, 32)
    assert CANVAS.resized_size(96, 64) == (48, 32)
    assert Canvas.from_json(json.loads(json.dumps(CANVAS.to_json()))) == CANVAS
    assert "enlarge" not in canvas.to_json()  # older runtimes read manifests of detectors as before


def test_what_a_map_tells() -> None:
    labels = np.array([[0, 0, 2], [0, 2, 1]], np.uint8)
    found = SemanticMap(labels, NAMES)
    assert len(found) == 3
    assert found.shares() == {"sky": 3 / 6, "car": 2 / 6, "road": 1 / 6}
    told = found.to_json()
    assert [entry["name"] for entry in told["classes"]] == ["sky", "road", "car"]
    assert json.loads(json.dumps(told)) == told
    for entry in told["classes"]:
        assert np.array_equal(coco_mask.decode(entry["rle"]).astype(bool), labels == entry["label"])
        assert entry["pixels"] == (labels == entry["label"]).sum()
    assert [entry["category_id"] for entry in found.to_coco("x")] == [0, 1, 2]


def test_palette_png_holds_the_labels() -> None:
    labels = photo(31, 17)[1]
    picture = Image.open(io.BytesIO(SemanticMap(labels, NAMES).palette_png()))
    assert picture.mode == "P"
    assert np.array_equal(np.array(picture), labels)
    assert np.array_equal(np.array(picture.convert("RGB"))[3, 5], label_colour(int(labels[3, 5])))


def test_overlay_with_a_legend() -> None:
    labels = np.zeros((200, 300), np.uint8)
    labels[:, 150:] = 2
    image = np.full((200, 300, 3), 128, np.uint8)
    drawn = SemanticMap(labels, NAMES).draw(image)
    assert drawn.shape == image.shape
    for column, label in ((100, 0), (250, 2)):
        expected = np.rint(128 * 0.45 + np.array(label_colour(label)) * 0.55)
        assert np.array_equal(drawn[20, column], expected)
    solid = [(drawn[100:] == label_colour(label)).all(-1).sum() for label in range(4)]
    assert solid[0] > 100  # the legend's patches, in full colour, of the classes that are there
    assert solid[2] > 100
    assert solid[1] == solid[3] == 0
    behind = SemanticMap(labels, ("__background__", *NAMES[1:])).draw(image)
    assert np.array_equal(behind[20, 100], image[20, 100])  # the background is not laid over
    assert np.array_equal(behind[20, 250], drawn[20, 250])
    assert SemanticMap(labels[:3, :2], NAMES).draw(image[:3, :2]).shape == (3, 2, 3)
    with pytest.raises(ValueError, match="belongs to a photo"):
        SemanticMap(labels, NAMES).draw(image[:100])
    with pytest.raises(ImageError):
        SemanticMap(labels, NAMES).draw(image[..., 0])


def test_probabilities_of_the_valid_part() -> None:
    runner = Red()
    runner.probabilities = True
    pixels, labels = photo(17, 33)
    found = predictor(runner)(pixels)
    assert found.probabilities is not None
    assert found.probabilities.shape == (4, 17, 33)
    assert np.array_equal(found.probabilities.argmax(0), labels)
    assert predictor()(pixels).probabilities is None


class Says:
    name = "fake"

    def __init__(self, **outputs: np.ndarray) -> None:
        self.outputs = outputs

    def run(self, images: np.ndarray, image_sizes: np.ndarray) -> dict[str, np.ndarray]:
        return self.outputs


@pytest.mark.parametrize(
    ("outputs", "expected"),
    [
        ({}, r"expected labels uint8 \[1, 48, 64\], found none"),
        ({"labels": np.zeros((1, 48, 64), np.int64)}, "found int64"),
        ({"labels": np.zeros((1, 24, 32), np.uint8)}, r"found uint8 \[1, 24, 32\]"),
        ({"labels": np.full((1, 48, 64), 4, np.uint8)}, r"label 4, expected 0…3"),
        (
            {"labels": np.zeros((1, 48, 64), np.uint8), "probabilities": np.zeros((1, 3, 48, 64), np.float32)},
            r"expected probabilities \[1, 4, 48, 64\]",
        ),
    ],
)
def test_artefacts_that_are_broken(outputs: dict[str, np.ndarray], expected: str) -> None:
    with pytest.raises(BackendError, match=expected):
        predictor(Says(**outputs))(photo(48, 64)[0])
