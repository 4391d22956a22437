"""RegionMerge: the reference against merging written anew from the paper, every form against the reference."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from one_op import CPU, NATIVE, PORTABLE, WAYS, run

from regionrt.plugins.merge.reference import MergedArrays, match_scores, merge
from regionrt.plugins.merge.torch_op import merge as torch_op

# Windows of up to 60 px in fp32; softmax within a few ulp of 1, summed.
BOX_PX, SCORE = 2e-4, 5e-6
NAMES = ("class_logits", "box_edges", "windows", "image_sizes")


@dataclass(frozen=True)
class Case:
    """Shapes and the op's attributes."""

    classes: int = 3
    windows: int = 40
    images: int = 2
    window: float = 0.2
    merge: float = 0.8
    score: float = 0.0
    most: int = 12
    candidates: int = 60
    min_size: float = 1e-2
    agnostic: bool = False
    px: tuple[int, int] = (90, 120)  # sides of images; windows are centred at about 30 to 90

    def attributes(self) -> dict:
        return {
            "window_threshold": self.window,
            "merge_threshold": self.merge,
            "score_threshold": self.score,
            "max_detections": self.most,
            "candidates": self.candidates,
            "min_size": self.min_size,
            "class_agnostic": int(self.agnostic),
        }

    def arrays(self, seed: int = 0) -> tuple[np.ndarray, ...]:
        """Windows that crowd around few places, so that much is merged."""
        rng = np.random.default_rng(seed)
        logits = rng.normal(0, 2, (self.images, self.windows, self.classes + 1)).astype(np.float32)
        columns = 1 if self.agnostic else self.classes
        edges = np.tile([0.1, 0.1, 0.9, 0.9], columns) + rng.normal(0, 0.1, (self.images, self.windows, 4 * columns))
        center = rng.integers(1, 4, (self.windows, 2)) * 30 + rng.normal(0, 3, (self.windows, 2))
        half = rng.uniform(10, 30, (self.windows, 2))
        windows = np.concatenate([center - half, center + half], -1)
        sizes = rng.integers(*self.px, (self.images, 2)).astype(np.int32)
        return logits, edges.astype(np.float32), windows.astype(np.float32), sizes

    def reference(self, *arrays: np.ndarray) -> MergedArrays:
        return merge(*arrays, **self.attributes() | {"class_agnostic": self.agnostic})

    def run(self, way: tuple[str, str], *arrays: np.ndarray) -> MergedArrays:
        fixed = {"windows": arrays[2].shape}
        return MergedArrays(
            *run("RegionMerge", way, dict(zip(NAMES, arrays, strict=True)), self.attributes(), _shapes(arrays, fixed))
        )


def _shapes(arrays, fixed):
    """Windows are no batch: their number is fixed."""
    return {name: fixed.get(name, ("N", *value.shape[1:])) for name, value in zip(NAMES, arrays, strict=True)}


def same(found: MergedArrays, expected: MergedArrays) -> None:
    np.testing.assert_array_equal(found.num_detections, expected.num_detections)
    np.testing.assert_array_equal(found.overflow, expected.overflow)
    np.testing.assert_array_equal(found.labels, expected.labels)
    np.testing.assert_allclose(found.boxes, expected.boxes, atol=BOX_PX, rtol=0)
    np.testing.assert_allclose(found.scores, expected.scores, atol=SCORE, rtol=0)
    for image, count in enumerate(found.num_detections):  # what the contract says of padding
        assert (found.boxes[image, count:] == 0).all()
        assert (found.scores[image, count:] == -1).all()
        assert (found.labels[image, count:] == -1).all()


CASES = {
    "three classes": Case(),
    "one class": Case(classes=1),
    "twenty classes": Case(classes=20, windows=9, window=0.1),
    "one image": Case(images=1),
    "one box for all classes": Case(agnostic=True),
    "more than D": Case(most=4, merge=0.1),
    "fewer candidates than D": Case(windows=3, most=50),
    "more candidates than the cap": Case(candidates=10, window=0.05),
    "cap of one": Case(candidates=1),
    "no threshold": Case(window=0.0),
    "nothing scores enough": Case(window=1.0),
    "isolated windows are left out": Case(score=0.5),
    "large boxes only": Case(min_size=35.0),
    "nothing is merged": Case(merge=0.0),
    "everything is merged": Case(merge=2.0),
    "most windows are in the padding": Case(px=(35, 70)),
    "all windows are in the padding": Case(px=(8, 10)),
}


@pytest.mark.parametrize("way", WAYS, ids="-".join)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_each_form_computes_what_the_reference_does(case, way):
    arrays = case.arrays()
    same(case.run(way, *arrays), case.reference(*arrays))


def as_the_paper_says(boxes, confidences, threshold):
    """Section 4.3 in float64, on lists: [(box, sum of confidences)]."""
    found = [(np.asarray(b, np.float64), float(c)) for b, c in zip(boxes, confidences, strict=True)]

    def unlike(a, b):
        def area(x1, y1, x2, y2):
            return max(x2 - x1, 0) * max(y2 - y1, 0)

        shared = area(*np.maximum(a[:2], b[:2]), *np.minimum(a[2:], b[2:]))
        around = np.linalg.norm(np.maximum(a[2:], b[2:]) - np.minimum(a[:2], b[:2]))
        return (
            np.linalg.norm((a[:2] + a[2:] - b[:2] - b[2:]) / 2) / around + 1 - shared / (area(*a) + area(*b) - shared)
        )

    while len(found) > 1:
        scores = {(i, j): unlike(found[i][0], found[j][0]) for j in range(len(found)) for i in range(j)}
        i, j = min(scores, key=scores.get)
        if scores[i, j] > threshold:
            break
        (a, p), (b, q) = found[i], found[j]
        found[i] = ((a * p + b * q) / (p + q), p + q)
        del found[j]
    return found


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("threshold", [0.5, 0.7, 1.1])
def test_the_reference_merges_as_the_paper_says(threshold, seed):
    case = Case(classes=1, images=1, windows=30, merge=threshold, window=0.3, most=30)
    logits, edges, windows, _ = case.arrays(seed)
    found = case.reference(logits, edges, windows, np.array([[1000, 1000]], np.int32))
    probability = torch.from_numpy(logits[0]).double().softmax(-1)[:, 1].numpy()
    side = windows[:, 2:] - windows[:, :2]
    boxes = np.concatenate([windows[:, :2] + edges[0, :, :2] * side, windows[:, :2] + edges[0, :, 2:] * side], 1)
    above = probability > 0.3
    order = np.argsort(-probability[above])
    wanted = as_the_paper_says(boxes[above][order].clip(min=0), probability[above][order], threshold)
    wanted.sort(key=lambda pair: -pair[1])
    assert 1 < found.num_detections[0] == len(wanted) < above.sum()
    np.testing.assert_allclose(found.boxes[0, : len(wanted)], [b for b, _ in wanted], atol=1e-3)
    sums = np.array([s for _, s in wanted])
    np.testing.assert_allclose(found.scores[0, : len(wanted)], sums / (1 + sums), atol=1e-6)


def test_scores_of_pairs():
    box = np.array([0, 0, 4, 4], np.float32)
    others = np.array([[0, 0, 4, 4], [2, 0, 6, 4], [4, 0, 8, 4], [100, 100, 104, 104]], np.float32)
    found = match_scores(box, others)
    assert found[0] == 0
    np.testing.assert_allclose(found[1], 2 / np.hypot(6, 4) + 1 - 8 / 24, atol=1e-6)
    np.testing.assert_allclose(found[2], 4 / np.hypot(8, 4) + 1, atol=1e-6)
    assert 1.9 < found[3] < 2


@pytest.mark.parametrize("way", WAYS, ids="-".join)
def test_a_merged_box_is_the_mean_by_confidence_and_confidences_add_up(way):
    case = Case(classes=1, windows=3, images=1, merge=0.6, window=0.0)
    edges = np.tile(np.array([0, 0, 1, 1], np.float32), (1, 3, 1))
    windows = np.array([[10, 10, 50, 50], [14, 10, 54, 50], [70, 70, 90, 90]], np.float32)
    probability = np.array([0.6, 0.2, 0.5])
    logits = np.log(np.stack([1 - probability, probability], -1))[None].astype(np.float32)
    found = case.run(way, logits, edges, windows, np.array([[100, 100]], np.int32))
    assert found.num_detections.tolist() == [2]
    np.testing.assert_allclose(found.boxes[0, 0], [11, 10, 51, 50], atol=1e-4)
    np.testing.assert_allclose(found.scores[0, :2], [0.8 / 1.8, 0.5 / 1.5], atol=1e-6)


@pytest.mark.parametrize("way", WAYS, ids="-".join)
def test_classes_are_not_merged_with_each_other(way):
    case = Case(classes=2, windows=1, images=1, window=0.1)
    logits = np.array([[[0, 3, 2.9]]], np.float32)
    edges, windows = np.tile(np.array([0, 0, 1, 1], np.float32), (1, 1, 2)), np.array([[1, 1, 9, 9]], np.float32)
    found = case.run(way, logits, edges, windows, np.array([[60, 60]], np.int32))
    assert found.labels[0, :2].tolist() == [1, 2]


def in_photo(windows, height, width):
    """Which windows count, one after the other in float64."""

    def within(low, high, side):
        return low <= 0 or low + (high - low) / 2 < side

    return np.array([within(x1, x2, width) and within(y1, y2, height) for x1, y1, x2, y2 in windows.tolist()])


@pytest.mark.parametrize("way", WAYS, ids="-".join)
@pytest.mark.parametrize("candidates", [9, 49])
def test_windows_in_the_padding_are_no_candidates(candidates, way):
    """The more they lie in the padding, the surer they are. One row and one column count in the narrowest photo."""
    side, step, count = 40, 10, 7  # on a canvas of 100 px
    places = [(row, column) for row in range(count) for column in range(count)]
    windows = np.array([[x * step, y * step, x * step + side, y * step + side] for y, x in places], np.float32)
    sizes = np.array([[100, 100], [60, 31], [100, 20], [61, 7], [20, 20], [5, 9]], np.int32)
    case = Case(
        classes=1, windows=len(places), images=len(sizes), merge=0.0, window=0.3, most=49, candidates=candidates
    )
    sure = np.linspace(0.4, 0.9, len(places))
    logits = np.tile(np.log(np.stack([1 - sure, sure], -1)), (len(sizes), 1, 1)).astype(np.float32)
    edges = np.tile(np.array([0, 0, 1, 1], np.float32), (*logits.shape[:2], 1))
    found = case.run(way, logits, edges, windows, sizes)
    same(found, case.reference(logits, edges, windows, sizes))
    for image, (height, width) in enumerate(sizes.tolist()):
        rows = max(len([y for y in range(count) if y * step + side // 2 < height]), 1)
        columns = max(len([x for x in range(count) if x * step + side // 2 < width]), 1)
        wanted = [n for n in reversed(range(len(places))) if places[n][0] < rows and places[n][1] < columns]
        assert found.overflow[image] == max(len(wanted) - candidates, 0)
        wanted = wanted[:candidates]
        assert found.num_detections[image] == len(wanted)
        clipped = np.minimum(windows[wanted], [width, height, width, height])
        np.testing.assert_allclose(found.boxes[image, : len(wanted)], clipped, atol=BOX_PX)


@pytest.mark.parametrize("way", WAYS, ids="-".join)
@pytest.mark.parametrize("candidates", [1, 9, 60])
def test_overflow_counts_what_the_cap_drops(candidates, way):
    case = Case(candidates=candidates, window=0.05)
    arrays = case.arrays()
    scores = torch.from_numpy(arrays[0]).softmax(-1)[..., 1:].numpy()
    above = np.array([(s[in_photo(arrays[2], *size)] > 0.05).sum() for s, size in zip(scores, arrays[3], strict=True)])
    assert (above < (scores > 0.05).sum((1, 2))).any()  # some are in the padding
    found = case.run(way, *arrays)
    assert found.overflow.tolist() == np.maximum(above - candidates, 0).tolist()
    same(found, case.reference(*arrays))


@pytest.mark.parametrize("way", WAYS, ids="-".join)
@pytest.mark.parametrize("garbage", [np.nan, np.inf])
def test_a_broken_image_does_not_reach_its_neighbours(way, garbage):
    case = Case()
    arrays = case.arrays()
    expected = case.reference(*arrays)
    for values in arrays[:2]:
        values[0] = garbage
    found = case.run(way, *arrays)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one[1], other[1], atol=BOX_PX, rtol=0)


@pytest.mark.parametrize("way", WAYS, ids="-".join)
def test_edges_that_cross_and_boxes_outside_the_image_are_no_detections(way):
    case = Case(classes=1, windows=3, images=1, window=0.1)
    logits = np.array([[[0, 3], [0, 2], [0, 1]]], np.float32)
    edges = np.array([[[0.9, 0, 0.1, 1], [2, 0, 3, 1], [-1, -1, 2, 2]]], np.float32)
    windows = np.array([[1, 1, 40, 40], [30, 0, 50, 9], [20, 20, 40, 40]], np.float32)
    found = case.run(way, logits, edges, windows, np.array([[50, 60]], np.int32))
    assert found.num_detections.tolist() == [1]
    assert found.boxes[0, 0].tolist() == [0, 0, 60, 50]


@pytest.mark.parametrize("way", [NATIVE, PORTABLE, *CPU], ids="-".join)
def test_of_equal_scores_the_earlier_pair_is_merged(way):
    """Windows on a line at equal distances: every pair of neighbours has the same score."""
    case = Case(classes=1, windows=5, images=1, merge=0.95, window=0.1)
    logits = np.tile(np.array([0, 2], np.float32), (1, 5, 1))
    edges = np.tile(np.array([0, 0, 1, 1], np.float32), (1, 5, 1))
    windows = np.array([[8 * k, 0, 8 * k + 16, 16] for k in range(5)], np.float32)
    sizes = np.array([[100, 100]], np.int32)
    found = case.run(way, logits, edges, windows, sizes)
    same(found, case.reference(logits, edges, windows, sizes))
    assert found.boxes[0, 0].tolist() == [4, 0, 20, 16]


@pytest.mark.parametrize("agnostic", [False, True])
def test_the_torch_op_computes_what_the_reference_does(agnostic):
    case = Case(agnostic=agnostic)
    arrays = case.arrays()
    found = torch_op(*map(torch.from_numpy, arrays), *(case.attributes() | {"class_agnostic": agnostic}).values())
    for one, other in zip(found, case.reference(*arrays), strict=True):
        np.testing.assert_array_equal(one.numpy(), other)


def test_onnxs_own_evaluator_agrees():
    case = Case(windows=9, candidates=12, most=6)
    arrays = case.arrays()
    same(case.run(("portable", "onnx"), *arrays), case.reference(*arrays))


@settings(max_examples=15, deadline=None, database=None, derandomize=True)
@given(
    seed=st.integers(0, 10_000),
    spread=st.sampled_from([0.0, 1.0, 3.0]),
    case=st.sampled_from([Case(), Case(candidates=10, window=0.02), Case(agnostic=True, classes=5, most=3)]),
    merge_at=st.sampled_from([0.3, 0.7, 1.2]),
    way=st.sampled_from([NATIVE, PORTABLE, *CPU]),
)
def test_any_windows(seed, spread, case, merge_at, way):
    case = replace(case, merge=merge_at)
    logits, edges, *others = case.arrays(seed)
    arrays = (logits, (edges - 0.5) * np.float32(spread) + np.float32(0.5), *others)
    same(case.run(way, *arrays), case.reference(*arrays))
