"""Verification finds what is broken, and where: each stage is damaged in turn."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from tiny_detectors import NOTHING, photos
from torch import nn

from regionrt.export import ExportError, verify
from regionrt.export.matching import match, match_scored
from regionrt.export.verdict import Agreement, StageCheck

# portrait, landscape and square photos that are resized and padded, and one in which nothing is found
IMAGES = [*photos([(120, 70), (64, 96), (90, 90), (50, 200), (61, 37)], seed=5), NOTHING]


@pytest.mark.parametrize("form", ["native", "portable", "staged"])
def test_an_honest_artefact_passes_at_every_batch(exported, form):
    verdicts = verify(exported.bundle, exported.module, IMAGES, batches=(1, 4), forms=[form])
    assert len(verdicts) == (3 if form == "staged" else 1)
    for verdict in verdicts:
        assert verdict.passed, verdict.first_difference
        assert [agreement.batch for agreement in verdict.agreements] == [1, 4]
        for agreement in verdict.agreements:
            assert agreement.matched == agreement.eager == agreement.artefact > 5
            assert agreement.empty_images >= 1
        assert verdict.to_json()["passed"] is True


def damaged(module: nn.Module, layer: str) -> nn.Module:
    other = copy.deepcopy(module)
    weight = other.get_submodule(layer).weight
    with torch.no_grad():
        weight[0] += 0.2 * weight.abs().mean()
    return other


@pytest.mark.parametrize(
    ("layer", "stage"),
    [
        ("backbone.stem.0", "backbone/neck features"),
        ("rpn.head.cls_logits", "RPN scores"),
        ("rpn.head.bbox_pred", "RPN boxes"),
        ("roi_heads.box_head.fc6", "head outputs (classes)"),
        ("roi_heads.box_predictor.bbox_pred", "head outputs (boxes)"),
        ("roi_heads.mask_head.0.0", "masks"),
    ],
)
@pytest.mark.parametrize("form", ["native", "staged"])
def test_the_first_stage_that_differs_is_named(dynamic, layer, stage, form):
    verdict, *_ = verify(dynamic.bundle, damaged(dynamic.module, layer), IMAGES[:2], batches=(1,), forms=[form])
    assert not verdict.passed
    assert verdict.first_difference.startswith(f"{stage} (")
    assert "worst on photo" in verdict.first_difference
    # the units that come after are fed with eager's own values, and do not inherit the error
    assert len({check.unit for check in verdict.checks if not check.passed}) == 1


def test_another_iou_threshold_is_seen_in_the_proposals(fixed):
    other = copy.deepcopy(fixed.module)
    other.rpn.min_size = 25.0
    (verdict,) = verify(fixed.bundle, other, IMAGES, batches=(1,), forms=["native"])
    assert verdict.first_difference.startswith("proposals (rois)")


def test_thresholds_are_those_of_the_manifest(fixed):
    other = copy.deepcopy(fixed.module)
    other.roi_heads.score_thresh, other.roi_heads.nms_thresh = 0.9, 0.1
    (verdict,) = verify(fixed.bundle, other, IMAGES[:2], batches=(1,), forms=["native"])
    assert verdict.passed, "an artefact is judged at the thresholds that were fixed at its export"


def test_nothing_to_verify(fixed):
    with pytest.raises(ExportError, match="at least one image"):
        verify(fixed.bundle, fixed.module, [])
    with pytest.raises(ExportError, match="no ONNX artefact of form"):
        verify(fixed.bundle, fixed.module, IMAGES, forms=["plugin"])


def test_a_nan_is_the_worst_error_and_stays():
    check = StageCheck("masks", "masks", "dense_2", limit=1e-4)
    for error, image in ((0.5, "a"), (float("nan"), "b"), (0.7, "c")):
        check.add(error, error, image)
    assert not check.passed
    assert check.image == "b"


def test_an_image_that_only_one_side_finds_something_in_counts():
    agreement = Agreement(1)
    agreement.add("a", matched=0, eager=0, artefact=0, score_error=0)
    assert (agreement.share, agreement.empty_images) == (1.0, 1)
    agreement.add("b", matched=0, eager=0, artefact=2, score_error=0)
    assert (agreement.share, agreement.worst_image) == (0.0, "b")


BOXES = np.array([[0, 0, 10, 10], [20, 20, 40, 40], [5, 0, 15, 10]], np.float32)


def test_sets_match_in_any_order_and_one_to_one():
    scores, labels = np.array([0.9, 0.8, 0.8], np.float32), np.array([1, 2, 1])
    order = np.array([2, 0, 1])
    mine, theirs = (BOXES, scores, labels), (BOXES[order], scores[order], labels[order])
    rows, columns = match_scored(mine, theirs, min_iou=0.99, max_score_error=1e-4)
    assert dict(zip(rows, order[columns], strict=True)) == {0: 0, 1: 1, 2: 2}
    twice = np.concatenate([BOXES[:1], BOXES[:1]])
    assert len(match(twice, BOXES[:1], np.ones((2, 1), bool), 0.5)[0]) == 1


@pytest.mark.parametrize("field", ["box", "score", "label"])
def test_a_box_with_another_place_score_or_label_has_no_partner(field):
    boxes, scores, labels = BOXES.copy(), np.full(3, 0.5, np.float32), np.array([1, 1, 1])
    if field == "box":
        boxes[1, 2] += 2
    elif field == "score":
        scores[1] += 0.01
    else:
        labels[1] = 2
    wanted = (BOXES, np.full(3, 0.5, np.float32), np.array([1, 1, 1]))
    rows, _ = match_scored(wanted, (boxes, scores, labels), min_iou=0.99, max_score_error=1e-4)
    assert list(rows) == [0, 2]


def test_sets_without_boxes():
    empty = (np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int32))
    full = (BOXES, np.ones(3, np.float32), np.ones(3, np.int32))
    for a, b in ((empty, full), (full, empty), (empty, empty)):
        rows, columns = match_scored(a, b, min_iou=0.5, max_score_error=1)
        assert len(rows) == len(columns) == 0


def test_every_precision_has_a_tolerance_for_label_maps_too():
    from regionrt.export.verdict import PIXELS, TOLERANCES

    assert set(PIXELS) == set(TOLERANCES)
