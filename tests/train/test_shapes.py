"""`shapes`: determined by (seed, split, index), exact boxes and masks, split by photo."""

import hashlib
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from regionrt.runtime.image import read_image
from regionrt.train.data import DataError, open_data, write_images
from regionrt.train.data.outlines import POLYGONS, signed_distance
from regionrt.train.data.photos import PHOTOS, photo
from regionrt.train.data.shapes import ShapesSpec, parse_spec

SPEC = "shapes:train=40,val=5,test=5,size=96x128,seed=3"


def fingerprint(sample):
    masks = "".join(mask["counts"] for mask in sample.masks)
    parts = (sample.image().tobytes(), sample.boxes.tobytes(), sample.labels.tobytes(), masks.encode())
    return hashlib.sha256(b"".join(parts)).hexdigest()


def test_spec():
    assert parse_spec("shapes") == ShapesSpec(400, 80, 80, (256, 256), 0)
    assert parse_spec(SPEC) == ShapesSpec(40, 5, 5, (96, 128), 3)
    assert [len(open_data(SPEC, split)) for split in ("train", "val", "test")] == [40, 5, 5]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            "shapes:epochs=3",
            "expected each of train, val, test, size, seed, turn, most at most once as key=value, found 'epochs=3'",
        ),
        ("shapes:train", "expected train as a whole number, found ''"),
        ("shapes:seed=1,seed=2", "at most once"),
        ("shapes:size=256", "expected size as HEIGHTxWIDTH"),
        ("shapes:size=256x256x3", "expected size as HEIGHTxWIDTH"),
        ("shapes:size=8x8", "expected a size between 64x64 and 2048x2048, found 8x8"),
        ("shapes:train=0", "at least one image"),
        ("shapes:seed=-1", "expected a seed ≥ 0"),
        ("shapes:turn=181", "expected a turn from 0 to 180 degrees, found 181"),
        ("shapes:turn=x", "expected turn as a whole number"),
    ],
)
def test_wrong_specs(spec, message):
    with pytest.raises(DataError, match=message):
        open_data(spec, "train")


def test_unknown_split_and_index():
    with pytest.raises(DataError, match="expected one of the splits train, val, test, found 'dev'"):
        open_data("shapes", "dev")
    data = open_data(SPEC, "val")
    with pytest.raises(IndexError):
        data[5]
    assert fingerprint(data[-1]) == fingerprint(data[4])


def test_the_same_in_another_process_in_any_order_whatever_the_global_generator_does():
    data = open_data(SPEC, "train")
    np.random.seed(0)
    before = np.random.get_state()[1].copy()
    here = [fingerprint(data[index]) for index in (7, 0, 7)]
    assert here[0] == here[2] != here[1]
    np.testing.assert_array_equal(np.random.get_state()[1], before)
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from test_shapes import *\n"
        "print(fingerprint(open_data(SPEC, 'train')[7]))"
    )
    command = [sys.executable, "-c", code, __file__.rsplit("/", 1)[0]]
    other = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert other.stdout.strip() == here[0]


def test_seeds_splits_and_indices_differ():
    specs = [(SPEC, "train", 0), (SPEC, "train", 1), (SPEC, "val", 0), (SPEC.replace("seed=3", "seed=4"), "train", 0)]
    assert len({fingerprint(open_data(spec, split)[index]) for spec, split, index in specs}) == len(specs)


def test_upright_shapes_fill_their_boxes_as_their_outlines_say():
    """Without a turn a whole square fills its box, and a triangle stands on its edge: half of it."""
    data = open_data("shapes:train=60,val=1,test=1,size=128x128,turn=0", "train")
    fills: dict[str, list[float]] = {}
    for sample in map(data.__getitem__, range(len(data))):
        for box, label, area in zip(sample.boxes, sample.labels, sample.areas, strict=True):
            share = float(area / ((box[2] - box[0]) * (box[3] - box[1])))
            fills.setdefault(data.labels[label], []).append(share)
    assert max(fills["square"]) == pytest.approx(1.0, abs=0.03)
    assert np.median(fills["triangle"]) == pytest.approx(0.5, abs=0.08)
    assert np.median(fills["square"]) > np.median(fills["circle"]) > np.median(fills["triangle"])


def test_boxes_masks_and_counts_are_sound():
    data = open_data(SPEC, "train")
    objects, empty = Counter(), 0
    for index in range(len(data)):
        sample = data[index]
        assert sample.image().shape == (96, 128, 3)
        assert (sample.boxes.dtype, sample.labels.dtype, sample.ignore.dtype) == (np.float32, np.int64, bool)
        assert len(sample.boxes) == len(sample.labels) == len(sample.masks) <= 6
        empty += not len(sample.boxes)
        painted = np.zeros((96, 128), dtype=int)
        for box, label, rle, area in zip(sample.boxes, sample.labels, sample.masks, sample.areas, strict=True):
            objects[data.labels[label]] += 1
            mask = coco_mask.decode(rle)
            assert mask.shape == (96, 128)
            assert mask.sum() == area >= 40
            x, y, w, h = coco_mask.toBbox(rle)
            np.testing.assert_array_equal(box, [x, y, x + w, y + h])
            painted += mask
        assert painted.max(initial=0) <= 1  # masks are of the visible parts
    assert set(objects) == set(data.labels[1:])
    assert 1 <= empty <= 12


def test_objects_stand_out_and_lie_where_the_masks_say():
    """Steps from pixel to pixel are far larger along the masks' borders than in the image as a whole."""
    data = open_data("shapes:train=20", "train")
    along, overall = [], []
    for index in range(20):
        sample = data[index]
        gradient = np.abs(np.diff(sample.image().astype(int), axis=1)).max(axis=2)
        for rle in sample.masks:
            mask = coco_mask.decode(rle).astype(bool)
            border = mask[:, 1:] != mask[:, :-1]
            along.append(gradient[border].mean())
            overall.append(gradient.mean())
    assert np.mean(np.array(along) > 2 * np.array(overall)) > 0.8


@pytest.mark.parametrize("kind", list(POLYGONS))
def test_outlines_have_the_area_of_their_shape(kind):
    """Counted pixels against closed formulas; radius 100, so one pixel row is below 1.5 % of the area."""
    y, x = np.mgrid[-120:120, -120:120].astype(np.float32) + np.float32(0.5)
    area = (signed_distance(kind, x, y, 100.0, 0.3) < 0).sum() / 100**2
    tip = np.sqrt(1 - 0.09)
    star = 5 * 1.0 * 0.46 * np.sin(np.pi / 5)
    formulas = {
        "circle": np.pi,
        "square": (2 * 0.79) ** 2,
        "triangle": 3 * np.sqrt(3) / 4,
        "star": star,
        "cross": 2 * (2 * tip) * 0.6 - 0.36,
    }
    assert area == pytest.approx(formulas[kind], rel=0.015)


def test_signed_distance_is_a_distance():
    x = np.float32([0.0, 79.0, 100.0])
    np.testing.assert_allclose(
        signed_distance("square", x, np.zeros(3, np.float32), 100.0, 0.0), [-79, 0, 21], atol=1e-4
    )


def test_no_photo_serves_two_splits():
    names = [name for names in PHOTOS.values() for name in names]
    assert len(set(names)) == len(names)
    assert min(min(photo(name).size) for name in names) >= 170


def test_a_missing_wheel_or_photo_is_named(monkeypatch):
    with pytest.raises(DataError, match=r"skimage/data/absent\.png as a background"):
        photo("skimage/data/absent.png")
    monkeypatch.setattr("regionrt.train.data.photos.find_spec", lambda name: None)
    with pytest.raises(DataError, match="pip install scikit-learn"):
        photo("sklearn/datasets/images/other.jpg")


def test_write_images(tmp_path):
    paths = write_images(tmp_path / "new", 7, "test", SPEC)  # more than the split has
    assert [path.name for path in paths] == [f"shapes_test_{index:04d}.png" for index in range(7)]
    with Image.open(paths[6]) as image:
        assert (image.format, image.size) == ("PNG", (128, 96))
    data = open_data(SPEC, "test")
    np.testing.assert_array_equal(read_image(paths[2]), data[2].image())
    with pytest.raises(DataError, match="expected one of the splits"):
        write_images(tmp_path, 2, "dev")
