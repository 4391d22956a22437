"""The canvas: torchvision's sizes to the pixel, torch's bilinear, placement, and boxes there and back."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regionrt.runtime.errors import BundleError, ImageError
from regionrt.runtime.image import Canvas, Placement, resize_bilinear

torch = pytest.importorskip("torch")
torch.set_num_threads(1)  # small tensors: threads only cost
transform = pytest.importorskip("torchvision.models.detection.transform")

LARGE = Canvas(height=4096, width=4096, min_size=800, max_size=1333)
RULES = [(800, 1333), (320, 640), (480, 640), (333, 777)]


def torchvision_size(height: int, width: int, min_size: int, max_size: int) -> tuple[int, int]:
    """What GeneralizedRCNNTransform makes of a photo (one channel: only the size is asked)."""
    resizer = transform.GeneralizedRCNNTransform(min_size, max_size, [0.0], [1.0]).eval()
    resized, _ = resizer.resize(torch.zeros(1, height, width))
    return tuple(resized.shape[-2:])


@pytest.mark.parametrize(("min_size", "max_size"), RULES)
def test_resized_size_is_torchvisions(min_size: int, max_size: int) -> None:
    canvas = Canvas(height=4096, width=4096, min_size=min_size, max_size=max_size)
    rng = np.random.default_rng(0)
    sizes = rng.integers(16, 1500, (150, 2)).tolist()
    sizes += [(480, 640), (640, 480), (600, 600), (1080, 1920), (1333, 800), (800, 1333), (801, 1334), (427, 640)]
    for height, width in sizes:
        assert canvas.resized_size(height, width) == torchvision_size(height, width, min_size, max_size), (
            height,
            width,
        )


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 20_000), st.integers(1, 20_000), st.integers(1, 40), st.integers(1, 40), st.sampled_from(RULES))
def test_a_resized_photo_always_fits(height: int, width: int, rows: int, columns: int, rule: tuple[int, int]) -> None:
    canvas = Canvas(rows * 32, columns * 32, *rule)
    resized = canvas.resized_size(height, width)
    assert 1 <= resized[0] <= canvas.height
    assert 1 <= resized[1] <= canvas.width
    # the shape is kept to the pixel, or the thin side is at its least of one pixel
    exact = resized[0] * width / height
    assert abs(resized[1] - exact) <= 1 + exact / resized[0] or 1 in resized


def test_a_canvas_that_limits_is_filled_exactly() -> None:
    canvas = Canvas(480, 640, min_size=800, max_size=1333)
    assert canvas.resized_size(480, 640) == (480, 640)
    assert canvas.resized_size(960, 1280) == (480, 640)
    assert canvas.resized_size(640, 480) == (480, 360)  # portrait on a landscape canvas
    assert canvas.resized_size(100, 3000) == (21, 640)
    assert canvas.resized_size(1, 100_000) == (1, 640)


def torch_resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    values = torch.from_numpy(image).permute(2, 0, 1)[None].float().contiguous()
    resized = torch.nn.functional.interpolate(values, (height, width), mode="bilinear", align_corners=False)
    return resized.round().clamp(0, 255).byte()[0].permute(1, 2, 0).numpy()


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ((480, 640), (800, 1066)),
        ((640, 480), (480, 360)),
        ((1200, 1600), (480, 640)),
        ((333, 517), (801, 999)),
        ((64, 64), (64, 64)),
        ((64, 80), (64, 33)),
        ((7, 5), (300, 211)),
        ((1, 1), (5, 9)),
        ((50, 1), (33, 4)),
        ((511, 300), (1, 1)),
    ],
)
def test_resize_is_torchs(source: tuple[int, int], target: tuple[int, int]) -> None:
    """≤ 1 level, equal in 99.9 %: torch's kernels fuse multiply and add, NumPy rounds twice, and a value that lies on
    the border between two levels (common at ratios like 3/4, rare elsewhere) may then round to the other side."""
    image = np.random.default_rng(1).integers(0, 256, (*source, 3), dtype=np.uint8)
    found, expected = resize_bilinear(image, *target), torch_resize(image, *target)
    difference = np.abs(found.astype(int) - expected)
    assert difference.max() <= 1
    assert (difference > 0).mean() <= 1e-3


def test_resize_keeps_extremes_and_takes_views() -> None:
    white = np.full((37, 41, 3), 255, np.uint8)
    assert (resize_bilinear(white, 101, 77) == 255).all()
    image = np.random.default_rng(2).integers(0, 256, (60, 40, 3), dtype=np.uint8)
    flipped = image[::-1, ::-1]
    np.testing.assert_array_equal(resize_bilinear(flipped, 33, 29), resize_bilinear(flipped.copy(), 33, 29))
    np.testing.assert_array_equal(resize_bilinear(image, 60, 40), image)


def test_resize_is_fast_enough() -> None:
    image = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
    times = []
    for _ in range(5):
        started = time.perf_counter()
        resize_bilinear(image, 800, 1066)
        times.append(time.perf_counter() - started)
    assert min(times) < 0.1  # takes about 0.01 s on one core of 2023


@pytest.mark.parametrize(
    ("image", "size"),
    [
        (np.zeros((4, 4, 3), np.float32), (2, 2)),
        (np.zeros((4, 4), np.uint8), (2, 2)),
        (np.zeros((4, 4, 3), np.uint8), (0, 2)),
        (np.zeros((0, 4, 3), np.uint8), (2, 2)),
    ],
)
def test_resize_refuses(image: np.ndarray, size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="resize_bilinear"):
        resize_bilinear(image, *size)


def test_place_puts_photos_top_left_on_zeros() -> None:
    canvas = Canvas(96, 128, min_size=96, max_size=128)
    landscape = np.full((60, 120, 3), 100, np.uint8)
    portrait = np.full((300, 100, 3), 200, np.uint8)
    images, sizes, placements = canvas.place([landscape, portrait])
    assert images.shape == (2, 96, 128, 3)
    assert images.dtype == np.uint8
    assert sizes.dtype == np.int32
    assert sizes.tolist() == [[64, 128], [96, 32]]
    assert [placement.original for placement in placements] == [(60, 120), (300, 100)]
    for image, (height, width), value in zip(images, sizes, (100, 200), strict=True):
        assert (image[:height, :width] == value).all()
        assert image[height:].sum() == 0
        assert image[:, width:].sum() == 0


def test_a_dynamic_canvas_is_as_large_as_its_batch() -> None:
    canvas = Canvas(1344, 1344, min_size=96, max_size=1333, dynamic=True)
    assert canvas.place([np.zeros((96, 100, 3), np.uint8)])[0].shape == (1, 96, 128, 3)
    batch = [np.zeros((96, 100, 3), np.uint8), np.zeros((300, 100, 3), np.uint8)]
    images, sizes, _ = canvas.place(batch)
    assert sizes.tolist() == [[96, 100], [288, 96]]
    assert images.shape == (2, 288, 128, 3)


def test_place_of_nothing() -> None:
    images, sizes, placements = LARGE.place([])
    assert (images.shape, sizes.shape, placements) == ((0, 4096, 4096, 3), (0, 2), [])


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((5, 5), np.uint8),
        np.zeros((5, 5, 4), np.uint8),
        np.zeros((5, 5, 3)),
        np.zeros((0, 5, 3), np.uint8),
        [[1]],
    ],
)
def test_place_refuses_what_is_no_rgb_photo(image: np.ndarray) -> None:
    with pytest.raises(ImageError, match="RGB uint8"):
        LARGE.place([image])


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(0, 2**32 - 1))
def test_boxes_there_and_back(height: int, width: int, seed: int) -> None:
    placement = Placement((height, width), LARGE.resized_size(height, width))
    corners = np.random.default_rng(seed).random((20, 2, 2)) * (width, height)
    boxes = np.sort(corners, axis=1).reshape(20, 4).astype(np.float32)
    there = placement.boxes_to_canvas(boxes)
    assert (there <= np.array([*placement.resized[::-1]] * 2) * (1 + 1e-6)).all()
    # float32: two multiplications by rounded ratios
    np.testing.assert_allclose(placement.boxes_to_original(there), boxes, rtol=5e-7, atol=1e-6)


def test_boxes_to_original_is_torchvisions_and_clips() -> None:
    placement = Placement((427, 640), (800, 1199))
    boxes = (np.random.default_rng(3).random((50, 4)) * 700).astype(np.float32)
    expected = transform.resize_boxes(torch.from_numpy(boxes), [800, 1199], [427, 640])
    np.testing.assert_array_equal(placement.boxes_to_original(boxes), expected.numpy())
    outside = np.array([[-5, -5, 1300, 900], [1199, 800, 1199, 800]], np.float32)
    assert placement.boxes_to_original(outside).tolist() == [[0, 0, 640, 427], [640, 427, 640, 427]]
    assert placement.boxes_to_original(np.zeros((0, 4), np.float32)).shape == (0, 4)


def test_a_size_that_is_no_multiple_of_the_stride() -> None:
    with pytest.raises(ValueError, match="height 500 is no multiple of the stride 32: take 480 or 512"):
        Canvas(500, 640, 480, 640)
    with pytest.raises(ValueError, match=r"width 20 .* take 32"):
        Canvas(32, 20, 480, 640)


@pytest.mark.parametrize("value", [0, -32, 1.5, True, "480"])
def test_sizes_are_whole_numbers(value: object) -> None:
    with pytest.raises(ValueError, match="canvas min_size"):
        Canvas(480, 640, value, 640)  # type: ignore[arg-type]


def test_json_round_trip_and_refusals() -> None:
    canvas = Canvas(480, 640, 800, 1333, multiple=16, dynamic=True)
    assert Canvas.from_json(canvas.to_json()) == canvas
    for change in ({"height": 500}, {"extra": 1}, {"dynamic": 3}, {"width": None}):
        with pytest.raises(BundleError, match="canvas"):
            Canvas.from_json(canvas.to_json() | change)
    with pytest.raises(BundleError, match="canvas"):
        Canvas.from_json({"height": 480})
