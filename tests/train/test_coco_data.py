"""COCO folders: what is read, and what is refused."""

import json
import pickle
import warnings

import numpy as np
import pytest
from data_folders import HEIGHT, WIDTH, coco_image, coco_object, write_coco, write_photo
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from regionrt.train.data import DataError, coco, open_data

DOG, CAT = 7, 3
TRIANGLE = [10.0, 10.0, 50.0, 12.5, 30.0, 60.0]


def uncompressed(mask):
    """COCO's run lengths of a mask, by plain counting."""
    runs, value = [0], 0
    for pixel in mask.T.ravel():
        if pixel != value:
            runs.append(0)
            value = pixel
        runs[-1] += 1
    return {"size": list(mask.shape), "counts": runs}


def test_boxes_labels_masks_and_crowds(tmp_path):
    crowd = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    crowd[5:20, 60:90] = 1
    compressed = coco_mask.encode(np.asfortranarray(crowd))
    annotations = [
        coco_object(11, 1, DOG, [10, 20, 30, 40.5], area=999.5),
        coco_object(12, 1, CAT, [60, 5, 30, 15], segmentation=uncompressed(crowd), iscrowd=1),
        coco_object(13, 1, CAT, [10, 10, 40, 50], segmentation=[TRIANGLE, [0, 0, 5, 0, 5, 5]]),
        coco_object(14, 1, CAT, [60, 5, 30, 15], segmentation={**compressed, "counts": compressed["counts"].decode()}),
    ]
    root = write_coco(tmp_path, annotations)
    data = pickle.loads(pickle.dumps(open_data(root, "train")))
    assert data.labels == ("__background__", "cat", "dog")
    assert (len(data), data.has_masks, data.split) == (2, True, "train")
    sample = data[0]
    assert (sample.image_id, sample.name, sample.size) == (1, "0001.jpg", (HEIGHT, WIDTH))
    np.testing.assert_array_equal(sample.boxes[0], np.float32([10, 20, 40, 60.5]))
    np.testing.assert_array_equal(sample.labels, [2, 1, 1, 1])
    np.testing.assert_array_equal(sample.ignore, [False, True, False, False])
    assert sample.areas[0] == np.float32(999.5)
    assert sample.image().shape == (HEIGHT, WIDTH, 3)
    reference = COCO(root / "annotations" / "instances_train.json")
    for mask, annotation in zip(sample.masks, annotations, strict=True):
        json.dumps(mask)
        np.testing.assert_array_equal(coco_mask.decode(mask), reference.annToMask(annotation))
    np.testing.assert_array_equal(coco_mask.decode(sample.masks[1]), crowd)
    assert data[1].boxes.shape == (0, 4)
    assert data[1].masks == []


@pytest.mark.parametrize(
    ("split", "folder"),
    [("val2017", "val2017"), ("val2017", "images/val2017"), ("val2017", "val"), ("val2017", "images"), ("val2017", "")],
)
def test_the_split_is_found_with_its_year_and_its_images_with_it(tmp_path, split, folder):
    root = write_coco(tmp_path, [coco_object(1, 1, CAT, [1, 1, 5, 5])], split=split, folder=folder)
    for name in ("val", "val2017"):
        data = open_data(root, name)
        assert data[0].pixels == root / folder / "0001.jpg"


def test_absent_and_ambiguous_splits(tmp_path):
    root = write_coco(tmp_path, [], split="train2014")
    write_coco(tmp_path, [], split="train2017")
    with pytest.raises(DataError, match=r"'test'.*found the splits train2014, train2017$"):
        open_data(root, "test")
    with pytest.raises(DataError, match=r"'train' fits train2014, train2017"):
        open_data(root, "train")


def test_masks_only_where_every_object_has_one(tmp_path):
    annotations = [
        coco_object(1, 1, CAT, [1, 1, 5, 5]),
        coco_object(2, 1, CAT, [20, 30, 8, 9], segmentation=[], iscrowd=1),  # to be ignored: its box will do
    ]
    root = write_coco(tmp_path, annotations)
    data = open_data(root, "train")
    assert data.has_masks
    crowd = coco_mask.decode(data[0].masks[1])
    assert crowd.sum() == 8 * 9
    assert crowd[30:39, 20:28].all()
    annotations.append(coco_object(3, 2, CAT, [1, 1, 5, 5], segmentation=[[1, 1, 2, 2]]))
    root = write_coco(tmp_path, annotations)
    with pytest.warns(UserWarning, match="1 of 2 objects have no mask, so no masks are used"):
        data = open_data(root, "train")
    assert not data.has_masks
    assert data[0].masks is None


def test_bad_boxes_are_dropped_or_clipped_with_one_counted_warning(tmp_path):
    boxes = [
        [10, 10, 0, 5],
        [10, 10, 5, -2],
        [WIDTH + 1, 0, 5, 5],
        [-20, 10, 30, 10],
        [90, 70, 10.3, 10],
        [5, 5, 1e-9, 3],
    ]
    root = write_coco(tmp_path, [coco_object(i, 1, CAT, box) for i, box in enumerate(boxes)])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        data = open_data(root, "train")
    assert dict(data.dropped) == {"zero area": 3, "outside the image": 1, "clipped": 1}
    np.testing.assert_array_equal(data[0].boxes, np.float32([[0, 10, 10, 20], [90, 70, WIDTH, HEIGHT]]))
    assert len(data[0].masks) == 2
    assert len(caught) == 1
    assert "3 of zero area dropped (first: 0001.jpg)" in str(caught[0].message)


def _break(root, change):
    path = root / "annotations" / "instances_train.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda c: c["annotations"][0].update(image_id=99),
            "annotation 5 is the annotation of a missing image.* id 99",
        ),
        (lambda c: c["annotations"][0].update(image_id=[1]), "annotation 5 is the annotation of a missing image"),
        (
            lambda c: c["annotations"][0].update(category_id=99),
            "annotation 5: expected one of the categories' ids, found 99",
        ),
        (lambda c: c["annotations"][0].update(category_id={}), "annotation 5: expected one of the categories' ids"),
        (lambda c: c["annotations"][0].update(bbox=[1, 2, 3]), "annotation 5: expected bbox as four finite numbers"),
        (
            lambda c: c["annotations"][0].update(bbox=[1, 2, 3, "4"]),
            "annotation 5: expected bbox as four finite numbers",
        ),
        (
            lambda c: c["annotations"][0].update(bbox=[1, 2, float("inf"), 4]),
            "annotation 5: expected bbox as four finite",
        ),
        (lambda c: c["annotations"][0].update(segmentation="x"), "annotation 5: expected polygons or an RLE"),
        (lambda c: c["annotations"][0].update(segmentation=[[1, 2, 3]]), "annotation 5: expected a polygon as finite"),
        (
            lambda c: c["annotations"][0].update(segmentation=[[1e9, 0, 5, 5, 0, 5]]),
            "annotation 5: a polygon reaches far",
        ),
        (lambda c: c["images"][1].update(id=1), "two images have the id 1: 0001.jpg and 0002.jpg"),
        (lambda c: c["images"][1].update(file_name="gone.jpg"), "image 2 is missing: .*gone.jpg"),
        (lambda c: c["images"][0].update(file_name="gone.jpg"), "image gone.jpg is missing: looked in train/"),
        (lambda c: c["images"][1].update(file_name="../0001.jpg"), "image 2: .*'../0001.jpg', which leaves it"),
        (lambda c: c["images"][0].update(file_name="/etc/passwd"), "'/etc/passwd', which leaves it"),
        (lambda c: c["images"][0].update(height=None), "image 0001.jpg: expected height and width"),
        (lambda c: c["images"][0].pop("file_name"), "an image needs an id and a file_name"),
        (lambda c: c["categories"][1].update(id=3), "two categories have the id 3"),
        (lambda c: c["categories"][1].update(name="cat"), "two categories have .* the name 'cat'"),
        (lambda c: c.pop("categories"), "expected a list of objects under 'categories'"),
        (lambda c: c.update(categories=[]), "expected categories, found none"),
        (lambda c: c.update(images=[]), "expected images, found none"),
        (lambda c: c.update(annotations=[1]), "expected a list of objects under 'annotations'"),
    ],
)
def test_broken_content_is_named(tmp_path, change, message):
    root = write_coco(tmp_path, [coco_object(5, 1, CAT, [1, 1, 5, 5])])
    _break(root, change)
    with pytest.raises(DataError, match=rf"instances_train\.json.*{message}"):
        open_data(root, "train")


@pytest.mark.parametrize(
    ("rle", "message"),
    [
        ({"size": [HEIGHT, WIDTH - 1], "counts": [HEIGHT * (WIDTH - 1)]}, r"RLE size is \[80, 99\].*\[80, 100\]"),
        ({"counts": [1]}, "RLE size is None"),
        ({"size": [HEIGHT, WIDTH], "counts": [5, 10**12]}, "do not cover its image of 100×80"),
        ({"size": [HEIGHT, WIDTH], "counts": [HEIGHT * WIDTH + 5, -5]}, "do not cover"),
        ({"size": [HEIGHT, WIDTH], "counts": "not an RLE \x7f"}, "do not cover"),
        ({"size": [HEIGHT, WIDTH], "counts": "oooooooooooooo"}, "do not cover"),
        ({"size": [HEIGHT, WIDTH], "counts": None}, "do not cover"),
    ],
)
def test_masks_of_another_image_are_refused_before_c_code_sees_them(tmp_path, rle, message):
    root = write_coco(tmp_path, [coco_object(5, 1, CAT, [1, 1, 5, 5], segmentation=rle)])
    with pytest.raises(DataError, match=rf"instances_train\.json: annotation 5: .*{message}"):
        open_data(root, "train")


@pytest.mark.parametrize("text", ['{"images": [', "", "[" * 200_000, "\xff"])
def test_a_file_that_is_no_json_is_named(tmp_path, text):
    root = write_coco(tmp_path, [])
    (root / "annotations" / "instances_train.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=r"instances_train\.json: not valid JSON, perhaps truncated"):
        open_data(root, "train")


def test_other_json_and_too_large_files_are_refused(tmp_path, monkeypatch):
    root = write_coco(tmp_path, [])
    (root / "annotations" / "instances_train.json").write_text("[1, 2]")
    with pytest.raises(DataError, match="expected images, annotations and categories, found a list"):
        open_data(root, "train")
    monkeypatch.setattr(coco, "MAX_JSON_BYTES", 3)
    with pytest.raises(DataError, match="annotations of 6 bytes are not read"):
        open_data(root, "train")


def test_image_of_another_size_than_annotated(tmp_path):
    root = write_coco(tmp_path, [coco_object(5, 1, CAT, [1, 1, 5, 5])])
    write_photo(root / "train" / "0001.jpg", size=(50, 40))
    with pytest.raises(DataError, match=r"0001\.jpg.*100×80.*50×40"):
        open_data(root, "train")[0].image()


def test_images_in_subfolders(tmp_path):
    images = [coco_image(1, "a/1.jpg"), coco_image(2, "b/1.jpg")]
    data = open_data(write_coco(tmp_path, [coco_object(5, 2, CAT, [1, 1, 5, 5])], images), "train")
    assert data[1].pixels == tmp_path / "train" / "b" / "1.jpg"
