"""The staged form at work: the same detections as the whole graph, from any thread, whatever library is missing."""

from __future__ import annotations

import json
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from tiny_detectors import LABELS, NOTHING, photos

import regionrt.runtime as rt
from regionrt.export import ExportOptions, export_bundle, verify
from regionrt.runtime import native
from regionrt.runtime.backends import openvino as openvino_backend
from regionrt.runtime.backends import staged_buckets
from regionrt.runtime.backends.staged import Rows, StagedRunner
from regionrt.runtime.backends.staged_buckets import chunks_of
from regionrt.runtime.bundle import Manifest
from regionrt.runtime.loading import runner_for
from regionrt.runtime.machine import status_bytes

ENGINES = ["onnxruntime", "openvino", "ncnn"]
IMAGES = [*photos([(120, 70), (64, 96), (90, 90), (61, 37)], seed=5), NOTHING]


def runner_of(exported, backend: str) -> StagedRunner:
    manifest = Manifest.read(exported.bundle)
    (artifact,) = [a for a in manifest.artifacts if a.form == "staged" and a.backend == backend]
    runner = runner_for(manifest, artifact, threads=1)
    assert isinstance(runner, StagedRunner)
    return runner


def placed(exported, count: int):
    images, sizes, _ = exported.canvas.place([photo for _, photo in IMAGES[:count]])
    return images, sizes


@pytest.mark.parametrize("backend", ENGINES)
@pytest.mark.parametrize("count", [1, 3, 5])
def test_the_same_as_the_whole_graph(exported, backend, count):
    manifest = Manifest.read(exported.bundle)
    (whole,) = [a for a in manifest.artifacts if a.form == "native"]
    images, sizes = placed(exported, count)
    wanted, found = (r.run(images, sizes) for r in (runner_for(manifest, whole), runner_of(exported, backend)))
    assert set(found) == set(wanted)
    for name, value in wanted.items():
        assert (found[name].shape, found[name].dtype) == (value.shape, value.dtype)
        if value.dtype == np.int32:
            np.testing.assert_array_equal(found[name], value)
        else:
            np.testing.assert_allclose(found[name], value, atol=1e-3 if name == "boxes" else 1e-5, rtol=0)


@pytest.mark.parametrize("backend", ENGINES)
def test_nothing_found_is_a_count_of_zero(dynamic, backend):
    images, sizes, _ = dynamic.canvas.place([NOTHING[1]])
    found = runner_of(dynamic, backend).run(images, sizes)
    assert found["num_detections"].tolist() == [0]
    assert (found["scores"] == -1).all()
    assert (found["masks"] == 0).all()
    assert found["masks"].shape[0] == 1


@pytest.mark.parametrize("backend", ENGINES)
@pytest.mark.usefixtures("every_core")
def test_eight_threads_give_the_bytes_of_one(dynamic, backend):
    runner = runner_of(dynamic, backend)
    inputs = [placed(dynamic, 1 + number % 4) for number in range(24)]
    alone = [runner.run(*arrays) for arrays in inputs]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda arrays: runner.run(*arrays), inputs))
    for one, other in zip(alone, together, strict=True):
        for name in one:
            assert one[name].tobytes() == other[name].tobytes()


def test_results_belong_to_the_caller(dynamic):
    """A worker's memory is used again: what was returned must not change with the next request."""
    runner = runner_of(dynamic, "openvino")
    first = runner.run(*placed(dynamic, 2))
    kept = {name: value.copy() for name, value in first.items()}
    runner.run(*placed(dynamic, 4))
    for name, value in kept.items():
        np.testing.assert_array_equal(first[name], value)


def test_without_the_compiled_ops_numpy_computes_the_same(fixed):
    runner = runner_of(fixed, "onnxruntime")
    arrays = placed(fixed, 2)
    wanted = runner.run(*arrays)
    with native.using("numpy"):
        found = runner.run(*arrays)
    np.testing.assert_array_equal(found["labels"], wanted["labels"])
    np.testing.assert_allclose(found["boxes"], wanted["boxes"], atol=1e-3)


def test_where_numpy_computes_the_ops_a_whole_graph_goes_first(fixed):
    with rt.load(fixed.bundle) as predict:
        assert predict.about["form"] == "staged"
    with native.using("numpy"), rt.load(fixed.bundle) as predict:
        assert predict.about["form"] == "native"
    with native.using("numpy"), rt.load(fixed.bundle, form="staged") as predict:
        assert predict.about["form"] == "staged"


@pytest.mark.parametrize("backend", ENGINES)
def test_a_closed_runner_says_so(fixed, backend):
    runner = runner_of(fixed, backend)
    runner.close()
    runner.close()
    with pytest.raises(rt.BackendError, match="closed"):
        runner.run(*placed(fixed, 1))


def test_the_profile_names_every_step(dynamic):
    runner, request = runner_of(dynamic, "onnxruntime"), placed(dynamic, 1)
    outputs, spent = runner.profile(*request)
    assert list(spent) == ["dense_0", "RegionProposals_1", "RegionRoiAlign_2", "dense_1", "RegionDetections_4",
                           "RegionRoiAlign_5", "dense_2"]  # fmt: skip
    assert all(seconds > 0 for seconds in spent.values())
    expected = runner.run(*request)
    assert outputs.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(outputs[name], value)


def skip_without_bf16() -> None:
    openvino = pytest.importorskip("openvino")
    if "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this CPU has no bf16")


def test_bf16_is_verified_and_says_what_it_is(tmp_path, dynamic):
    skip_without_bf16()
    options = ExportOptions(size=dynamic.options.size, precision="bf16")
    export_bundle(dynamic.module, tmp_path / "bundle", options, labels=LABELS)
    predict = rt.load(tmp_path / "bundle")
    assert (predict.about["backend"], predict.about["precision"]) == ("openvino", "bf16")
    (verdict,) = verify(tmp_path / "bundle", dynamic.module, IMAGES)
    assert verdict.passed, verdict.first_difference
    worst = max(check.error for check in verdict.checks if check.value.startswith("features"))
    assert 1e-4 < worst < 0.1, "8 bits, and not 24"


def test_a_cpu_without_bf16_is_an_error_and_not_another_precision(tmp_path, fixed, instant, monkeypatch):
    openvino = pytest.importorskip("openvino")
    export_bundle(fixed.module, tmp_path / "b", ExportOptions(size=(64, 96), precision="bf16"), labels=LABELS)

    class Old(openvino.Core):
        def get_property(self, device, name):
            return ["FP32"] if name == "OPTIMIZATION_CAPABILITIES" else super().get_property(device, name)

    monkeypatch.setattr(openvino_backend, "_library", lambda: _with_core(openvino, Old))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(rt.BackendError, match=r"this CPU does not compute in bf16.*export with fp32"):
            rt.load(tmp_path / "b")


def _with_core(library, core):
    class Library:
        Core = core

        def __getattr__(self, name):
            return getattr(library, name)

    return Library()


def test_layers_in_another_precision_than_asked_for_are_refused(fixed, monkeypatch):
    """OpenVINO takes its precision as a hint: what it made of it is looked at."""
    skip_without_bf16()
    real = openvino_backend.cpu_config
    hint = {"INFERENCE_PRECISION_HINT": "bf16"}
    monkeypatch.setattr(
        openvino_backend, "cpu_config", lambda core, precision, threads: real(core, "fp32", threads) | hint
    )
    with pytest.raises(rt.BackendError, match=r"^openvino: layers in f32 were asked for, \d+ in bf16 were compiled"):
        runner_of(fixed, "openvino")


def manifest_with(bundle, change) -> None:
    path = bundle / "manifest.json"
    data = json.loads(path.read_text())
    data["artifacts"] = [a for a in data["artifacts"] if (a["form"], a["backend"]) == ("staged", "onnxruntime")]
    change(data["artifacts"][0])
    path.write_text(json.dumps(data))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda a: a["ops_between"][0].update(op="RegionTelepathy"), "knows no op 'RegionTelepathy'"),
        (lambda a: a["ops_between"].pop(1), "nothing gives .*roi_features"),
        (lambda a: a["stages"][0].update(file="/etc/passwd"), "none of the artefact's files"),
        (lambda a: a["stages"][0].pop("slots"), "expected slots of each stage"),
        (lambda a: a["ops_between"][0].update(inputs="all"), "RegionProposals is not whole"),
    ],
)
def test_a_manifest_that_describes_no_road_from_photo_to_boxes(fixed, copy_of, change, words):
    bundle = copy_of(fixed)
    manifest_with(bundle, change)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises((rt.BundleError, rt.BackendError), match=words):
            rt.load(bundle)


def test_a_stage_file_changed_on_disk(fixed, copy_of):
    bundle = copy_of(fixed)
    path = bundle / "staged-dense_1.onnx"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(rt.BundleError, match=r"staged-dense_1\.onnx: changed since the export"):
        rt.load(bundle, backend="onnxruntime", form="staged")


@pytest.mark.parametrize(
    ("row", "slots", "rows", "chunks"),
    [
        ([256, 7, 7], 1000, 1, [32]),
        ([256, 7, 7], 1000, 33, [64]),
        ([256, 7, 7], 1000, 249, [256]),
        ([256, 7, 7], 1000, 300, [256, 128]),
        ([256, 7, 7], 1000, 630, [256, 256, 128]),
        ([256, 7, 7], 1000, 1000, [256, 256, 256, 256]),
        ([256, 7, 7], 1000, 2000, [256] * 8),  # of two images
        ([256, 7, 7], 150, 150, [150]),
        ([256, 7, 7], 300, 300, [152, 152]),
        ([256, 7, 7], 20, 3, [20]),
        ([256, 7, 7], 10, 80, [96]),  # of eight images
        ([256, 7, 7], 150, 450, [150, 150, 150]),
        ([14, 14, 256], 4, 32, [32]),
        ([14, 14, 256], 100, 3, [8]),
        ([14, 14, 256], 100, 66, [25, 25, 16]),
        ([14, 14, 256], 100, 100, [25, 25, 25, 25]),
    ],
)
def test_rows_go_in_chunks_of_few_sizes(row, slots, rows, chunks):
    shapes = {"labels": [None, 1], "features": [None, *row]}
    last = ["features"] if row[-1] == 256 else []
    stage = {"slots": slots, "inputs": ["labels", "features"], "shapes": shapes, "channels_last": last}
    assert chunks_of(stage, rows) == chunks


def test_large_rows_that_no_convolution_reads_go_together():
    """A mask head of fully connected layers reads its weights once for all of them."""
    stage = {"slots": 100, "inputs": ["x"], "shapes": {"x": [None, 256, 14, 14]}, "channels_last": []}
    assert chunks_of(stage, 100) == [100]


def test_many_rows_go_in_chunks(fixed, monkeypatch):
    """More rows than go at once: the same as all at once."""
    wanted = runner_of(fixed, "openvino").run(*placed(fixed, 4))
    monkeypatch.setattr(staged_buckets, "_SMALL", staged_buckets._Sizes(step=8, most=16, lanes=8))
    runner, seen = runner_of(fixed, "openvino"), []
    session = runner._stages["dense_1"].session()
    run = session.run
    monkeypatch.setattr(session, "run", lambda feeds: seen.append(len(feeds["roi_features"])) or run(feeds))
    monkeypatch.setattr(runner._stages["dense_1"], "session", lambda: session)
    found = runner.run(*placed(fixed, 4))
    assert max(seen) <= 16
    assert len(seen) > 2
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, atol=1e-4)


def test_packed_rows_find_back_to_their_images():
    rows = Rows(np.arange(10, 16)[:, None], np.array([2, 0, 4], np.int32))
    assert [rows.of(image).ravel().tolist() for image in range(3)] == [[10, 11], [], [12, 13, 14, 15]]
    assert rows.padded(5)[2].ravel().tolist() == [12, 13, 14, 15, 0]


@pytest.mark.skipif(status_bytes("VmRSS") is None, reason="this system does not tell how much memory is in use")
@pytest.mark.parametrize("backend", ENGINES)
def test_memory_does_not_grow_with_requests(dynamic, backend):
    """Of all shapes and counts that come; a leak of one set of feature maps per request would be 60 MiB."""
    runner = runner_of(dynamic, backend)
    inputs = [placed(dynamic, 1 + number) for number in range(4)]
    for number in range(200):
        runner.run(*inputs[number % 4])
    before = status_bytes("VmRSS")
    for number in range(1000):
        runner.run(*inputs[number % 4])
    assert status_bytes("VmRSS") - before < 8 * 2**20
