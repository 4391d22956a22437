"""RegionNms: the reference against torchvision, every form against the reference; keep is exact, never nearly right."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from one_op import CPU, NATIVE, PORTABLE, WAYS, run
from torchvision.ops import nms as torchvision_nms

from regionrt.plugins.nms.reference import nms
from regionrt.plugins.nms.torch_op import nms as torch_op


def crowd(seed: int, images: int, rows: int, classes: int):
    """Boxes that overlap a lot, with classes −1 (padding) to `classes` − 1."""
    rng = np.random.default_rng(seed)
    low = rng.uniform(0, 20, (images, rows, 2))
    boxes = np.concatenate([low, low + rng.uniform(10, 30, (images, rows, 2))], -1).astype(np.float32)
    return boxes, rng.integers(-1, classes, (images, rows)).astype(np.int32)


def keep(way, boxes, classes, iou, num_classes):
    attributes = {"iou_threshold": iou, "num_classes": num_classes}
    return run("RegionNms", way, {"boxes": boxes, "classes": classes}, attributes)[0]


@pytest.mark.parametrize("way", WAYS, ids="-".join)
@pytest.mark.parametrize(
    ("images", "rows", "classes", "iou"),
    [
        (1, 31, 1, 0.5),
        (3, 31, 1, 0.7),
        (2, 67, 5, 0.3),
        (1, 1, 1, 0.5),
        (2, 24, 90, 0.45),
        (1, 40, 1, 0.0),
        (1, 40, 2, 1.0),
    ],
)
def test_each_form_keeps_what_the_reference_keeps(images, rows, classes, iou, way):
    boxes, labels = crowd(rows, images, rows, classes)
    expected = nms(boxes, labels, iou_threshold=iou)
    np.testing.assert_array_equal(keep(way, boxes, labels, iou, classes), expected)


@pytest.mark.parametrize("seed", range(5))
def test_the_reference_is_torchvisions_nms_class_by_class(seed):
    boxes, labels = crowd(seed, 2, 80, 3)
    scores = torch.arange(80, 0, -1).float()
    found = nms(boxes, labels, iou_threshold=0.4)
    for image in range(2):
        expected = np.zeros(80, bool)
        for label in range(3):
            of_class = np.flatnonzero(labels[image] == label)
            kept = torchvision_nms(torch.from_numpy(boxes[image, of_class]), scores[of_class], 0.4)
            expected[of_class[kept.numpy()]] = True
        np.testing.assert_array_equal(found[image], expected)


def chain(length: int) -> np.ndarray:
    """Each box suppresses the next one and no other: every second one stays, and each decision waits for the last."""
    left = np.arange(length, dtype=np.float32) * 4
    return np.stack([left, np.zeros_like(left), left + 10, np.full_like(left, 10)], -1)[None]


@pytest.mark.parametrize("way", WAYS, ids="-".join)
@pytest.mark.parametrize("length", [2, 9, 120])
def test_a_chain_of_boxes_needs_as_many_rounds_as_it_is_long(length, way):
    boxes, labels = chain(length), np.zeros((1, length), np.int32)
    found = keep(way, boxes, labels, 0.4, 1)[0]
    np.testing.assert_array_equal(found, np.arange(length) % 2 == 0)


@pytest.mark.parametrize("way", WAYS, ids="-".join)
def test_images_of_a_batch_need_different_numbers_of_rounds(way):
    boxes = np.concatenate([chain(40), chain(40) * 3, chain(40)])
    labels = np.zeros((3, 40), np.int32)
    labels[2, ::2] = 1  # neighbours of another class
    found = keep(way, boxes, labels, 0.4, 2)
    np.testing.assert_array_equal(found, nms(boxes, labels, iou_threshold=0.4))
    assert found.sum(1).tolist() == [20, 20, 40]


@pytest.mark.parametrize("way", WAYS, ids="-".join)
@pytest.mark.parametrize("garbage", [np.nan, np.inf, -1e30])
def test_padding_is_never_kept_and_never_suppresses(garbage, way):
    boxes, labels = crowd(0, 2, 30, 2)
    labels[0, ::3] = -1
    labels[1] = -1
    expected = nms(boxes, labels, iou_threshold=0.4)
    boxes[labels < 0] = garbage
    found = keep(way, boxes, labels, 0.4, 2)
    assert not found[1].any()
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("way", WAYS, ids="-".join)
def test_equal_and_empty_boxes(way):
    """Of equal boxes the first stays; boxes without area overlap nothing, not even themselves."""
    boxes = np.array([[[5, 5, 9, 9]] * 3 + [[7, 7, 7, 7]] * 2 + [[5, 6, 5, 9], [0, 0, 0, 0]]], np.float32)
    labels = np.zeros((1, 7), np.int32)
    found = keep(way, boxes, labels, 0.5, 1)
    assert found.tolist() == [[True, False, False, True, True, True, True]]
    np.testing.assert_array_equal(found, nms(boxes, labels, iou_threshold=0.5))


@pytest.mark.parametrize("way", WAYS, ids="-".join)
@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e6])
def test_overlap_does_not_depend_on_the_scale(scale, way):
    boxes, labels = crowd(3, 1, 50, 1)
    expected = nms(boxes, labels, iou_threshold=0.5)
    assert 0 < expected.sum() < (labels == 0).sum()
    scaled = boxes * np.float32(scale)
    np.testing.assert_array_equal(nms(scaled, labels, iou_threshold=0.5), expected)
    np.testing.assert_array_equal(keep(way, scaled, labels, 0.5, 1), expected)


@pytest.mark.parametrize("way", WAYS, ids="-".join)
def test_an_overlap_equal_to_the_threshold_suppresses_nothing(way):
    boxes = np.array([[[0, 0, 4, 4], [0, 0, 4, 2]]], np.float32)
    labels = np.zeros((1, 2), np.int32)
    assert keep(way, boxes, labels, 0.5, 1).tolist() == [[True, True]]
    assert keep(way, boxes, labels, 0.499, 1).tolist() == [[True, False]]


def test_the_torch_op_keeps_what_the_reference_keeps():
    boxes, labels = crowd(1, 2, 40, 3)
    found = torch_op(torch.from_numpy(boxes), torch.from_numpy(labels), 0.4, 3)
    np.testing.assert_array_equal(found.numpy(), nms(boxes, labels, iou_threshold=0.4))


@pytest.mark.parametrize("form", ["native", "portable"])
def test_onnxs_own_evaluator_agrees(form):
    boxes, labels = crowd(2, 2, 25, 2)
    found = keep((form, "onnx"), boxes, labels, 0.4, 2)
    np.testing.assert_array_equal(found, nms(boxes, labels, iou_threshold=0.4))


@settings(max_examples=120, deadline=None, database=None, derandomize=True)
@given(
    corners=st.lists(st.tuples(*[st.integers(0, 12)] * 4), min_size=12, max_size=12),
    classes=st.lists(st.integers(-1, 2), min_size=12, max_size=12),
    iou=st.sampled_from([0.25, 0.5, 0.75]),
    way=st.sampled_from([NATIVE, PORTABLE, *CPU]),
)
def test_boxes_on_a_grid_with_overlaps_at_the_threshold(corners, classes, iou, way):
    """Whole numbers: many equal boxes, many without area, many whose IoU is the threshold exactly."""
    points = np.array(corners, np.float32)
    boxes = np.concatenate([np.minimum(points[:, :2], points[:, 2:]), np.maximum(points[:, :2], points[:, 2:])], 1)[
        None
    ]
    labels = np.array([classes], np.int32)
    expected = nms(boxes, labels, iou_threshold=iou)
    np.testing.assert_array_equal(keep(way, boxes, labels, iou, 3), expected)
