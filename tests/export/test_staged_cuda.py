"""The staged form on a GPU: whole detectors on the fake one, with the real kernels, against eager."""

from __future__ import annotations

import ctypes
import json
import platform
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import kernels
import numpy as np
import onnx_ir as ir
import pytest
import torch
from staged_on_gpu import Machine
from tiny_detectors import LABELS, NOTHING, photos
from torch_stages import described

import regionrt.export.bundle as bundle_module
import regionrt.runtime as rt
from regionrt.export import export_bundle
from regionrt.export.matching import match_scored
from regionrt.export.verdict import TOLERANCES
from regionrt.runtime import preflight
from regionrt.runtime.backends import cuda as cuda_module
from regionrt.runtime.backends.cuda import CudaPython
from regionrt.runtime.backends.staged_steps import read_constants
from regionrt.runtime.bundle import Manifest, sha256_of
from regionrt.runtime.errors import BackendError
from regionrt.runtime.gpu import kernels as kernels_module
from regionrt.train.models.region import eager

IMAGES = [*photos([(120, 70), (64, 96), (90, 90)], seed=5), NOTHING]


@pytest.fixture(scope="module")
def staged_bundle(tmp_path_factory):
    """Makes a bundle of the form staged alone: fully connected layers take RoI features channels last."""

    def made(exported, **changes):
        folder = tmp_path_factory.mktemp("staged") / "bundle"
        options = replace(exported.options, **{"ops": ("staged",), **changes})
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(bundle_module, "onnx_from_module", lambda *_, **__: few_candidates(exported.abstract))
            return export_bundle(exported.module, folder, options, labels=LABELS)

    return made


def few_candidates(abstract):
    """Room for every pair of a RoI and a class, and no more: on a CPU, empty blocks of a grid take their time."""
    model = abstract.clone()
    (node,) = [node for node in model.graph if node.op_type == "RegionDetections"]
    node.attributes["candidates"] = ir.AttrInt64("candidates", 128)
    return model


@pytest.fixture(scope="module", params=["fixed", "dynamic"])
def staged(request, staged_bundle):
    exported = request.getfixturevalue(request.param)
    return exported, staged_bundle(exported)


@pytest.fixture(scope="module")
def small(fixed, staged_bundle):
    return fixed, staged_bundle(fixed)


def placed(exported, photos):
    images, sizes, _ = exported.canvas.place([photo for _, photo in photos])
    return images, sizes


def wanted_of(exported, images, sizes):
    values = eager(exported.module, torch.from_numpy(images), torch.from_numpy(sizes))
    return {name: value.numpy() for name, value in values.items()}


def check(found, wanted) -> None:
    assert found.keys() == {"num_detections", "boxes", "scores", "labels", "overflow", *({"masks"} & wanted.keys())}
    np.testing.assert_array_equal(found["num_detections"], wanted["num_detections"])
    np.testing.assert_array_equal(found["labels"], wanted["labels"])
    for name, atol in (("boxes", 1e-3), ("scores", 1e-5), ("masks", 1e-5)):
        if name in found:
            assert (found[name].shape, found[name].dtype) == (wanted[name].shape, wanted[name].dtype)
            np.testing.assert_allclose(found[name], wanted[name], atol=atol, rtol=0)


def test_detections_are_eagers(staged, tmp_path):
    """Batches of one and three, among them a photo with nothing in it; from the second run on from the graph."""
    exported, bundle = staged
    machine = Machine.of(bundle, tmp_path)
    runner = machine.runner()
    for few in (IMAGES[:1], IMAGES[1:4], IMAGES[3:], IMAGES[1:2], IMAGES[:3], IMAGES[:3]):
        images, sizes = placed(exported, few)
        check(runner.run(images, sizes), wanted_of(exported, images, sizes))
    assert runner.why_no_graph is None
    assert machine.driver.counts["cuGraphLaunch"] >= 2
    runner.close()
    assert_nothing_left(machine.driver)


def test_tests_on_a_real_gpu_describe_stages_as_bundles_do(staged):
    """They cannot export there: their stages, run by torch, must be those of a bundle."""
    exported, bundle = staged
    manifest = Manifest.read(bundle)
    artifact = next(a for a in manifest.artifacts if a.form == "staged")
    stages, ops, constants = described(exported.module, exported.canvas, candidates=128)
    for ours, stage in zip(stages, artifact.stages, strict=True):
        for key in ("inputs", "outputs", "channels_last"):
            assert set(ours[key]) == set(stage[key])
        assert (ours["name"], ours["slots"]) == (stage["name"], stage["slots"])
        assert ours["shapes"].items() <= stage["shapes"].items()
    assert ops == [dict(op) for op in artifact.ops_between]
    kept = read_constants(manifest, artifact)
    assert kept.keys() == constants.keys()
    for name, value in constants.items():
        np.testing.assert_array_equal(kept[name], value)


def assert_nothing_left(driver) -> None:
    assert driver.memory == driver.pinned == driver.streams == driver.graphs == driver.modules == {}


def test_a_request_is_one_copy_in_one_graph_and_one_copy_out(small, tmp_path):
    exported, bundle = small
    machine = Machine.of(bundle, tmp_path, "tensorrt")
    runner = machine.runner()
    images, sizes = placed(exported, IMAGES[:1])
    for _ in range(2):
        runner.run(images, sizes)
    before, launched = dict(machine.driver.counts), len(machine.driver.launched)
    images, sizes = placed(exported, IMAGES[1:2])
    check(runner.run(images, sizes), wanted_of(exported, images, sizes))
    calls = {name: n - before.get(name, 0) for name, n in machine.driver.counts.items() if n != before.get(name, 0)}
    expected = ("cuCtxSetCurrent", "cuMemcpyHtoDAsync", "cuGraphLaunch", "cuStreamSynchronize")
    assert calls == dict.fromkeys(expected, 1)  # the copy out is in the graph
    kinds = [name.split("_")[0] for name in machine.driver.launched[launched:]]
    assert list(dict.fromkeys(kinds)) == ["proposals", "roi", "detections"]


def test_without_capture_it_runs_all_the_same(small, tmp_path):
    """As with pycuda, or with an engine that is not to be captured yet."""
    exported, bundle = small
    machine = Machine.of(bundle, tmp_path)
    cuda = CudaPython(machine.driver)
    cuda.capture = lambda stream, enqueue: None  # type: ignore[method-assign]
    runner = machine.runner(cuda)
    machine.trt.capturable = False
    images, sizes = placed(exported, IMAGES[:1])
    wanted = wanted_of(exported, images, sizes)
    for capturable in (False, False, True, True):
        machine.trt.capturable = capturable
        check(runner.run(images, sizes), wanted)
        assert ("cannot capture" in str(runner.why_no_graph)) == capturable


def test_threads_and_results_that_belong_to_the_caller(small, tmp_path):
    exported, bundle = small
    machine = Machine.of(bundle, tmp_path)
    runner = machine.runner(workers=2)
    inputs = [placed(exported, [IMAGES[number % 3]]) for number in range(3)]
    alone = [runner.run(*arrays) for arrays in inputs]
    kept = [{name: value.copy() for name, value in found.items()} for found in alone]
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(lambda arrays: runner.run(*arrays), inputs * 2))
    for number, found in enumerate(together):
        for name, value in found.items():
            np.testing.assert_array_equal(value, kept[number % 3][name])
            np.testing.assert_array_equal(value, alone[number % 3][name])
    runner.close()
    with pytest.raises(BackendError, match="this predictor is closed"):
        runner.run(*inputs[0])
    assert_nothing_left(machine.driver)


class OnGpu:
    """An array that somebody else has put on the GPU."""

    def __init__(self, driver, values: np.ndarray) -> None:
        _, address = driver.cuMemAlloc(values.nbytes)
        ctypes.memmove(address, values.ctypes.data, values.nbytes)
        self.shape, self.dtype = values.shape, values.dtype
        self.__cuda_array_interface__ = {
            "shape": values.shape, "typestr": values.dtype.str, "data": (address, False), "version": 3,
        }  # fmt: skip


def test_arrays_on_the_gpu_are_replayed_without_the_host(small, tmp_path):
    exported, bundle = small
    machine = Machine.of(bundle, tmp_path)
    runner = machine.runner()
    first, second = (placed(exported, [IMAGES[n]]) for n in (0, 1))
    for _ in range(2):
        runner.run(*first)
    uploads = machine.driver.counts["cuMemcpyHtoDAsync"]
    found = runner.run(*(OnGpu(machine.driver, array) for array in second))
    check(found, wanted_of(exported, *second))
    assert machine.driver.counts["cuMemcpyHtoDAsync"] == uploads
    assert runner.replayed == 2
    check(runner.run(*first), wanted_of(exported, *first))  # its own memory again, in the graph too
    with pytest.raises(BackendError, match=r"images: expected uint8 on the GPU, found float32 \[1, 64, 96, 3\]"):
        runner.run(OnGpu(machine.driver, second[0].astype(np.float32)), second[1])


def test_memory_is_allocated_once_for_the_largest(dynamic, staged_bundle, tmp_path):
    machine = Machine.of(staged_bundle(dynamic), tmp_path)
    runner = machine.runner()
    for count in (1, 3):
        runner.run(*placed(dynamic, IMAGES[:count]))
    before = machine.driver.counts["cuMemAlloc"], machine.driver.used()
    for count in (2, 1, 3):
        images, sizes = placed(dynamic, IMAGES[:count])
        check(runner.run(images, sizes), wanted_of(dynamic, images, sizes))
    assert (machine.driver.counts["cuMemAlloc"], machine.driver.used()) == before
    with pytest.raises(BackendError, match=r"expected images \[1, .*found images \[5, .*build again"):
        runner.run(*placed(dynamic, [IMAGES[0]] * 5))
    runner.run(*placed(dynamic, IMAGES[:1]))


def test_too_little_memory_and_limits_are_said_at_load(small, tmp_path):
    _, bundle = small
    machine = Machine.of(bundle, tmp_path)
    machine.driver.total = 40_000
    with pytest.raises(BackendError, match=r"needs .* MiB of GPU memory"):
        machine.runner()
    assert_nothing_left(machine.driver)
    machine.driver.total = 1 << 30
    ops = [dict(op) for op in machine.artifact.ops_between]
    ops[0]["attributes"] = {**ops[0]["attributes"], "pre_nms": 6000}
    machine.artifact = replace(machine.artifact, ops_between=tuple(ops))
    with pytest.raises(BackendError, match=r"pre_nms: the CUDA kernels take 1 to 4096, found 6000"):
        machine.runner()
    assert_nothing_left(machine.driver)


def test_a_stage_that_fails_is_told_and_the_next_request_runs(small, tmp_path):
    exported, bundle = small
    machine = Machine.of(bundle, tmp_path)
    runner = machine.runner()
    arrays = placed(exported, IMAGES[:1])
    for failure, words in (("execute", "the execution failed: .*an execution that fails"), ("gpu", "ILLEGAL_ADDRESS")):
        machine.trt.fail_at = failure
        with pytest.raises(BackendError, match=words):
            runner.run(*arrays)
    machine.trt.fail_at = None
    check(runner.run(*arrays), wanted_of(exported, *arrays))


def test_maps_and_roi_features_in_another_order_of_axes_are_refused(fixed, tmp_path):
    """The bundle's other forms need the weights as they were: its engines are built to take channels last."""
    with pytest.raises(BackendError, match=r"another order of axes.*build engines"):
        Machine.of(fixed.bundle, tmp_path, as_built=False).runner()


def test_half_precision(fixed, staged_bundle, tmp_path):
    """Maps and RoI features are half, boxes and scores are not; a CPU is never offered it."""
    bundle = staged_bundle(fixed, precision="fp16")
    machine = Machine.of(bundle, tmp_path)
    assert [(a.backend, a.engine) for a in machine.manifest.artifacts] == [("tensorrt-rtx", None)]
    with pytest.raises(BackendError, match=r"runs as engines, which are built from it: regionrt build .*--ops staged"):
        rt.load(bundle)
    runner = machine.runner()
    images, sizes = placed(fixed, IMAGES[:2])
    found, wanted = runner.run(images, sizes), wanted_of(fixed, images, sizes)
    assert {name for name in machine.driver.launched if name.startswith("roi_align")} == {"roi_align_nhwc_f16_1"}
    assert {name for name in machine.driver.launched if name.startswith("detections_softmax")} == {
        "detections_softmax_f32"
    }
    tolerance = TOLERANCES["fp16"]
    for n in range(2):
        sets = []
        for values in (wanted, found):
            rows = slice(0, values["num_detections"][n])
            sets.append((values["boxes"][n, rows], values["scores"][n, rows], values["labels"][n, rows]))
        matched, _ = match_scored(*sets, min_iou=tolerance.iou, max_score_error=tolerance.score)
        assert len(matched) >= 0.9 * max(len(sets[0][0]), len(sets[1][0])) > 5  # 11 bits in every layer


@pytest.fixture
def device(small, tmp_path, monkeypatch):
    """(eager's detector, a bundle with engines of its stages, the machine that they are for)."""
    exported, bundle = small
    machine = Machine.of(bundle, tmp_path)
    folder = tmp_path / "bundle"
    (folder / "engines").mkdir(parents=True)
    for path in bundle.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    data = json.loads((folder / "manifest.json").read_text())
    stages = []
    for stage in machine.artifact.stages:
        name = f"engines/{stage['name']}.engine"
        (folder / name).write_bytes(Path(stage["file"]).read_bytes())
        data["files"][name] = {"bytes": (folder / name).stat().st_size, "sha256": sha256_of(folder / name)}
        stages.append({**stage, "file": name})
    entry = machine.artifact.to_json() | {"stages": stages}
    entry["files"] = [*(stage["file"] for stage in stages), "staged-constants.npz"]
    entry["engine"] = {
        "flavour": "tensorrt-rtx",
        "version": machine.trt.__version__,
        "compute_capabilities": ["8.6"],
        "os": platform.system(),
        "machine": platform.machine(),
        "precision": "fp32",
    }
    data["artifacts"].insert(0, entry)
    (folder / "manifest.json").write_text(json.dumps(data))
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", machine.trt)
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", machine.driver)
    for where in (preflight, cuda_module):
        monkeypatch.setattr(where, "why_no_driver", lambda: None)
    monkeypatch.setattr(preflight, "find_spec", lambda name: name)
    monkeypatch.setattr(preflight.importlib.metadata, "version", lambda name: machine.trt.__version__)
    monkeypatch.setattr(kernels_module, "compiled", lambda op, capability, newest: kernels.cubin(op, capability))
    return exported, folder, machine


def test_load_opens_the_engines_of_all_stages(device):
    exported, bundle, machine = device
    _, photo = IMAGES[1]
    with rt.load(bundle) as predict:
        about = predict.about
        assert (about["backend"], about["form"], about["library"]) == (
            "tensorrt-rtx", "staged", f"tensorrt_rtx {machine.trt.__version__}",
        )  # fmt: skip
        found = predict(photo)
    images, sizes, _ = exported.canvas.place([photo])
    wanted = wanted_of(exported, images, sizes)
    assert len(found) == wanted["num_detections"][0] > 0
    np.testing.assert_allclose(found.scores, wanted["scores"][0, : len(found)], atol=1e-5)


def test_photos_on_the_gpu_are_resized_there_to_the_same_bytes(device):
    _, bundle, machine = device
    photos = [np.ascontiguousarray(photo) for _, photo in IMAGES]
    with rt.load(bundle, resize_on_gpu=True) as predict:
        wanted = predict.batch(photos)
        uploads = machine.driver.counts["cuMemcpyHtoDAsync"]
        there = [OnGpu(machine.driver, photo) for photo in photos]
        found = predict(there[0])
        assert machine.driver.counts["cuMemcpyHtoDAsync"] == uploads + 1, "the valid size, and no canvas"
        mixed = predict.batch([there[0], photos[1], *there[2:]])
    for one, expected in zip([found, *mixed], [wanted[0], *wanted], strict=True):
        np.testing.assert_array_equal(one.boxes_xyxy, expected.boxes_xyxy)
        np.testing.assert_array_equal(one.scores, expected.scores)
    assert len(wanted[0]) > 0
    with rt.load(bundle) as predict, pytest.raises(rt.ImageError, match=r"resize_on_gpu=True"):
        predict(there[0])


def test_resizing_on_a_gpu_is_for_artefacts_that_run_on_one(small):
    _, bundle = small
    with pytest.raises(BackendError, match="takes its canvas from the host's memory"):
        rt.load(bundle, backend="onnxruntime", resize_on_gpu=True)


def test_each_engine_is_looked_at_before_it_is_loaded(device):
    _, bundle, machine = device
    path = bundle / "engines" / "dense_1.engine"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(BackendError, match=r"dense_1\.engine is cut short.*regionrt build .*--ops staged"):
        rt.load(bundle, backend="tensorrt-rtx")
    path.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
    with pytest.raises(BackendError, match=r"dense_1\.engine: changed since.*build it again: regionrt build"):
        rt.load(bundle, backend="tensorrt-rtx")
    path.write_bytes((bundle / "engines" / "dense_0.engine").read_bytes())
    data = json.loads((bundle / "manifest.json").read_text())
    data["files"]["engines/dense_1.engine"] = data["files"]["engines/dense_0.engine"]
    (bundle / "manifest.json").write_text(json.dumps(data))
    with pytest.raises(
        BackendError, match=r"expected the inputs roi_features, found images, .*not the engine of dense_1"
    ):
        rt.load(bundle, backend="tensorrt-rtx")
    machine.driver.capability = (8, 9)
    with pytest.raises(BackendError, match=r"8\.9.*build .*--ops staged --compute-capability 8\.9"):
        rt.load(bundle, backend="tensorrt-rtx")
