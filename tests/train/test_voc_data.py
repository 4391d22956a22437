"""VOC folders: what is read, and what is refused."""

import pickle
import warnings

import numpy as np
import pytest
from data_folders import HEIGHT, WIDTH, voc_object, voc_xml, write_photo, write_voc

from regionrt.train.data import DataError, open_data, voc


@pytest.fixture
def root(tmp_path):
    annotations = {
        "one": voc_xml(voc_object("dog", (11, 21, 50, 60)), voc_object("cat", (1, 1, WIDTH, HEIGHT), difficult=1)),
        "two": voc_xml(voc_object("cat", ("5.5", "6.5", "20", "30"))),
        "three": voc_xml(),
    }
    return write_voc(tmp_path, annotations, {"train": ["one", "three"], "val": ["two"], "cat_train": ["one 1"]})


def test_boxes_are_edges_and_labels_follow_the_alphabet(root):
    data = open_data(root, "train")
    assert data.labels == ("__background__", "cat", "dog")
    assert (data.split, data.has_masks, len(data)) == ("train", False, 2)
    sample = data[0]
    assert (sample.image_id, sample.name, sample.size) == ("one", "one.jpg", (HEIGHT, WIDTH))
    # From 1 and inclusive to edges: 40 × 40 pixels stay 40 × 40, and the whole image is the whole image.
    np.testing.assert_array_equal(sample.boxes, np.float32([[10, 20, 50, 60], [0, 0, WIDTH, HEIGHT]]))
    assert sample.boxes.dtype == np.float32
    np.testing.assert_array_equal(sample.labels, [2, 1])
    np.testing.assert_array_equal(sample.ignore, [False, True])
    np.testing.assert_array_equal(sample.areas, [1600, WIDTH * HEIGHT])
    assert data[1].boxes.shape == (0, 4)
    assert data[1].labels.dtype == np.int64


def test_every_split_has_the_same_labels(root):
    assert open_data(root, "val").labels == open_data(root, "train").labels


def test_image_is_decoded_and_its_size_checked(root):
    data = pickle.loads(pickle.dumps(open_data(root, "train")))  # as a data loader's worker gets it
    image = data[0].image()
    assert image.shape == (HEIGHT, WIDTH, 3)
    assert image.dtype == np.uint8
    write_photo(root / "JPEGImages" / "one.jpg", size=(HEIGHT, WIDTH))
    with pytest.raises(DataError, match=r"one\.jpg.*100×80.*80×100"):
        data[0].image()


def test_size_comes_from_the_image_where_the_annotation_has_none(tmp_path):
    xml = voc_xml(voc_object("cat", (1, 1, 10, 10)), size=None)
    root = write_voc(tmp_path, {"a": xml, "b": voc_xml(size=(0, 0))}, {"train": ["a", "b"]})
    exif = {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"}  # turn by 90°
    write_photo(root / "JPEGImages" / "b.jpg", **exif)
    data = open_data(root, "train")
    assert [data[0].size, data[1].size] == [(HEIGHT, WIDTH), (WIDTH, HEIGHT)]
    assert data[1].image().shape == (WIDTH, HEIGHT, 3)


def test_other_suffix_and_file_name_find_the_image(tmp_path):
    annotations = {"a": voc_xml(voc_object("cat", (1, 1, 9, 9))), "b": voc_xml(filename="photo b.jpg")}
    root = write_voc(tmp_path, annotations, {"train": ["a.jpg", "b"]})
    (root / "JPEGImages" / "a.jpg").unlink()
    (root / "JPEGImages" / "b.jpg").unlink()
    write_photo(root / "JPEGImages" / "a.png")
    write_photo(root / "JPEGImages" / "photo b.jpg")
    assert [sample.name for sample in open_data(root, "train")] == ["a.png", "photo b.jpg"]


def test_bad_boxes_are_dropped_or_clipped_with_one_counted_warning(tmp_path):
    objects = [
        voc_object("cat", (10, 10, 10, 10)),
        voc_object("cat", (30, 10, 20, 40)),
        voc_object("cat", (WIDTH + 2, 5, WIDTH + 9, 9)),
        voc_object("cat", (90, 70, WIDTH + 20, HEIGHT + 10)),
        voc_object("cat", (0, 0, 20, 20)),  # counted from 0: clipped, but nothing to tell
    ]
    root = write_voc(tmp_path, {"a": voc_xml(*objects)}, {"train": ["a"]})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        data = open_data(root, "train")
    assert dict(data.dropped) == {"zero area": 2, "outside the image": 1, "clipped": 1}
    np.testing.assert_array_equal(data[0].boxes, np.float32([[89, 69, WIDTH, HEIGHT], [0, 0, 20, 20]]))
    assert len(caught) == 1
    for part in (
        "2 of zero area dropped (first: a)",
        "1 outside the image dropped",
        "1 partly outside the image clipped",
    ):
        assert part in str(caught[0].message)
    assert pickle.loads(pickle.dumps(data)).dropped == data.dropped


def test_a_sound_folder_warns_of_nothing(root):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        open_data(root, "train")


def test_a_split_that_is_absent_lists_those_there_are(root):
    with pytest.raises(DataError, match=r"'test'.*found the splits train, val$"):
        open_data(root, "test")


def test_an_empty_split_and_one_without_any_object(tmp_path):
    root = write_voc(tmp_path, {"a": voc_xml()}, {"train": ["a"], "val": []})
    with pytest.raises(DataError, match="lists no image"):
        open_data(root, "val")
    with pytest.raises(DataError, match="expected annotated objects"):
        open_data(root, "train")


def test_missing_image_is_named(root):
    (root / "JPEGImages" / "one.jpg").unlink()
    with pytest.raises(DataError, match=r"one\.xml is the annotation of a missing image.*one\.jpg"):
        open_data(root, "train")


def test_missing_annotation_is_named(root):
    (root / "Annotations" / "one.xml").unlink()
    with pytest.raises(DataError, match=r"one\.xml.*not there"):
        open_data(root, "train")


@pytest.mark.parametrize(
    ("xml", "message"),
    [
        (voc_xml(voc_object("cat", (1, 1, 9, 9)))[:-30], "not valid XML, perhaps truncated"),
        ("", "not valid XML"),
        ("\x00\x01\x02", "not valid XML"),
        ('<?xml version="1.0" encoding="no-such"?><annotation/>', "not valid XML"),
        ('<!DOCTYPE a [<!ENTITY b "c">]><annotation>&b;</annotation>', "document type declaration"),
        ('<!DOCTYPE a SYSTEM "file:///etc/passwd"><annotation/>', "document type declaration"),
        ("<a>" * 100 + "</a>" * 100, "nested more than 32 deep"),
        ("<html></html>", "expected a VOC <annotation>, found <html>"),
        (voc_xml("<object><bndbox/></object>"), "object 1 has no <name>"),
        (voc_xml("<object><name>cat</name></object>"), "object 1 .cat.*number in <bndbox/xmin>, found None"),
        (voc_xml(voc_object("cat", ("1", "2", "nan", "9"))), "finite number in <bndbox/xmax>, found 'nan'"),
        (voc_xml(voc_object("cat", ("1", "2", "three", "9"))), "expected a number in <bndbox/xmax>, found 'three'"),
    ],
)
def test_broken_annotations_are_named(root, xml, message):
    (root / "Annotations" / "three.xml").write_text(xml)
    with pytest.raises(DataError, match=rf"three\.xml: .*{message}"):
        open_data(root, "train")


def test_size_of_an_annotation_is_bounded(root, monkeypatch):
    monkeypatch.setattr(voc, "MAX_XML_BYTES", 50)
    with pytest.raises(DataError, match=r"one\.xml: .*more than 50 bytes"):
        open_data(root, "train")


@pytest.mark.parametrize("name", ["../../secret", "/etc/passwd", "..\\secret", "C:\\secret"])
def test_names_that_leave_the_folder_are_refused(root, name):
    (root / "ImageSets" / "Main" / "bad.txt").write_text(f"one\n{name}\n")
    with pytest.raises(DataError, match=r"bad\.txt, line 2: .*which leaves it"):
        open_data(root, "bad")


def test_a_file_name_in_the_annotation_that_leaves_the_folder_is_refused(root):
    (root / "JPEGImages" / "three.jpg").unlink()
    (root / "Annotations" / "three.xml").write_text(voc_xml(filename="../../../three.jpg"))
    with pytest.raises(DataError, match=r"three\.xml, <filename>: .*which leaves it"):
        open_data(root, "train")


def test_an_image_listed_twice_or_a_line_with_more_is_refused(root):
    (root / "ImageSets" / "Main" / "train.txt").write_text("one\n\nthree\none\n")
    with pytest.raises(DataError, match=r"train\.txt, line 4: image 'one' is listed twice"):
        open_data(root, "train")
    (root / "ImageSets" / "Main" / "train.txt").write_text("one  1\n")
    with pytest.raises(DataError, match=r"train\.txt, line 1: expected one image name"):
        open_data(root, "train")


def test_a_list_that_is_not_text_is_refused(root):
    (root / "ImageSets" / "Main" / "train.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="cannot read the split"):
        open_data(root, "train")


def test_the_devkits_lists_per_class_are_no_splits(root):
    with pytest.raises(
        DataError, match=r"cat_train\.txt, line 1: .*found 'one 1' \(one of the devkit's lists per class"
    ):
        open_data(root, "cat_train")


def test_a_split_may_be_called_like_a_list_per_class(root):
    (root / "ImageSets" / "Main" / "fold1_train.txt").write_text("three\n")
    assert [sample.image_id for sample in open_data(root, "fold1_train")] == ["three"]
