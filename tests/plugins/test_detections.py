"""RegionDetections: the reference against torchvision's RoIHeads, every form against the reference."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from one_op import CPU, NATIVE, PORTABLE, WAYS, run
from torchvision.models.detection.roi_heads import RoIHeads

from regionrt.plugins.detections.reference import DetectionArrays, detections
from regionrt.plugins.detections.torch_op import detections as torch_op

# As for proposals: sides of up to 200 px in fp32, softmax within a few ulp of 1.
BOX_PX, SCORE = 2e-4, 2e-6


@dataclass(frozen=True)
class Case:
    """Shapes and the op's attributes."""

    classes: int = 3
    rows: int = 25
    counts: tuple[int, ...] = (25, 0, 11)  # full, none, some
    score: float = 0.1
    iou: float = 0.5
    most: int = 12
    candidates: int = 3840
    min_size: float = 1e-2
    weights: tuple[float, ...] = (10.0, 10.0, 5.0, 5.0)
    agnostic: bool = False

    def attributes(self) -> dict:
        return {
            "score_threshold": self.score,
            "iou_threshold": self.iou,
            "max_detections": self.most,
            "candidates": self.candidates,
            "min_size": self.min_size,
            "box_weights": list(self.weights),
            "class_agnostic": int(self.agnostic),
        }

    def arrays(self, seed: int = 0):
        rng = np.random.default_rng(seed)
        images = len(self.counts)
        logits = rng.normal(0, 2, (images, self.rows, self.classes + 1)).astype(np.float32)
        columns = 4 if self.agnostic else 4 * (self.classes + 1)
        deltas = rng.normal(0, 1, (images, self.rows, columns)).astype(np.float32)
        center, half = rng.uniform(0, 100, (images, self.rows, 2)), rng.uniform(3, 40, (images, self.rows, 2))
        rois = np.concatenate([center - half, center + half], -1).astype(np.float32)
        sizes = rng.integers(60, 120, (images, 2)).astype(np.int32)
        return logits, deltas, rois, np.array(self.counts, np.int32), sizes

    def reference(self, *arrays) -> DetectionArrays:
        return detections(*arrays, **self.attributes() | {"class_agnostic": self.agnostic})

    def run(self, way, *arrays) -> DetectionArrays:
        names = ("class_logits", "box_deltas", "rois", "counts", "image_sizes")
        return DetectionArrays(*run("RegionDetections", way, dict(zip(names, arrays, strict=True)), self.attributes()))


def same(found: DetectionArrays, expected: DetectionArrays):
    np.testing.assert_array_equal(found.num_detections, expected.num_detections)
    np.testing.assert_array_equal(found.overflow, expected.overflow)
    np.testing.assert_array_equal(found.labels, expected.labels)
    np.testing.assert_array_equal(found.roi_index, expected.roi_index)
    np.testing.assert_allclose(found.boxes, expected.boxes, atol=BOX_PX, rtol=0)
    np.testing.assert_allclose(found.scores, expected.scores, atol=SCORE, rtol=0)
    for image, count in enumerate(found.num_detections):  # what the contract says of padding
        assert (found.boxes[image, count:] == 0).all()
        for values in (found.scores, found.labels, found.roi_index):
            assert (values[image, count:] == -1).all()


CASES = {
    "three classes": Case(),
    "one class": Case(classes=1),
    "ninety classes": Case(classes=90, rows=7, counts=(7, 3), score=0.02),
    "one image": Case(counts=(13,)),
    "nothing in any image": Case(counts=(0, 0)),
    "class-agnostic deltas": Case(agnostic=True),
    "more than D": Case(most=4, iou=0.9),
    "fewer candidates than D": Case(rows=3, counts=(3, 1), most=50),
    "more candidates than the cap": Case(candidates=10, score=0.05),
    "cap of one": Case(candidates=1),
    "no score threshold": Case(score=0.0),
    "nothing scores enough": Case(score=1.0),
    "large boxes only": Case(min_size=25.0),
    "weights of one": Case(weights=(1.0, 1.0, 1.0, 1.0)),
    "tight NMS": Case(iou=0.05),
}


@pytest.mark.parametrize("way", WAYS, ids="-".join)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_each_form_computes_what_the_reference_does(case, way):
    arrays = case.arrays()
    same(case.run(way, *arrays), case.reference(*arrays))


@pytest.mark.parametrize("way", WAYS, ids="-".join)
@pytest.mark.parametrize("candidates", [1, 9, 30, 60])
def test_overflow_counts_what_the_cap_drops(candidates, way):
    case = Case(candidates=candidates, score=0.05, counts=(25, 10, 0))
    arrays = case.arrays()
    probabilities = torch.from_numpy(arrays[0]).softmax(-1)[..., 1:].numpy()
    above = [int((probabilities[n, :count] > 0.05).sum()) for n, count in enumerate(case.counts)]
    found = case.run(way, *arrays)
    assert found.overflow.tolist() == [max(a - candidates, 0) for a in above]
    same(found, case.reference(*arrays))


@pytest.mark.parametrize("way", WAYS, ids="-".join)
@pytest.mark.parametrize("garbage", [np.nan, np.inf, 1e30])
def test_rows_beyond_the_count_influence_nothing(garbage, way):
    case = Case(candidates=40)
    arrays = case.arrays()
    expected = case.reference(*arrays)
    for values in arrays[:3]:
        for image, count in enumerate(case.counts):
            values[image, count:] = garbage
    same(case.run(way, *arrays), expected)
    same(case.reference(*arrays), expected)


@pytest.mark.parametrize("way", WAYS, ids="-".join)
def test_a_broken_image_does_not_reach_its_neighbours(way):
    case = Case(counts=(25, 25))
    arrays = case.arrays()
    expected = case.reference(*arrays)
    for values in arrays[:3]:
        values[0] = np.nan
    found = case.run(way, *arrays)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one[1], other[1], atol=BOX_PX, rtol=0)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "case", [Case(counts=(25, 11)), Case(classes=1, counts=(25,)), Case(counts=(25,), most=4, score=0.01)]
)
def test_the_reference_is_torchvisions_roi_heads(case, seed):
    logits, deltas, rois, counts, sizes = case.arrays(seed)
    heads = RoIHeads(
        None, None, None, 0.5, 0.5, 512, 0.25, case.weights, case.score, case.iou, case.most
    )  # fmt: skip
    rows = [slice(0, c) for c in counts]
    boxes, scores, labels = heads.postprocess_detections(
        torch.from_numpy(np.concatenate([v[r] for v, r in zip(logits, rows, strict=True)])),
        torch.from_numpy(np.concatenate([v[r] for v, r in zip(deltas, rows, strict=True)])),
        [torch.from_numpy(v[r]) for v, r in zip(rois, rows, strict=True)],
        [tuple(s) for s in sizes.tolist()],
    )
    found = case.reference(logits, deltas, rois, counts, sizes)
    for image, count in enumerate(found.num_detections):
        assert count == len(boxes[image]) > 0
        np.testing.assert_allclose(found.boxes[image, :count], boxes[image], atol=BOX_PX, rtol=0)
        np.testing.assert_allclose(found.scores[image, :count], scores[image], atol=SCORE, rtol=0)
        np.testing.assert_array_equal(found.labels[image, :count], labels[image])
        best = torch.from_numpy(logits[image]).softmax(-1).numpy()
        np.testing.assert_allclose(
            best[found.roi_index[image, :count], found.labels[image, :count]], scores[image], atol=SCORE, rtol=0
        )


@pytest.mark.parametrize("way", [NATIVE, PORTABLE, *CPU], ids="-".join)
def test_of_equal_scores_the_lower_index_comes_first(way):
    """Every RoI has the same logits, a permutation of three values. OpenVINO's TopK leaves the order of ties open."""
    case = Case(counts=(25, 25), iou=0.3)
    logits, *others = case.arrays()
    logits[:] = np.array([0.5, 2, 1, 2], np.float32)
    same(case.run(way, logits, *others), case.reference(logits, *others))


@pytest.mark.parametrize("way", WAYS, ids="-".join)
def test_classes_do_not_suppress_each_other(way):
    case = Case(classes=2, rows=2, counts=(2,), score=0.1, most=5)
    logits = np.array([[[0, 3, 2.9], [0, 2.8, 2.7]]], np.float32)
    rois = np.array([[[10, 10, 50, 50], [11, 10, 50, 50]]], np.float32)
    deltas, sizes = np.zeros((1, 2, 12), np.float32), np.array([[60, 60]], np.int32)
    found = case.run(way, logits, deltas, rois, np.array([2], np.int32), sizes)
    assert found.num_detections.tolist() == [2]
    assert found.labels[0, :2].tolist() == [1, 2]
    assert found.roi_index[0, :2].tolist() == [0, 0]


@pytest.mark.parametrize("way", WAYS, ids="-".join)
def test_boxes_outside_the_image_and_logits_out_of_scale(way):
    case = Case(classes=1, rows=5, counts=(5,), most=5)
    logits = np.array([[[0, 1], [0, 2], [0, 3], [-1e4, 1e4], [1e4, -1e4]]], np.float32)
    rois = np.array([[[70, 0, 90, 9], [0, 0, 0, 20], [-9, -9, 9, 9], [20, 20, 80, 80], [1, 1, 40, 40]]], np.float32)
    deltas, sizes = np.zeros((1, 5, 8), np.float32), np.array([[60, 50]], np.int32)
    found = case.run(way, logits, deltas, rois, np.array([5], np.int32), sizes)
    assert found.num_detections.tolist() == [2]
    assert found.boxes[0, :2].tolist() == [[20, 20, 50, 60], [0, 0, 9, 9]]
    assert found.scores[0, 0] == 1


@pytest.mark.parametrize("agnostic", [False, True])
def test_the_torch_op_computes_what_the_reference_does(agnostic):
    case = Case(agnostic=agnostic)
    arrays = case.arrays()
    found = torch_op(*map(torch.from_numpy, arrays), *(case.attributes() | {"class_agnostic": agnostic}).values())
    for one, other in zip(found, case.reference(*arrays), strict=True):
        np.testing.assert_array_equal(one.numpy(), other)


@pytest.mark.parametrize("form", ["native", "portable"])
def test_onnxs_own_evaluator_agrees(form):
    case = Case(rows=9, counts=(9, 4), most=6)
    arrays = case.arrays()
    same(case.run((form, "onnx"), *arrays), case.reference(*arrays))


@settings(max_examples=60, deadline=None, database=None, derandomize=True)
@given(
    seed=st.integers(0, 10_000),
    counts=st.lists(st.integers(0, 25), min_size=1, max_size=3),
    spread=st.sampled_from([0.0, 1.0, 30.0]),
    case=st.sampled_from([Case(), Case(candidates=10, score=0.02), Case(agnostic=True, classes=5, most=3)]),
    way=st.sampled_from([NATIVE, PORTABLE, *CPU]),
)
def test_any_counts_and_deltas(seed, counts, spread, case, way):
    logits, deltas, *others = replace(case, counts=tuple(counts)).arrays(seed)
    arrays = (logits, deltas * np.float32(spread), *others)
    same(case.run(way, *arrays), case.reference(*arrays))
