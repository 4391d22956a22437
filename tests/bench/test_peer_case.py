"""One net against its peers: who agrees with eager, how many times faster, and what a failure leaves standing."""

import json

import numpy as np
import pytest
import torch

from regionrt.bench.latency import speedup
from regionrt.bench.suites import peer_case
from regionrt.bench.suites.peer_case import EAGER, Case, CaseOptions, canvas_for, measure_case, share_matched
from regionrt.bench.suites.random_weights import calibrate, freeze_norms
from regionrt.runtime.results import Detections
from regionrt.train.models import build_model

LABELS = ("__background__", "disc", "square")
EXPORT, STAGED, COMPILED = "export-onnxruntime-fp32", "onnxruntime-staged-fp32", "torch-compile"
SIZE = (96, 128)


def photos(count: int) -> list[np.ndarray]:
    rng = np.random.default_rng(3)
    coarse = rng.integers(0, 256, (count, 12, 16, 3), dtype=np.uint8)
    return list(coarse.repeat(8, axis=1).repeat(8, axis=2))


@pytest.fixture(scope="module")
def module():
    torch.manual_seed(0)
    torch.set_num_threads(1)
    config = {"backbone": "squeezenet1_1", "size": list(SIZE), "representation": 32, "proposals": 50,
              "mask_layers": [16], "detections": 12}  # fmt: skip
    net = build_model("mask_rcnn", config, LABELS).eval()
    with torch.no_grad():  # spread the scores, so that there are detections and no ties
        net.roi_heads.box_predictor.cls_score.weight.mul_(5)
        net.rpn.head.cls_logits.weight.mul_(30)
    return net


def options(*rows: str, **changes) -> CaseOptions:
    return CaseOptions(rows=rows, seconds=0.0, least_rounds=3, profile_rounds=2, **changes)


@pytest.fixture(scope="module")
def measured(module, tmp_path_factory):
    case = Case("tiny 96×128", "tiny", SIZE, False)
    return measure_case(
        module,
        LABELS,
        photos(2),
        options(EXPORT, STAGED, COMPILED),
        case=case,
        scratch=tmp_path_factory.mktemp("case"),
        compile_probe=lambda: "no time for that",
    )


def test_fp32_peers_and_ours_find_what_eager_finds(measured):
    assert measured.eager_detections > 4
    assert measured.row(EAGER).matched == 1.0
    assert measured.row(EXPORT).matched == 1.0
    assert measured.row(STAGED).matched_on_canvas == 1.0
    assert measured.row(STAGED).found_per_photo == pytest.approx(measured.eager_detections / 2, abs=1)


def test_ratios_are_of_the_medians_and_the_best_peer_is_none_of_ours(measured):
    eager, export, staged = (measured.row(id) for id in (EAGER, EXPORT, STAGED))
    assert measured.best_peer == min((eager, export), key=lambda row: row.latency.p50_ms).id
    best = measured.row(measured.best_peer)
    assert staged.over_eager == speedup(eager.latency, staged.latency)
    assert staged.over_best_peer == speedup(best.latency, staged.latency)
    assert len(staged.latency.samples_ms) == 3


def test_what_cannot_run_says_why(measured):
    assert measured.row(COMPILED) is None
    (row,) = [row for row in measured.rows if row.id == COMPILED]
    assert "no time for that" in row.reason


def test_steps_of_the_staged_form_are_told(measured):
    shares = measured.row(STAGED).shares
    assert 0 < shares.not_dense < 1
    assert {"canvas", "boxes and masks back", *shares.dense} < set(shares.steps_ms)
    assert any(name.startswith("RegionRoiAlign") for name in shares.steps_ms)
    assert measured.row(EXPORT).shares is None


def test_it_survives_json(measured):
    again = Case.from_json(json.loads(json.dumps(measured.to_json())))
    assert json.dumps(again.to_json()) == json.dumps(measured.to_json())
    assert again.row(STAGED).over_eager == measured.row(STAGED).over_eager


def test_a_candidate_that_fails_leaves_the_others(module, tmp_path, monkeypatch):
    def broken(path, threads):
        raise OSError("/somewhere/else/libengine.so: cannot open")

    monkeypatch.setattr(peer_case, "in_onnxruntime", broken)
    monkeypatch.setattr(peer_case, "export_as_torchvision", lambda *_: None)
    case = Case("tiny", "tiny", SIZE, False)
    case = measure_case(module, LABELS, photos(1), options(EXPORT), case=case, scratch=tmp_path)
    assert case.row(EAGER).latency.p50_ms > 0
    (failed,) = [row for row in case.rows if row.id == EXPORT]
    assert failed.latency is None
    assert failed.reason == "OSError: …/libengine.so: cannot open"
    assert case.best_peer == EAGER


def test_photos_of_two_sizes_are_refused(module, tmp_path):
    two = [np.zeros((96, 128, 3), np.uint8), np.zeros((64, 64, 3), np.uint8)]
    with pytest.raises(ValueError, match="one size"):
        measure_case(module, LABELS, two, options(), case=Case("", "", SIZE, False), scratch=tmp_path)


def found(*rows: tuple[float, float, float, float, int]) -> Detections:
    boxes = np.array([row[:4] for row in rows], np.float32).reshape(-1, 4)
    labels = np.array([row[4] for row in rows], np.int32)
    return Detections(boxes, np.linspace(0.9, 0.5, len(rows)).astype(np.float32), labels, (200, 200), LABELS)


@pytest.mark.parametrize(
    ("other", "share"),
    [
        (found((0, 0, 100, 100, 1), (120, 120, 180, 180, 2)), 1.0),
        (found((0, 0, 100, 100, 2), (120, 120, 180, 180, 2)), 0.5),  # another label
        (found((0, 0, 100, 89, 1), (120, 120, 180, 180, 2)), 0.5),  # IoU 0.89
        (found((0, 0, 100, 91, 1), (120, 120, 180, 180, 2)), 1.0),  # IoU 0.91
        (found(), 0.0),
    ],
)
def test_share_matched(other, share):
    assert share_matched([found((0, 0, 100, 100, 1), (120, 120, 180, 180, 2))], [other]) == share


def test_a_detection_is_a_partner_once():
    twice = found((0, 0, 100, 100, 1), (0, 0, 100, 99, 1))
    assert share_matched([twice], [found((0, 0, 100, 100, 1))]) == 0.5


def test_the_canvas_is_the_smallest_that_holds_the_photo(module):
    canvas = canvas_for(module, SIZE)
    assert (canvas.height, canvas.width) == SIZE


def test_calibrated_weights_find_things_with_spread_scores():
    torch.manual_seed(1)
    net = build_model(
        "torchvision/fasterrcnn_mobilenet_v3_large_320_fpn", {"min_size": 128, "max_size": 160}, peer_case.LABELS
    )
    images = [torch.rand(3, 8, 10, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)]
    images = [torch.nn.functional.interpolate(image[None], (128, 160), mode="bilinear")[0] for image in images]
    calibrate(net, images, pairs=60)
    with torch.no_grad():
        before = net(images)
        after = freeze_norms(net)(images)
    assert not [layer for layer in net.modules() if isinstance(layer, torch.nn.BatchNorm2d)]
    for a, b in zip(before, after, strict=True):
        assert 5 <= len(a["scores"]) <= 100
        assert a["scores"].unique().numel() == len(a["scores"])
        assert a["scores"].max() > 2 * a["scores"].min()
        torch.testing.assert_close(a["scores"], b["scores"], atol=1e-3, rtol=0)
