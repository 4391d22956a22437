"""open_data: layouts detected, and classes mapped by name."""

import warnings

import numpy as np
import pytest
from data_folders import coco_object, voc_object, voc_xml, write_coco, write_voc

from regionrt.train.data import DataError, open_data

BOX = (10, 10, 50, 50)


@pytest.fixture
def root(tmp_path):
    objects = [voc_object(name, BOX) for name in ("dog", "cat", "ant")]
    return write_voc(tmp_path, {"a": voc_xml(*objects), "b": voc_xml(voc_object("ant", BOX))}, {"train": ["a", "b"]})


def test_folders_of_no_known_layout(tmp_path):
    with pytest.raises(DataError, match=r"it does not exist; looked for VOC .* and COCO .*; or give shapes"):
        open_data(tmp_path / "absent", "train")
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="it is a file; looked for VOC"):
        open_data(tmp_path / "file", "train")
    (tmp_path / "file").unlink()
    with pytest.raises(DataError, match="no known layout: found an empty folder; looked for VOC"):
        open_data(tmp_path, "train")


def test_the_usual_slips_get_a_hint(tmp_path):
    write_voc(tmp_path / "VOCdevkit" / "VOC2007", {}, {"train": []})
    with pytest.raises(DataError, match=r"found VOC2007/; looked for .*Did you mean .*VOC2007\?"):
        open_data(tmp_path / "VOCdevkit", "train")
    for folder in ("Annotations", "JPEGImages"):
        (tmp_path / "b" / folder).mkdir(parents=True)
    with pytest.raises(DataError, match=r"looks like VOC without ImageSets/Main/\*\.txt"):
        open_data(tmp_path / "b", "train")


def test_a_folder_of_two_layouts_is_ambiguous(root):
    write_coco(root, [])
    with pytest.raises(DataError, match="both a VOC and a COCO layout"):
        open_data(root, "train")


def test_labels_of_a_checkpoint_are_mapped_by_name(root):
    labels = ("__background__", "cow", "cat", "dog", "ant")
    data = open_data(root, "train", labels=labels)
    assert data.labels == labels
    np.testing.assert_array_equal(data[0].labels, [3, 2, 4])


def test_a_class_unknown_to_the_checkpoint_is_an_error_unless_a_subset_is_chosen(root):
    labels = ("__background__", "cow", "dog")
    with pytest.raises(DataError, match="classes ant, cat are unknown to the checkpoint, which has cow, dog"):
        open_data(root, "train", labels=labels)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # leaving out was asked for
        data = open_data(root, "train", labels=labels, classes=labels[1:])
    np.testing.assert_array_equal(data[0].labels, [2])
    assert len(data[1].labels) == 0
    assert dict(data.dropped) == {"class not chosen": 3}


def test_unknown_classes_matter_only_where_an_object_has_them(tmp_path):
    root = write_coco(tmp_path, [coco_object(1, 1, 3, [1, 1, 5, 5])], categories={3: "cat", 7: "dog"})
    data = open_data(root, "train", labels=("__background__", "cat"))
    np.testing.assert_array_equal(data[0].labels, [1])


def test_names_that_torchvision_repeats_cannot_be_meant(tmp_path):
    root = write_coco(tmp_path, [coco_object(1, 1, 3, [1, 1, 5, 5])], categories={3: "N/A"})
    with pytest.raises(DataError, match="classes N/A are unknown to the checkpoint"):
        open_data(root, "train", labels=("__background__", "N/A", "cat", "N/A"))


def test_a_subset_of_classes_sets_the_labels(root):
    data = open_data(root, "train", classes=["dog", "ant"])
    assert data.labels == ("__background__", "dog", "ant")
    np.testing.assert_array_equal(data[0].labels, [1, 2])
    np.testing.assert_array_equal(data[1].labels, [2])


@pytest.mark.parametrize(
    ("labels", "classes", "message"),
    [
        (None, ["dog", "cow"], "classes cow were chosen, but .* has ant, cat, dog"),
        (None, [], "expected different names of object classes, found none"),
        (None, ["dog", "dog"], "expected different names"),
        (("__background__", "dog"), ["cat"], "classes cat were chosen, but the checkpoint has dog"),
        (("__background__", "cow"), ["cow"], "none of the chosen classes cow is in this data"),
        (("cow", "dog"), None, 'expected "__background__" and at least one class after it, found cow, dog'),
    ],
)
def test_choices_that_cannot_be(root, labels, classes, message):
    with pytest.raises(DataError, match=message):
        open_data(root, "train", labels=labels, classes=classes)


def test_shapes_takes_labels_and_classes_too():
    data = open_data("shapes:train=12,size=64x64", "train", classes=["star", "circle"])
    assert data.labels == ("__background__", "star", "circle")
    everything = open_data("shapes:train=12,size=64x64", "train")
    for index in range(12):
        all_names = [everything.labels[label] for label in everything[index].labels]
        assert [data.labels[label] for label in data[index].labels] == [n for n in all_names if n in data.labels]
    with pytest.raises(DataError, match="unknown to the checkpoint"):
        open_data("shapes", "train", labels=("__background__", "star"))
