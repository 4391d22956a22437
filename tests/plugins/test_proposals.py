"""RegionProposals: the reference against torchvision's RPN, every form against the reference."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from one_op import CPU, NATIVE, PORTABLE, WAYS, run
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead

from regionrt.plugins.proposals.reference import proposals
from regionrt.plugins.proposals.torch_op import proposals as torch_op

# Sides of up to 200 px from an exp in fp32: a few ulp of 2e-5 px each; sigmoid is a few ulp of 1.
BOX_PX, SCORE = 2e-4, 2e-6
WEIGHTS = [1.0, 1.0, 1.0, 1.0]


@dataclass(frozen=True)
class Case:
    """Levels of so many anchors, and the op's attributes."""

    anchors: tuple[int, ...] = (90, 41)
    sizes: tuple[tuple[int, int], ...] = ((97, 131), (64, 90))  # of the images
    pre_nms: int = 30
    post_nms: int = 20
    iou: float = 0.6
    score: float = 0.0
    min_size: float = 1e-3
    weights: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0)

    def attributes(self) -> dict:
        return {
            "pre_nms": self.pre_nms,
            "post_nms": self.post_nms,
            "iou_threshold": self.iou,
            "score_threshold": self.score,
            "min_size": self.min_size,
            "box_weights": list(self.weights),
        }

    def arrays(self, seed: int = 0):
        rng = np.random.default_rng(seed)
        images = len(self.sizes)
        logits = [rng.normal(0, 3, (images, a)).astype(np.float32) for a in self.anchors]
        deltas = [rng.normal(0, 0.5, (images, a, 4)).astype(np.float32) for a in self.anchors]
        anchors = []
        for count in self.anchors:  # over the canvas and beyond its edges
            center, half = rng.uniform(-20, 150, (count, 2)), rng.uniform(4, 40, (count, 2))
            anchors.append(np.concatenate([center - half, center + half], 1).astype(np.float32))
        return logits, deltas, anchors, np.array(self.sizes, np.int32)

    def reference(self, logits, deltas, anchors, sizes):
        return proposals(
            logits,
            deltas,
            anchors,
            sizes,
            pre_nms=self.pre_nms,
            post_nms=self.post_nms,
            iou_threshold=self.iou,
            score_threshold=self.score,
            min_size=self.min_size,
            box_weights=self.weights,
        )

    def run(self, way, logits, deltas, anchors, sizes, dynamic: bool = False):
        inputs = {f"objectness_{i}": v for i, v in enumerate(logits)}
        inputs |= {f"deltas_{i}": v for i, v in enumerate(deltas)}
        inputs |= {f"anchors_{i}": v for i, v in enumerate(anchors)}
        shapes = {f"anchors_{i}": v.shape for i, v in enumerate(anchors)}
        if dynamic:  # as with a canvas of dynamic size: the graph does not know the number of anchors
            for i in range(len(anchors)):
                shapes[f"objectness_{i}"] = ("N", f"A{i}")
                shapes[f"deltas_{i}"] = ("N", f"A{i}", 4)
                shapes[f"anchors_{i}"] = (f"A{i}", 4)
        return run("RegionProposals", way, inputs | {"image_sizes": sizes}, self.attributes(), shapes)


def same(found, expected):
    rois, scores, counts = found
    np.testing.assert_array_equal(counts, expected[2])
    np.testing.assert_allclose(rois, expected[0], atol=BOX_PX, rtol=0)
    np.testing.assert_allclose(scores, expected[1], atol=SCORE, rtol=0)
    for image, count in enumerate(counts):
        assert (rois[image, count:] == 0).all()
        assert (scores[image, count:] == 0).all()


CASES = {
    "two levels": Case(),
    "one level, three images": Case(anchors=(77,), sizes=((97, 131), (33, 131), (97, 20))),
    "four levels, one image": Case(anchors=(120, 60, 21, 7), sizes=((97, 131),)),
    "fewer anchors than pre_nms": Case(anchors=(13, 5), pre_nms=50),
    "more rows than anchors": Case(anchors=(13, 5), pre_nms=50, post_nms=40),
    "more found than rows": Case(post_nms=3, iou=0.9),
    "score threshold": Case(score=0.9),
    "nothing scores enough": Case(score=1.0),
    "large boxes only": Case(min_size=30.0),
    "no box is too small": Case(min_size=0.0),
    "weights": Case(weights=(10.0, 5.0, 2.5, 2.0)),
    "tight NMS": Case(iou=0.1),
}


@pytest.mark.parametrize("way", WAYS, ids="-".join)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_each_form_computes_what_the_reference_does(case, way):
    arrays = case.arrays()
    same(case.run(way, *arrays), case.reference(*arrays))


@pytest.mark.parametrize("way", WAYS, ids="-".join)
@pytest.mark.parametrize("min_size", [1e-3, 0.0])
def test_any_number_of_anchors_in_one_model(min_size, way):
    """The graph pads levels that may be smaller than pre_nms; what it pads with must not come out as a proposal."""
    for seed, anchors in enumerate([(90, 41), (9, 3), (31, 30)]):
        case = Case(anchors=anchors, pre_nms=30, post_nms=40, min_size=min_size)
        arrays = case.arrays(seed)
        same(case.run(way, *arrays, dynamic=True), case.reference(*arrays))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("case", [Case(), Case(post_nms=3), Case(score=0.8), Case(anchors=(13, 5), pre_nms=50)])
def test_the_reference_is_torchvisions_rpn(case, seed):
    logits, deltas, anchors, sizes = case.arrays(seed)
    rpn = RegionProposalNetwork(
        AnchorGenerator(), RPNHead(1, 1), 0.7, 0.3, 256, 0.5,
        {"training": case.pre_nms, "testing": case.pre_nms}, {"training": case.post_nms, "testing": case.post_nms},
        case.iou, score_thresh=case.score,
    ).eval()  # fmt: skip
    images = len(sizes)
    all_deltas = torch.from_numpy(np.concatenate(deltas, 1)).reshape(-1, 4)
    all_anchors = [torch.from_numpy(np.concatenate(anchors))] * images
    decoded = rpn.box_coder.decode(all_deltas, all_anchors).view(images, -1, 4)
    objectness = torch.from_numpy(np.concatenate(logits, 1)).reshape(-1, 1)
    boxes, scores = rpn.filter_proposals(decoded, objectness, [tuple(s) for s in sizes.tolist()], list(case.anchors))
    rois, found_scores, counts = case.reference(logits, deltas, anchors, sizes)
    for image in range(images):
        assert counts[image] == len(boxes[image]) > 0
        np.testing.assert_allclose(rois[image, : counts[image]], boxes[image], atol=BOX_PX, rtol=0)
        np.testing.assert_allclose(found_scores[image, : counts[image]], scores[image], atol=SCORE, rtol=0)


@pytest.mark.parametrize("way", [NATIVE, PORTABLE, *CPU], ids="-".join)
def test_of_equal_scores_the_lower_index_comes_first(way):
    """Scores in steps, and within a level the same box many times. OpenVINO's TopK leaves the order of ties open."""
    case = Case()
    logits, deltas, anchors, sizes = case.arrays()
    logits = [np.round(level / 3) for level in logits]
    anchors = [a[np.arange(len(a)) // 3] for a in anchors]
    same(case.run(way, logits, deltas, anchors, sizes), case.reference(logits, deltas, anchors, sizes))


@pytest.mark.parametrize("way", WAYS, ids="-".join)
def test_saturated_scores_and_exploding_deltas(way):
    """exp is clipped at log(1000/16), and logits of ±100 give probabilities of 1 and 0, which are no padding."""
    case = Case(anchors=(20,), pre_nms=20, post_nms=24, iou=1.0)
    logits, deltas, anchors, sizes = case.arrays()
    logits[0][:, :8] = np.linspace(110, 100, 8)
    logits[0][:, 8:16] = np.linspace(-100, -110, 8)
    deltas[0][:, ::2, 2:] = 50
    expected = case.reference(logits, deltas, anchors, sizes)
    assert (expected[1] == 0).any()
    assert (expected[1] == 1).any()
    found = case.run(way, logits, deltas, anchors, sizes)
    np.testing.assert_array_equal(found[2], expected[2])
    for image, count in enumerate(expected[2]):  # of the ties any order
        order = [np.lexsort(np.round(v[0][image, :count], 2).T) for v in (found, expected)]
        np.testing.assert_allclose(
            found[0][image, :count][order[0]], expected[0][image, :count][order[1]], atol=BOX_PX, rtol=0
        )


@pytest.mark.parametrize("way", WAYS, ids="-".join)
def test_very_low_scores_keep_their_order_across_levels(way):
    """As a trained net has them where there is nothing: all of them near 1e-9, and the best ones of all levels win."""
    case = Case(anchors=(40, 40, 40), sizes=((97, 131),), post_nms=10, iou=0.9)
    logits, deltas, anchors, sizes = case.arrays(3)
    logits = [values / 3 - 20 - level for level, values in enumerate(logits)]
    expected = case.reference(logits, deltas, anchors, sizes)
    assert 0 < expected[1].max() < 1e-7
    found = case.run(way, logits, deltas, anchors, sizes)
    same(found, expected)
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-5)


@pytest.mark.parametrize("way", WAYS, ids="-".join)
def test_boxes_outside_the_image_are_dropped(way):
    case = Case(anchors=(6,), sizes=((40, 50), (40, 50)), pre_nms=6, post_nms=6)
    logits, deltas, anchors, sizes = case.arrays()
    deltas[0][:] = 0
    anchors[0][:] = [
        [60, 5, 80, 20], [5, 45, 20, 60], [-30, -30, -1, -1], [50, 0, 70, 30], [10, 10, 10, 30], [40, 30, 70, 60],
    ]  # fmt: skip
    found = case.run(way, logits, deltas, anchors, sizes)
    assert found[2].tolist() == [1, 1]
    assert found[0][:, 0].tolist() == [[40, 30, 50, 40]] * 2


def test_the_torch_op_computes_what_the_reference_does():
    case = Case()
    logits, deltas, anchors, sizes = case.arrays()
    tensors = [[torch.from_numpy(level) for level in levels] for levels in (logits, deltas, anchors)]
    found = torch_op(*tensors, torch.from_numpy(sizes), *case.attributes().values())
    for one, other in zip(found, case.reference(logits, deltas, anchors, sizes), strict=True):
        np.testing.assert_array_equal(one.numpy(), other)


@pytest.mark.parametrize("form", ["native", "portable"])
def test_onnxs_own_evaluator_agrees(form):
    case = Case(anchors=(30, 11), pre_nms=12, post_nms=15)
    arrays = case.arrays()
    same(case.run((form, "onnx"), *arrays), case.reference(*arrays))


@settings(max_examples=60, deadline=None, database=None, derandomize=True)
@given(
    seed=st.integers(0, 10_000),
    sizes=st.lists(st.tuples(st.integers(1, 120), st.integers(1, 140)), min_size=1, max_size=3),
    spread=st.sampled_from([0.0, 0.3, 3.0]),
    way=st.sampled_from([NATIVE, PORTABLE, *CPU]),
)
def test_any_images(seed, sizes, spread, way):
    """Down to images of one pixel, which drop nearly everything, and deltas that throw boxes far out."""
    case = Case(anchors=(40, 9), sizes=tuple(sizes), pre_nms=15, post_nms=20)
    logits, deltas, anchors, image_sizes = case.arrays(seed)
    deltas = [d * np.float32(spread) for d in deltas]
    same(case.run(way, logits, deltas, anchors, image_sizes), case.reference(logits, deltas, anchors, image_sizes))
