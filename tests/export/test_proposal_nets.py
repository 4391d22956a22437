"""Nets on proposals as bundles: every form equals eager, with any number of proposals, on every CPU backend."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from block_photos import photos
from staged_on_gpu import Machine
from tiny_proposal_nets import LABELS, boxes_in, instead_of_searching, tiny

import regionrt.runtime as rt
from regionrt.export import ExportOptions, export_bundle
from regionrt.export.compress.checkpoint import CompressOptions, compress_checkpoint
from regionrt.export.units import units_of
from regionrt.export.verify import verify
from regionrt.runtime.bundle import Manifest
from regionrt.runtime.errors import BackendError
from regionrt.runtime.loading import runner_for
from regionrt.train.checkpoint import Checkpoint, module_from_checkpoint
from regionrt.train.models.proposal_net import eager
from regionrt.train.torch_runner import torch_predictor

NETS = {
    "fast_rcnn": {},
    "sppnet": {"pyramid": [3, 2, 1]},
    "rcnn": {"crop": 64, "context": 4, "proposals": 12, "channels": 16},
    "sppnet at scales": {"pyramid": [3, 2, 1], "scales": [1.0, 2.0, 3.5]},
}


@dataclass(frozen=True)
class Made:
    """A module and the bundle made of it. Tests leave both as they are."""

    module: torch.nn.Module
    bundle: Path


@pytest.fixture(autouse=True)
def _no_search(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    instead_of_searching(monkeypatch)


@pytest.fixture(scope="module", params=NETS)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    module = tiny(request.param.split()[0], **NETS[request.param])
    bundle = tmp_path_factory.mktemp("net") / "bundle"  # its candidates: a fake GPU runs empty blocks too, in turn
    return Made(module, export_bundle(module, bundle, ExportOptions(candidates=80), labels=LABELS))


def test_every_form_equals_eager(made: Made) -> None:
    images = [(str(n), photo) for n, photo in enumerate(photos((60, 90), (90, 60), (40, 40)))]
    verdicts = verify(made.bundle, made.module, images, batches=(1, 3))
    assert {verdict.form for verdict in verdicts} == {"staged", "native", "portable"}
    for verdict in verdicts:
        assert verdict.first_difference is None
        assert {"features.0", "rois", "roi_features", "class_logits", "box_deltas", "boxes"} >= {
            c.value for c in verdict.checks
        }
        assert {"roi_features", "class_logits", "boxes"} <= {c.value for c in verdict.checks}
        assert verdict.agreements[0].eager >= 6


@pytest.mark.parametrize("form", ["staged", "native", "portable"])
def test_other_numbers_of_proposals_in_one_batch(made: Made, form: str) -> None:
    images, given = photos((60, 90), (64, 96), (33, 50)), [5, 0, 1]
    boxes = [boxes_in(image)[:count] for image, count in zip(images, given, strict=True)]
    with rt.load(made.bundle, form=form) as predict, torch_predictor(made.module, LABELS) as eager:
        found, wanted = predict.batch(images, boxes), eager.batch(images, boxes)
    assert sum(map(len, wanted)) > 0
    assert len(found[1]) == 0
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(one.labels, other.labels)
        np.testing.assert_allclose(one.scores, other.scores, atol=1e-5)
        np.testing.assert_allclose(one.boxes_xyxy, other.boxes_xyxy, atol=1e-2)


def test_a_bundle_says_what_it_takes(made: Made) -> None:
    manifest = Manifest.read(made.bundle)
    assert manifest.task == "detection"
    assert manifest.proposals is not None
    assert manifest.proposals.most == made.module.slots == manifest.thresholds["proposals"]
    assert manifest.search == rt.SelectiveSearch()
    assert "proposal_nms" not in manifest.thresholds
    for artifact in manifest.artifacts:
        assert [entry["name"] for entry in artifact.inputs] == ["images", "image_sizes", "proposals", "proposal_counts"]
        assert artifact.profiles[0]["proposals"]["max"] == [1, made.module.slots, 4]


@pytest.mark.parametrize("form", ["staged", "native"])
def test_a_request_without_proposals_is_refused(made: Made, form: str) -> None:
    manifest = Manifest.read(made.bundle)
    artifact = next(a for a in manifest.artifacts if a.form == form)
    runner = runner_for(manifest, artifact)
    with pytest.raises(BackendError, match="expected the inputs images, image_sizes, proposals, proposal_counts"):
        runner.run(np.zeros((1, 64, 96, 3), np.uint8), np.array([[64, 96]], np.int32))


def test_the_staged_form_pools_no_more_rows_at_once_than_a_stage_takes(made: Made, monkeypatch) -> None:
    from regionrt.runtime.backends import staged, staged_buckets

    images, seen = photos((60, 90), (64, 96)), []
    boxes = [boxes_in(image)[:10] for image in images]
    with rt.load(made.bundle, "onnxruntime", form="staged") as predict:
        whole = predict.batch(images, boxes)
        for sizes in ("_SMALL", "_LARGE"):
            monkeypatch.setattr(staged_buckets, sizes, staged_buckets._Sizes(8, 8, 1))
        some = staged.StagedRunner._some

        def watched(self, worker, step, name, value, start, stop):
            rows = some(self, worker, step, name, value, start, stop)
            seen.append((len(rows), value.number))
            return rows

        monkeypatch.setattr(staged.StagedRunner, "_some", watched)
        parts = predict.batch(images, boxes)
    assert 8 < seen[0][1] <= 20
    assert max(rows for rows, _ in seen) <= 8
    assert seen[0][1] <= sum(rows for rows, _ in seen) < seen[0][1] + 8
    for one, other in zip(parts, whole, strict=True):
        np.testing.assert_allclose(one.boxes_xyxy, other.boxes_xyxy, atol=1e-4)
        np.testing.assert_allclose(one.scores, other.scores, atol=1e-6)


def test_the_staged_form_on_a_gpu(made: Made, tmp_path: Path) -> None:
    """On the fake one, with the real kernels; the engines take what these write, pyramids level by level too."""
    machine = Machine.of(made.bundle, tmp_path, batches=(1, 2))
    given, runner = photos((60, 90), (64, 96)), machine.runner()
    images, sizes, placements = machine.manifest.canvas.place(given)
    assert machine.manifest.proposals is not None
    proposals = machine.manifest.proposals.place(given, [boxes_in(photo)[:10] for photo in given], placements)
    found = runner.run(images, sizes, **proposals)
    arrays = map(torch.from_numpy, (images, sizes, *proposals.values()))
    wanted = {name: value.numpy() for name, value in eager(made.module, *arrays).items()}
    assert wanted["num_detections"].min() > 0
    for name in ("num_detections", "labels"):
        np.testing.assert_array_equal(found[name], wanted[name])
    np.testing.assert_allclose(found["boxes"], wanted["boxes"], atol=1e-3)
    np.testing.assert_allclose(found["scores"], wanted["scores"], atol=1e-5)
    runner.close()


def test_fully_connected_layers_are_compressed_by_their_papers_names() -> None:
    config = {"size": [64, 96], "channels": 8, "representation": 24, "proposals": 20}
    module = tiny("fast_rcnn", **config)
    checkpoint = Checkpoint("fast_rcnn", {**module.config.to_json(), **config}, LABELS, module.state_dict())
    for images in (None, photos(*[(60, 90)] * 5)):
        from regionrt.export.compress.calibration import Photo

        data = None if images is None else [Photo(str(n), lambda p=p: p) for n, p in enumerate(images)]
        compressed, report = compress_checkpoint(checkpoint, CompressOptions(ranks={"fc6": 8, "fc7": 4}), data)
        assert [layer.name for layer in report] == ["head.fc6", "head.fc7"]
        again = module_from_checkpoint(compressed)
        assert again.head.fc6[0].weight.shape == (8, 8 * 49)
        assert len(torch_predictor(again, LABELS)(photos((60, 90))[0])) > 0


def test_units_of_every_form_run_alone(made: Made) -> None:
    manifest = Manifest.read(made.bundle)
    for artifact in manifest.artifacts:
        ops = [unit.op for unit in units_of(manifest, artifact) if unit.op]
        assert len(ops) == 2
        assert ops[1] == "RegionDetections"
