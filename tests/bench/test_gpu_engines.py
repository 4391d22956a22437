"""Engine libraries in the GPU suite, without a GPU: real bundles, fake libraries, the whole way to figures."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import kernels
import numpy as np
import onnx
import pytest
import torch
from fake_cuda import FakeDriver
from fake_tensorrt import FakeTensorRT, write_plan
from gpu_onnxruntime import GpuLibrary
from tiny_detectors import LABELS, faster

from regionrt.bench.errors import BenchError
from regionrt.bench.suites import gpu, gpu_engine_sources
from regionrt.bench.suites.gpu_clock import HostClock
from regionrt.bench.suites.gpu_detectors import NetCase, NetSetting
from regionrt.bench.suites.gpu_engine_request import Job, measure_in_child, measured
from regionrt.bench.suites.gpu_engines import EVERY_WAY, LIBRARIES, STAGED, WAYS, EngineSetting, run_engines
from regionrt.bench.suites.gpu_inputs import pictures
from regionrt.bench.suites.gpu_schema import DetectorRow, EngineRow, GpuReport
from regionrt.bench.suites.gpu_table import to_markdown, to_terminal
from regionrt.export import bundle as export
from regionrt.export.bundle import ExportOptions, Prepared, export_bundle
from regionrt.runtime import build, preflight
from regionrt.runtime.backends import cuda as cuda_module
from regionrt.runtime.backends import onnxruntime as ort_backend
from regionrt.runtime.errors import BackendError
from regionrt.runtime.gpu import kernels as kernels_module

CASE = NetCase("tiny", (64, 96), 1)
PLUGIN, PORTABLE = "one engine, with our plugins", "one engine (portable)"
CANDIDATES = 96
torch.set_num_threads(1)


@pytest.fixture(scope="module")
def exported() -> Prepared:
    """The net's graph, for all exports: making it takes seconds. Few candidates, because kernels run on the CPU."""
    return Prepared()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory, exported) -> Path:
    """As somebody else has exported it, in fp32."""
    folder = tmp_path_factory.mktemp("given") / "bundle"
    options = ExportOptions(size=CASE.size, ops=("portable", "native"), candidates=CANDIDATES)
    return export_bundle(faster(), folder, options, labels=LABELS, prepared=exported)


@pytest.fixture
def no_libraries(monkeypatch) -> None:
    for module in LIBRARIES.values():
        monkeypatch.setitem(sys.modules, module, None)


def setting(**changes: Any) -> EngineSetting:
    nets = NetSetting(None, "cpu", seconds=0.01, classes=len(LABELS), canvases=1, candidates=CANDIDATES)  # type: ignore[arg-type]
    made = EngineSetting(
        nets, HostClock(), lambda: "", lambda: 100.0, lambda text: None, (CASE,), (), WAYS,
        lambda job, canvases, timeout_s: measured(job, canvases),
    )  # fmt: skip
    return replace(made, **changes)


class Device:
    """A machine with a fake GPU and fake libraries for it. `refuses`: what its builder says to a form."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *flavours: str) -> None:
        self.driver = FakeDriver(memory=1 << 30)
        self.libraries = {flavour: FakeTensorRT(self.driver, flavour) for flavour in flavours}
        self.refuses: dict[str, str] = {}
        self.capabilities = ["8.6"]
        self.built: list[tuple[str, str, str]] = []
        for trt in self.libraries.values():
            monkeypatch.setitem(sys.modules, trt.__name__, trt)
        monkeypatch.setitem(sys.modules, "cuda.bindings.driver", self.driver)
        for where in (preflight, cuda_module):
            monkeypatch.setattr(where, "why_no_driver", lambda: None)
        monkeypatch.setattr(preflight, "find_spec", lambda name: name)
        monkeypatch.setattr(preflight.importlib.metadata, "version", lambda name: "1.7.1.116")
        monkeypatch.setattr(kernels_module, "compiled", lambda op, capability, newest: kernels.cubin(op, capability))
        monkeypatch.setattr(build, "run_build", self.build)

    def build(self, job: dict[str, Any], timeout_s: float, progress: Any) -> dict[str, Any]:
        """In the place of the child that has TensorRT."""
        assert timeout_s == 100
        self.built.append((job["target"], job["form"], job["precision"]))
        if job["form"] in self.refuses:
            raise BackendError(self.refuses[job["form"]])
        model = onnx.load(job["onnx"])
        for name in job["channels_last"]:
            take_channels_last(model, name)
        data = write_plan(model, job["profiles"])
        Path(job["engine"]).write_bytes(data)
        return {
            "version": "1.7.1.116", "compute_capabilities": self.capabilities, "layer_types": {}, "flops": {},
            "proof": {"of": "convolutions", "layers": 1, "in_precision": 1, "share": 1.0}, "tf32": False,
            "data_dependent_shapes": job["form"] == "portable", "plugins": [], "build_seconds": 2.0,
            "engine_bytes": len(data),
        }  # fmt: skip


def take_channels_last(model: onnx.ModelProto, name: str) -> None:
    """What the real builder does to a stage's input [R, 1, C, h, w]: it becomes [R, h, w, C]."""
    (value,) = (each for each in model.graph.input if each.name == name)
    rows, _, channels, height, width = value.type.tensor_type.shape.dim
    sizes = [channels.dim_value, height.dim_value, width.dim_value]
    for node in model.graph.node:
        node.input[:] = [f"{name}.first" if each == name else each for each in node.input]
    to_first = onnx.helper.make_node("Transpose", [name], [f"{name}.moved"], perm=[0, 3, 1, 2])
    shape = onnx.numpy_helper.from_array(np.array([-1, 1, *sizes], np.int64), f"{name}.shape")
    model.graph.initializer.append(shape)
    model.graph.node.insert(0, to_first)
    model.graph.node.insert(1, onnx.helper.make_node("Reshape", [f"{name}.moved", shape.name], [f"{name}.first"]))
    kind = value.type.tensor_type.elem_type
    value.CopyFrom(onnx.helper.make_tensor_value_info(name, kind, [rows.dim_param, *sizes[1:], sizes[0]]))


@pytest.fixture
def own_net(monkeypatch, exported) -> None:
    """The suite's net is a tiny one."""
    monkeypatch.setattr(export, "Prepared", lambda: exported)
    monkeypatch.setattr(gpu_engine_sources, "detector", lambda case, nets: faster())


def test_engines_of_the_suites_own_net(own_net, no_libraries, monkeypatch) -> None:
    """Exported, built, loaded by `load`, run on arrays on the GPU and replayed as graphs; the net's detections."""
    device = Device(monkeypatch, "tensorrt", "tensorrt-rtx")
    device.refuses["plugin"] = "TensorRT's parser refuses plugin.onnx: no plugin"
    monkeypatch.setattr("regionrt.bench.suites.gpu_engines.PRECISIONS", ("fp32",))
    eager = DetectorRow("tiny", "64×96", 1, "PyTorch fp32", False, median_ms=1e6)
    ways = [way for way in WAYS if (way.library, way.form) != ("TensorRT", "staged")]  # the same, and slow on a CPU
    rows = list(run_engines(setting(ways=ways), [eager]))
    assert rows[0] == EngineRow("ONNX Runtime", "", failed=rows[0].failed)
    assert "cannot be imported" in rows[0].failed
    found = {(row.library, row.way): row for row in rows[1:]}
    assert list(found) == [
        ("TensorRT", PLUGIN), ("TensorRT", PORTABLE), ("TensorRT for RTX", STAGED), ("TensorRT for RTX", PORTABLE),
    ]  # fmt: skip
    refused = found.pop(("TensorRT", PLUGIN))
    assert refused.failed == "TensorRT's parser refuses plugin.onnx: no plugin"
    for (_, way), row in found.items():
        assert row.failed == ""
        assert (row.net, row.size, row.precision, row.version) == ("tiny", "64×96", "fp32", "1.7.1.116")
        assert row.low_ms <= row.median_ms <= row.high_ms
        assert row.samples >= 4
        assert row.matched == 1.0
        assert row.against == "PyTorch eager fp32"
        assert row.detections > 0
        assert row.eager_fp32_times == pytest.approx(1e6 / row.median_ms)
        assert row.eager_fp16_times or "PyTorch fp16 is not timed" in row.note
        assert row.engine_bytes > 1000
        assert row.build_seconds == (2.0 if way == PORTABLE else 4.0)
        assert row.cuda_graph == ("no: its shapes depend on the data" if way == PORTABLE else "yes")
    assert device.driver.counts["cuMemcpyDtoDAsync"] > 8, "canvases lie on the GPU"
    assert device.driver.memory == device.driver.streams == {}


def test_a_plugin_engine_makes_a_portable_one_needless(bundle, no_libraries, monkeypatch, tmp_path) -> None:
    """The forms are the same file here: fake engines know no plugins."""
    folder = shutil.copytree(bundle, tmp_path / "b")
    manifest = (folder / "manifest.json").read_text()
    (folder / "manifest.json").write_text(manifest.replace('"form": "native"', '"form": "plugin"'))
    device = Device(monkeypatch, "tensorrt")
    before = sorted(path.name for path in folder.rglob("*"))
    rows = [row for row in run_engines(setting(bundles=(folder,), cases=())) if row.way]
    assert [(row.way, bool(row.failed)) for row in rows] == [(STAGED, True), (PLUGIN, False)]
    assert rows[0].failed == "the bundle holds no staged form: export it with --ops staged"
    assert rows[1].matched is None
    assert "nothing to compare with: …/bundle: asked for onnxruntime, portable, fp32, cpu" in rows[1].note
    assert device.built == [("tensorrt", "plugin", "fp32")]
    assert sorted(path.name for path in folder.rglob("*")) == before, "the bundle given is left as it is"


def test_a_gpu_that_the_engine_is_not_for(own_net, no_libraries, monkeypatch) -> None:
    """As TensorRT for RTX on compute capability 9.0: built, refused at load, and not built again for what is larger."""
    device = Device(monkeypatch, "tensorrt-rtx")
    device.driver.capability = (9, 0)
    rows = [row for row in run_engines(setting(ways=WAYS[5:6])) if row.way]
    assert [(row.precision, row.median_ms) for row in rows] == [("fp16", None), ("fp32", None)]
    told = "built for compute capability 8.6, this is Fake GPU with 9.0; build it again: regionrt build …/bundle"
    assert told in rows[0].failed
    assert rows[0].engine_bytes
    assert rows[0].build_seconds == 2
    assert rows[1].failed.startswith("not built, after tiny 64×96 fp16 came to nothing: ") or "fp16" in rows[1].failed
    assert told in rows[1].failed
    assert device.built == [("tensorrt-rtx", "portable", "fp16")]


def test_onnx_runtime_on_a_bundle_that_was_given(bundle, no_libraries, monkeypatch) -> None:
    """The provider for CUDA is the CPU's here. What it is compared with is the same graph on the CPU."""
    library = GpuLibrary()
    monkeypatch.setitem(sys.modules, "onnxruntime", library)
    monkeypatch.setattr(ort_backend, "why_no_driver", lambda: None)
    cuda, trt = (row for row in run_engines(setting(bundles=(bundle,), cases=())) if row.way)
    for row in (cuda, trt):
        assert row.failed == ""
        assert (row.library, row.net, row.size, row.precision) == ("ONNX Runtime", "FasterRCNN", "64×96", "fp32")
        assert row.median_ms > 0
        assert row.matched == 1.0
        assert row.against == "ONNX Runtime fp32 on the CPU"
        assert row.cuda_graph == "no: its sessions launch each kernel themselves"
        assert (row.engine_bytes, row.eager_fp32_times) == (None, None)
    assert "nodes in CUDAExecutionProvider" in cuda.note
    assert "nodes in TensorrtExecutionProvider" in trt.note


def test_without_onnx_a_row_says_what_to_do(own_net, no_libraries, bundle, monkeypatch) -> None:
    Device(monkeypatch, "tensorrt-rtx")
    monkeypatch.setitem(sys.modules, "regionrt.export.bundle", None)
    rows = [row for row in run_engines(setting(bundles=(bundle,))) if row.way]
    assert [row.way for row in rows] == [STAGED, PORTABLE, EVERY_WAY, EVERY_WAY]
    assert rows[1].median_ms
    for row in rows[2:]:
        assert (
            "pip install 'regionrt[train,export]', or measure one that was made elsewhere with --bundle" in row.failed
        )


def test_when_time_is_up_nothing_is_begun(own_net, no_libraries, bundle, monkeypatch, tmp_path) -> None:
    device = Device(monkeypatch, "tensorrt-rtx")
    late = iter(["", "", *["left out: 451 s had passed"] * 9])
    rows = [row for row in run_engines(setting(bundles=(bundle, tmp_path), late=lambda: next(late))) if row.way]
    assert [(row.net, row.way, row.precision) for row in rows] == [
        ("FasterRCNN", STAGED, ""), ("FasterRCNN", PORTABLE, "fp32"), (tmp_path.name, EVERY_WAY, ""),
        ("tiny", EVERY_WAY, "fp16"), ("tiny", EVERY_WAY, "fp32"),
    ]  # fmt: skip
    assert "no staged form" in rows[0].failed
    assert rows[1].failed == ""
    assert {row.failed for row in rows[2:]} == {"left out: 451 s had passed"}
    assert len(device.built) == 1


def test_what_is_no_bundle(no_libraries, monkeypatch, tmp_path) -> None:
    Device(monkeypatch, "tensorrt-rtx")
    (row,) = (row for row in run_engines(setting(bundles=(tmp_path / "gone",), cases=())) if row.way)
    assert (row.net, row.way) == ("gone", EVERY_WAY)
    assert row.failed.startswith("…/gone: expected a bundle")


def canvases() -> list[np.ndarray]:
    return [pictures(1, CASE.size, seed, "cpu").numpy() for seed in (1, 2)]


def test_a_child_measures_without_torch(bundle) -> None:
    job = Job(str(bundle), "onnxruntime", "native", "fp32", "cpu", 0.01)
    there = measure_in_child(job, canvases(), 120)
    here = measured(replace(job, seconds=0), canvases())
    assert len(there.found) == len(here.found) == 2
    for one, other in zip(there.found, here.found, strict=True):
        for mine, its in zip(one, other, strict=True):
            np.testing.assert_allclose(mine, its, atol=1e-4)
    assert there.low_ms <= there.median_ms <= there.high_ms
    assert here.median_ms is None
    with pytest.raises(BenchError, match=r"asked for onnxruntime, native, fp32, cuda.* has no CUDAExecutionProvider"):
        measure_in_child(replace(job, provider="cuda"), canvases(), 120)


@pytest.mark.parametrize(
    ("script", "told"),
    [
        ("echo /some/where/lib.so: an assertion; kill -SEGV $$", r"ended by SIGSEGV; its last words: …/lib.so: an as"),
        ("exec sleep 60", "not loaded and measured within 0 s"),
        ("exit 3", "ended with status 3$"),
    ],
)
def test_a_child_that_dies_is_a_reason(script, told, bundle, monkeypatch, tmp_path) -> None:
    child = tmp_path / "python"
    child.write_text(f"#!/bin/sh\n{script}\n")
    child.chmod(0o755)
    monkeypatch.setattr(sys, "executable", os.fspath(child))
    with pytest.raises(BenchError, match=told):
        measure_in_child(Job(str(bundle), "tensorrt", "native", "fp32"), canvases(), 0.3)


def test_the_real_library_gets_as_far_as_the_gpu(bundle, no_libraries, monkeypatch) -> None:
    """TensorRT for RTX builds here; without a GPU its engine is refused at load, in the child."""
    monkeypatch.undo()
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed: pip install 'regionrt[rtx]'")
    if preflight.why_no_driver() is None:
        pytest.skip("there is a GPU here")
    ways = tuple(way for way in WAYS if (way.library, way.form) == ("TensorRT for RTX", "portable"))
    made = setting(bundles=(bundle,), cases=(), ways=ways, measure=measure_in_child)
    (row,) = (row for row in run_engines(made) if row.way)
    assert "tensorrt-rtx portable fp32: no NVIDIA GPU driver" in row.failed
    assert row.engine_bytes > 100_000
    assert row.build_seconds > 0


def test_the_command_takes_bundles(monkeypatch, tmp_path) -> None:
    seen: list[gpu.GpuOptions] = []

    def run(options: gpu.GpuOptions, keep: Any, tell: Any) -> GpuReport:
        seen.append(options)
        return GpuReport("A GPU", {"machine": {"CPU": "", "cores": "", "GPU": ""}, "software": {}}, "make gpu")

    monkeypatch.setattr(gpu, "run_gpu", run)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    given = ["--bundle", "one", "--bundle", "two", "--parts", "engines"]
    assert gpu.main(["--out", str(tmp_path), *given]) == 0
    assert seen[0].bundles == (Path("one"), Path("two"))


def test_rows_in_the_tables() -> None:
    facts = {"machine": {"CPU": "a CPU", "cores": "8", "GPU": "a GPU"}, "software": {"torch": "2.11.0"}}
    report = GpuReport("A GPU", facts, "make gpu")
    whole = EngineRow(
        "TensorRT", "10.9", "fasterrcnn", 2.0, "", "800×1088", STAGED, "fp16", 1.9, 2.1, 30, 7.5, 7.0, 0.97,
        "PyTorch eager fp32", 88.0, 90 << 20, 61.2, "yes", "a | note",
    )  # fmt: skip
    other = replace(whole, against="ONNX Runtime fp32 on the CPU", eager_fp32_times=None, cuda_graph="no: its loop")
    report.engines = [whole, other, replace(whole, failed="refused", median_ms=None), EngineRow("X", "", failed="gone")]
    assert GpuReport.from_json(report.to_json()).engines == report.engines
    old = {"library": "TensorRT", "version": "", "net": "", "median_ms": None, "failed": "cannot be imported"}
    assert GpuReport.from_json({**report.to_json(), "engines": [old]}).engines[0].way == ""
    text = to_markdown(report)
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    assert len({line.count("|") for line in lines}) == 1
    for told in ("2.00 (1.90–2.10)", "7.50×", "97.0% of ONNX Runtime", "| 90 | 61 | yes | a / note |", "no: its loop"):
        assert told in text, told
    short = to_terminal(report)
    assert f"TensorRT 10.9 fasterrcnn 800×1088 {STAGED} fp16: 2.00 (1.90–2.10) ms 7.00x, matched 97.0%" in short
    assert "X: gone" in short
