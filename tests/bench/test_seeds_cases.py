"""The seeds measured in small: R-CNN and Fast R-CNN by PyTorch and as artefacts, and a step of their training."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from regionrt.bench.baseline import torch_baseline
from regionrt.bench.latency import speedup
from regionrt.bench.suites import seeds_compare, seeds_training
from regionrt.bench.suites.seeds_inputs import seed_inputs
from regionrt.bench.suites.seeds_measure import in_batches
from regionrt.bench.suites.seeds_nets import LABELS, placed, seed_net
from regionrt.bench.suites.seeds_options import CaseOptions
from regionrt.bench.suites.seeds_overfeat import _WindowBatches, cut_windows, measure_overfeat, overfeat_net
from regionrt.bench.suites.seeds_requests import measure_requests
from regionrt.bench.suites.seeds_schema import SeedRow
from regionrt.bench.suites.seeds_training import measure_training
from regionrt.runtime.errors import BackendError
from regionrt.train.models.dense import normalised
from regionrt.train.tasks import task_of

PROPOSALS = 40
ORT, TORCH_BF16, OV_BF16 = "onnxruntime-fp32", "torch-bf16", "openvino-bf16"


def options(**changes) -> CaseOptions:
    values = {
        "backbone": "squeezenet1_1", "size": (90, 120), "proposals": PROPOSALS, "representation": 64, "regions": 4,
        "crop": 64, "rows": (ORT, OV_BF16), "nets": ("rcnn", "fast_rcnn_svd"), "seconds": 0.0, "least_rounds": 2,
        "whole_seconds": 0.0, "part_seconds": 0.0, "crop_batches": (2, 4), "training_batches": (4,),
        "profile_rounds": 1,
    }  # fmt: skip
    return CaseOptions(**(values | changes))


@pytest.fixture(scope="module")
def inputs():
    torch.set_num_threads(1)
    return seed_inputs([], (90, 120), 2, PROPOSALS, seed=0)


@pytest.fixture(scope="module")
def measured(inputs):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(seeds_compare, "OpenVinoStages", _no_bf16)
        found = measure_requests(inputs.photos, inputs.proposals, options(), lambda text: None)
    return {one.key: one for one in found}


def _no_bf16(precision: str, threads: int) -> None:
    raise BackendError("this CPU does not compute in bf16")


def test_artefacts_find_what_pytorch_finds(measured):
    for key, one in measured.items():
        (ours,) = [row for row in one.rows if row.id == ORT]
        assert ours.matched == 1.0, key
        assert len(ours.latency.samples_ms) == 2


def test_what_takes_too_long_is_measured_in_parts(measured):
    base = measured["fast_rcnn_svd"].base
    size = int(base.measured.split()[2])
    assert size in (2, 4)
    assert base.factor == PROPOSALS / size
    ours = measured["rcnn"].rows[0]
    assert (ours.factor, ours.measured) == (PROPOSALS / 32, f"requests with 32 of {PROPOSALS} proposals")
    assert not any(row.extrapolated for row in measured["fast_rcnn_svd"].rows)


@pytest.mark.parametrize(
    ("seconds", "least", "calls", "factor"), [(0.5, 10.0, 5, 5.0), (9.0, 10.0, 1, 25.0), (0.001, 10.0, 25, 1.0)]
)
def test_a_part_lasts_long_enough_for_its_first_batch_not_to_matter(seconds, least, calls, factor):
    made, row = [], SeedRow("windows", "windows", ours=False)
    candidate = in_batches(row, lambda: made.append(1), 4, (100, "windows"), seconds, least)
    candidate.call()
    assert (len(made), row.factor) == (calls, factor)
    assert row.measured.endswith("batches of 4 of 100 windows" if calls == 1 else "one after the other")


def test_ratios_are_of_the_medians_in_the_same_run(measured):
    one = measured["fast_rcnn_svd"]
    assert one.base is not measured["rcnn"].base
    for row in (row for row in one.rows if row.latency is not None):
        assert row.over_base == speedup(one.base.latency, row.latency)
    assert one.best(ours=True).id == ORT


def test_a_row_that_cannot_run_says_why(measured):
    (bf16,) = [row for row in measured["fast_rcnn_svd"].rows if row.id == OV_BF16]
    assert bf16.latency is None
    assert "does not compute in bf16" in bf16.reason


def test_steps_of_a_request_are_told(measured):
    shares = measured["fast_rcnn_svd"].best(ours=True).shares
    assert any(name.startswith("RegionRoiPool") for name in shares.steps_ms)
    assert len(shares.dense) == 2


def test_what_takes_little_is_measured_whole_and_bf16_has_its_own_row(inputs, monkeypatch):
    monkeypatch.setattr(seeds_compare, "OpenVinoStages", lambda precision, threads: None)
    given = options(nets=("rcnn",), rows=(TORCH_BF16,), whole_seconds=60.0, profile_rounds=0, proposals=6)
    (one,) = measure_requests(inputs.photos, [boxes[:6] for boxes in inputs.proposals], given, lambda text: None)
    assert (one.base.factor, one.base.measured) == (1.0, "whole")
    (bf16,) = one.rows
    assert bf16.latency is not None
    assert not bf16.ours


def test_the_windows_are_exactly_those_of_the_dense_form(inputs):
    module = overfeat_net(options(), inputs.photos[0])
    logits, edges = _WindowBatches(module, cut_windows(module, inputs.photos[0]), 16).all()
    with torch.no_grad():
        dense = module(normalised(module, *placed(module, inputs.photos[0])))
    assert len(logits) == len(module.layout(module.config.size).windows)
    torch.testing.assert_close(logits, dense[0][0], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(edges, dense[1][0], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("whole_seconds", [0.0, 60.0], ids=["in parts", "whole"])
def test_overfeats_dense_form_beside_its_windows(inputs, whole_seconds, monkeypatch):
    """PyTorch stands for the artefact: that this equals it is for tests/export to show, in more time than there is."""
    monkeypatch.setattr(
        seeds_compare,
        "_open",
        lambda id, module, *_: torch_baseline(module, canvas=task_of(module).canvas_of(module), labels=LABELS),
    )
    given = options(rows=(ORT,), whole_seconds=whole_seconds, profile_rounds=0)
    (one,) = measure_overfeat(inputs.photos, inputs.proposals, given, lambda text: None)
    windows = int(one.notes[0].split(" net, ")[1].split()[0])
    size = int(one.base.name.split()[-3])
    assert one.base.factor == (1.0 if whole_seconds else windows / size)
    for row in one.rows:
        assert row.over_base == speedup(one.base.latency, row.latency)
    assert one.rows[1].matched == 1.0
    assert not one.notes[1].startswith("0 detections")


def test_random_weights_keep_the_spread_of_activations(inputs):
    module = seed_net("sppnet", options(), inputs.photos[0], inputs.proposals[0])
    spreads = []
    for layer in module.backbone.modules():
        if isinstance(layer, torch.nn.Conv2d):
            layer.register_forward_hook(lambda _, given, out: spreads.append(float(out.std())))
    with torch.no_grad():
        module.features(normalised(module, *placed(module, inputs.photos[0])))
    np.testing.assert_allclose(spreads, 1.0, rtol=1e-3)


@pytest.mark.parametrize("whole_seconds", [0.0, 60.0], ids=["in parts", "whole"])
def test_a_training_step_has_equally_many_regions(inputs, whole_seconds):
    given = options(whole_seconds=whole_seconds)
    whole, one = measure_training(inputs.photos, inputs.proposals, given, lambda text: None)
    assert whole.judged == one.judged == "all"
    assert whole.asked == one.asked == 9.0
    for photo, step in zip(whole.base.latency.samples_ms, one.base.latency.samples_ms, strict=True):
        assert photo > 8 * step  # by the features
    expected = [8 * step for step in one.rows[0].latency.samples_ms]
    assert whole.rows[0].latency.samples_ms == pytest.approx(expected, abs=0.01)
    assert one.rows[0].over_base == speedup(one.base.latency, one.rows[0].latency)
    assert "8 regions on either side" in one.notes[0]
    assert one.base.factor == (2.0 if whole_seconds == 0 else 1.0)  # 8 crops, 4 at once


def test_no_more_crops_at_once_than_a_photo_has_proposals(inputs, monkeypatch):
    monkeypatch.setattr(seeds_training._FastRcnnStep, "_count", lambda self, *_: setattr(self, "regions", 8))
    few = [boxes[:3] for boxes in inputs.proposals]
    _, one = measure_training(inputs.photos, few, options(proposals=3, training_batches=(16,)), lambda text: None)
    assert (one.base.measured, one.base.factor) == ("batches of 3 of 8 crops and an update", 8 / 3)


def test_gradients_of_parts_add_up_to_those_of_the_step(inputs):
    """Crops through the net some at a time learn what they would all at once."""
    module = seed_net("rcnn", options(), inputs.photos[0], inputs.proposals[0])
    pairs = [(inputs.photos[0], inputs.proposals[0])]
    for layer in module.modules():
        if isinstance(layer, torch.nn.Dropout):
            layer.p = 0.0
    found = []
    for size in (2, 4):
        module.zero_grad()
        batch = seeds_training._CropBatches(module, pairs, size, 4)
        batch._labels.zero_()
        for _ in range(4 // size):
            batch()
        found.append(module.head.fc6.weight.grad.clone())
    assert found[0].abs().max() > 0
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-6)


def test_what_is_frozen_does_not_learn_and_what_is_not_does(inputs):
    module = seed_net("fast_rcnn", options(), inputs.photos[0], inputs.proposals[0])
    before = {name: value.clone() for name, value in module.state_dict().items()}
    step = seeds_training._FastRcnnStep(module, [(inputs.photos[0], inputs.proposals[0])] * 2, seed=0)
    step()
    assert step.regions == 8
    after = module.state_dict()
    assert torch.equal(after["backbone.body.0.weight"], before["backbone.body.0.weight"])
    assert not torch.equal(after["head.fc6.weight"], before["head.fc6.weight"])
