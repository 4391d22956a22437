"""The whole bench on a bundle whose answers are known, beside a tiny PyTorch net with the same labels."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from fake_detector import LABELS, fake_artifact, fake_manifest, photo_with, write_fake_bundle, write_manifest
from PIL import Image

from regionrt.bench.errors import BenchError
from regionrt.bench.latency import speedup
from regionrt.bench.report import BenchOptions, bench, render
from regionrt.bench.schema import read_report
from regionrt.runtime.errors import BundleError
from regionrt.train.checkpoint import Checkpoint, write_checkpoint
from regionrt.train.data import DataError
from regionrt.train.models import build_model

BOXES = {"red": (10, 12, 50, 60), "green": (60, 20, 100, 80), "blue": (20, 50, 90, 90)}
QUICK = BenchOptions(
    threads=1,
    seconds=0.0,
    least_rounds=3,
    batch=1,
    photos=3,
    resamples=500,
    compile_seconds=0,
    best_torch=False,
    torchvision=False,
    fresh=False,
    pictures=2,
)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("bench")


@pytest.fixture(scope="module")
def bundle(root) -> Path:
    return write_fake_bundle(root / "fake", model="faster_rcnn")


@pytest.fixture(scope="module")
def data(root) -> Path:
    """Four photos in the COCO layout; photo i shows the first i colours, so the first shows nothing."""
    folder = root / "colours"
    (folder / "test2017").mkdir(parents=True)
    (folder / "annotations").mkdir()
    images, annotations = [], []
    for i in range(4):
        shown = dict(list(BOXES.items())[:i])
        Image.fromarray(photo_with(96, 128, **shown)).save(folder / "test2017" / f"{i}.png")
        images.append({"id": i + 1, "file_name": f"{i}.png", "height": 96, "width": 128})
        for label, (x0, y0, x1, y1) in enumerate(shown.values(), start=1):
            box = [x0, y0, x1 - x0, y1 - y0]
            entry = {"id": len(annotations) + 1, "image_id": i + 1, "category_id": label, "bbox": box, "iscrowd": 0}
            annotations.append(entry | {"area": box[2] * box[3]})
    categories = [{"id": label, "name": name} for label, name in enumerate(LABELS) if label]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations" / "instances_test2017.json").write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="module")
def checkpoint(root) -> Path:
    torch.manual_seed(0)
    config = {"backbone": "squeezenet1_1", "size": [96, 128], "representation": 16, "proposals": 20}
    module = build_model("faster_rcnn", config, LABELS)
    path = root / "tiny.pt"
    write_checkpoint(path, Checkpoint("faster_rcnn", config, LABELS, module.state_dict()))
    return path


@pytest.fixture(scope="module")
def report(bundle, checkpoint, data):
    return bench([bundle], checkpoint, data, replace(QUICK, torchvision=True, max_drop=0.5))


def test_rows_and_their_accuracy(report):
    assert [row.id for row in report.candidates] == ["torch-eager", "torch-torchvision", "fake/onnxruntime-native-fp32"]
    eager, torchvision, fake = report.candidates
    assert fake.accuracy.metrics["AP"] == pytest.approx(1.0)  # it finds exactly what was painted
    assert {name: values["AP"] for name, values in fake.accuracy.per_class.items()} == pytest.approx(
        {"red": 1.0, "green": 1.0, "blue": 1.0}
    )
    (difference,) = fake.accuracy.differences
    assert difference.points == pytest.approx(100 * (1 - eager.accuracy.metrics["AP"]))
    assert eager.accuracy.differences == ()
    assert torchvision.accuracy.metrics["AP"] == pytest.approx(eager.accuracy.metrics["AP"], abs=0.05)
    assert (report.data.name, report.data.split, report.data.images, report.data.objects) == ("colours", "test", 4, 6)


def test_latency_and_headline(report):
    eager, torchvision, fake = report.candidates
    assert report.baseline == eager.id
    assert report.chosen == fake.id
    assert all(len(row.latency.samples_ms) == 3 for row in report.candidates)
    assert fake.speedup_over_eager == speedup(eager.latency, fake.latency)
    assert fake.speedup_over_eager.ratio > 1  # a dozen tiny nodes against a convolutional net
    assert eager.speedup_over_eager is None
    assert torchvision.speedup_over_eager is not None
    for row in report.candidates:
        assert sum(row.latency.stages_ms.values()) == pytest.approx(row.latency.mean_ms)


def test_pictures_show_reference_and_artefact(report):
    assert len(report.pictures) == 2
    for picture in report.pictures:
        assert [panel.candidate for panel in picture.panels] == ["torch-eager", "fake/onnxruntime-native-fp32"]
    counts = {picture.image: picture.panels[1].detections for picture in report.pictures}
    assert all(count == int(Path(name).stem) for name, count in counts.items())  # photo i shows i things


def test_it_renders_and_names_no_folder_that_was_not_given(report, root, bundle, data, checkpoint, tmp_path):
    files = render(report, tmp_path)
    assert read_report(files[0]) == report
    text = "".join(path.read_text() for path in files)
    for given in (bundle, data, checkpoint):
        text = text.replace(str(given), "")
    assert str(root) not in text
    assert str(Path(__file__).parents[2]) not in text
    assert Path("/proc/sys/kernel/hostname").read_text().strip() not in text.split()
    assert report.commands[0].startswith("regionrt bench ")
    assert "--data" in report.commands[0]


def test_without_data_latency_only(bundle, checkpoint):
    found = bench([bundle], checkpoint, None, replace(QUICK, photos=2))
    assert found.accuracy_note == "Accuracy was not measured: no data was given."
    assert found.data is None
    assert all(row.accuracy is None and row.latency is not None for row in found.candidates)
    assert "made on the fly" in found.latency_images


def test_bundle_alone_on_photos_that_were_given(bundle, tmp_path):
    path = tmp_path / "mine.png"
    Image.fromarray(photo_with(96, 128, red=(10, 10, 60, 60))).save(path)
    found = bench([bundle], options=replace(QUICK, images=(str(path),)))
    (row,) = found.candidates
    assert found.baseline is None
    assert row.speedup_over_eager is None
    assert row.latency.detections_per_image == 1.0
    assert found.pictures[0].image == "mine.png"


def test_an_engine_that_cannot_run_here_has_its_row(bundle, tmp_path):
    copy = Path(shutil.copytree(bundle, tmp_path / "with_engine"))
    (copy / "engines").mkdir()
    (copy / "engines" / "a.engine").write_bytes(b"x" * 1000)
    engine = {"flavour": "tensorrt-rtx", "version": "1.7", "compute_capabilities": ["8.6"], "build_seconds": 4.5}
    engine["layer_types"] = {"conv": {"fp16": 26}}
    manifest = fake_manifest(copy)
    manifest["artifacts"].insert(0, fake_artifact("tensorrt-rtx", "portable", ["engines/a.engine"], engine=engine))
    manifest["artifacts"].append(fake_artifact("tensorrt-rtx", "portable", ["native.onnx"]))  # what it was built from
    write_manifest(copy, manifest)
    found = bench([copy], options=replace(QUICK, photos=1))
    engine_row, fake = found.candidates
    assert engine_row.status == "not run"
    assert engine_row.reason.startswith("built, not run here: ")
    assert engine_row.latency is None
    assert (engine_row.footprint.size_bytes, engine_row.footprint.build_s) == (1000, 4.5)
    assert any("26 × fp16" in note for note in engine_row.notes)
    assert found.chosen == fake.id


def test_fresh_process_measures_load_and_memory_without_torch(bundle):
    found = bench([bundle], options=replace(QUICK, fresh=True, photos=1))
    foot = found.candidates[0].footprint
    assert 0 < foot.load_s < foot.first_request_s < 120
    assert 20e6 < foot.peak_memory_bytes < 200e6  # numpy and ONNX Runtime; torch alone would take more
    assert "fresh process" in foot.how
    assert foot.size_bytes == sum((bundle / name).stat().st_size for name in ("native.onnx", "weights.bin"))


def test_a_process_that_fails_is_a_finding(bundle, tmp_path):
    from regionrt.bench.fresh import measure_fresh

    job = {"kind": "bundle", "path": str(tmp_path / "gone"), "threads": 1}
    job |= {"backend": "onnxruntime", "form": "native", "precision": "fp32"}
    found = measure_fresh(job, [np.zeros((8, 8, 3), np.uint8)], timeout_s=60)
    assert found.keys() == {"failed"}
    assert "expected a bundle" in found["failed"]
    assert str(tmp_path.parent) not in found["failed"]
    slow = measure_fresh(job | {"path": str(bundle)}, [np.zeros((8, 8, 3), np.uint8)], timeout_s=0.01)
    assert "not done within" in slow["failed"]


def test_labels_and_tasks_must_agree(bundle, checkpoint, tmp_path):
    other = Path(shutil.copytree(bundle, tmp_path / "other"))
    (other / "labels.txt").write_text("__background__\nred\ngreen\npurple\n")
    write_manifest(other, fake_manifest(other))
    with pytest.raises(BenchError, match=r"same labels.*purple"):
        bench([bundle, other])
    with pytest.raises(BenchError, match=r"same labels.*purple"):
        bench([other], checkpoint)
    masks = write_fake_bundle(tmp_path / "masks", masks=True)
    with pytest.raises(BenchError, match="same task"):
        bench([bundle, masks])


def test_bad_input(bundle, data, tmp_path):
    with pytest.raises(BenchError, match="nothing to measure"):
        bench([])
    with pytest.raises(BundleError, match="expected a bundle"):
        bench([tmp_path / "none"])
    with pytest.raises(DataError):
        bench([bundle], data=tmp_path)
    with pytest.raises(DataError):
        bench([bundle], data=data, options=replace(QUICK, split="nothing"))
    for change in ({"resamples": 10}, {"photos": 0}, {"score": 1.5}, {"max_drop": -1.0}, {"batch": 0}):
        with pytest.raises(ValueError, match=next(iter(change))):
            BenchOptions(**change)


def test_two_bundles_and_what_a_reader_must_know(bundle, checkpoint, tmp_path):
    other = Path(shutil.copytree(bundle, tmp_path / "other"))
    changed = fake_manifest(other, checkpoint_sha256="0" * 64)
    changed["thresholds"]["score"] = 0.3
    write_manifest(other, changed)
    found = bench([bundle, other], checkpoint, None, replace(QUICK, photos=1))
    assert [row.name for row in found.candidates[1:]] == [
        "fake: ONNX Runtime native fp32",
        "other: ONNX Runtime native fp32",
    ]
    notes = " ".join(found.notes)
    assert "other was made from another checkpoint" in notes
    assert "other was exported with other thresholds than the baseline has: score" in notes


def test_masks_are_pasted_and_the_verdict_is_shown(tmp_path):
    masks = write_fake_bundle(tmp_path / "masks", masks=True)
    stage = {
        "stage": "proposals",
        "unit": "rpn",
        "max_abs_error": 0.5,
        "limit": 1e-4,
        "passed": False,
        "image": "a.jpg",
    }
    found = bench([masks], options=replace(QUICK, photos=1, pictures=1), verification=[stage])
    assert found.task == "instance-segmentation"
    assert found.verification[0].first_difference == "proposals"
    assert "first at proposals" in render(found, tmp_path / "out")[1].read_text()
    with pytest.raises(BenchError, match="max_abs_error"):
        bench([masks], options=QUICK, verification=[{"stage": "rois"}])


def test_progress_never_goes_back(bundle, data):
    told: list[tuple[str, float]] = []
    bench([bundle], data=data, options=QUICK, progress=lambda text, share: told.append((text, share)))
    shares = [share for _, share in told]
    assert shares == sorted(shares)
    assert (shares[0], shares[-1]) == (0.0, 1.0)
    assert all(text and math.isfinite(share) for text, share in told)
