"""Our TensorRT plugins in the runtime: registered where an engine needs them, launched as our ops are, and missed."""

from __future__ import annotations

import ctypes
import platform
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import kernels
import lean_tensorrt
import numpy as np
import pytest
from fake_cuda import FakeDriver
from on_gpu import FakeGpu

from regionrt.plugins.nms.reference import nms
from regionrt.runtime import build_process
from regionrt.runtime import gpu as gpu_package
from regionrt.runtime.backends.cuda import CudaPython
from regionrt.runtime.backends.tensorrt import TensorRTRunner
from regionrt.runtime.bundle import Artifact
from regionrt.runtime.engine_plugins import registration
from regionrt.runtime.engine_plugins.declaration import CHANNELS_LAST, LINEAR, VERSION, Tensor
from regionrt.runtime.engine_plugins.registration import (
    IN_PROCESS,
    PLUGINS,
    QUICK,
    kind_for,
    register_to_load,
    sources_sha256,
    why_not_here,
)
from regionrt.runtime.errors import BackendError
from regionrt.runtime.gpu.nms import nms as launches_of_nms
from regionrt.runtime.gpu.nvrtc import open_nvrtc
from regionrt.runtime.gpu.roi_align import roi_align as launches_of_roi_align
from regionrt.runtime.preflight import why_not


def entry(name: str = "RegionNmsPlugin", **changes: str) -> dict[str, str]:
    op = PLUGINS[name].op if name in PLUGINS else "nms"
    known = {"name": name, "namespace": "regionrt", "version": VERSION, "kind": IN_PROCESS, "op": op}
    return known | {"sha256": "0" * 64} | changes


@pytest.mark.parametrize("images", [1, 3])
def test_nms_is_launched_as_the_runtime_launches_it(images: int) -> None:
    gpu = FakeGpu()
    boxes, classes = gpu.empty((images, 70, 4), "float32"), gpu.empty((images, 70), "int32")
    keep = gpu.empty((images, 70), "uint8")
    (ours,) = launches_of_nms(gpu.kernels, boxes, classes, keep, iou_threshold=0.45, num_classes=9)
    inputs = [Tensor((images, 70, 4), "fp32"), Tensor((images, 70), "int32")]
    plugin = PLUGINS["RegionNmsPlugin"]
    fields = plugin.checked({"iou_threshold": 0.45, "num_classes": 9})
    assert same(plugin.launch(inputs, Tensor((images, 70), "bool"), fields), ours)


@pytest.mark.parametrize(("images", "rows"), [(1, 7), (1, 1000), (3, 100)])
@pytest.mark.parametrize(("layout", "dtype", "kind"), [(LINEAR, "fp32", "float32"), (CHANNELS_LAST, "fp16", "float16")])
def test_roi_align_is_launched_as_the_runtime_launches_it(
    images: int, rows: int, layout: str, dtype: str, kind: str
) -> None:
    gpu, last, channels, size = FakeGpu(), layout == CHANNELS_LAST, 64, (7, 7)
    sides = [(40, 60), (20, 30), (10, 15)]
    features = [gpu.empty((images, *side, channels) if last else (images, channels, *side), kind) for side in sides]
    out = gpu.empty((images, rows, *size, channels) if last else (images, rows, channels, *size), kind)
    rois, counts = gpu.empty((images, rows, 4), "float32"), gpu.empty((images,), "int32")
    scales = (0.25, 0.125, 0.0625)
    (ours,) = launches_of_roi_align(
        gpu.kernels,
        features,
        rois,
        counts,
        out,
        spatial_scales=scales,
        output_size=size,
        aligned=True,
        channels_last=last,
    )
    plugin = PLUGINS["RegionRoiAlignPlugin3"]
    areas = [0.0, *((224 * 2 ** (k - 4 - 1e-6)) ** 2 for k in (3, 4))]
    fields = {"spatial_scales": scales, "level_areas": areas, "output_height": 7, "output_width": 7}
    fields |= {"sampling_ratio": 2, "aligned": 1, "maximum": 0}
    inputs = [Tensor((images, channels, *side), dtype, layout) for side in sides]
    inputs += [Tensor((images, rows, 4), "fp32"), Tensor((images,), "int32")]
    output = Tensor((images * rows, channels, *size), dtype, layout)
    assert same(plugin.launch(inputs, output, plugin.checked(fields)), ours)


def same(declared: Any, launch: Any) -> bool:
    """Kernel, grid, block and scalars; of bits that no area reaches any NaN will do."""
    numbers = [a for a in launch._arguments if not isinstance(a, ctypes.c_void_p)]
    scalars = [int.from_bytes(bytes(number), "little", signed=True) for number in numbers]
    floats = [np.array(values, np.int32).view(np.float32) for values in (scalars, declared.scalars)]
    equal = (np.array(scalars) == np.array(declared.scalars)) | (np.isnan(floats[0]) & np.isnan(floats[1]))
    grid = (*launch._grid, 1, 1)[:3]
    return bool(equal.all()) and (declared.kernel, declared.grid, declared.block) == (
        launch.kernel,
        grid,
        launch._block,
    )


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A library whose registry has none of our plugins, and has none after the test."""
    trt = lean_tensorrt.registry_library()
    registry = trt.get_plugin_registry()

    def ours() -> list[Any]:
        return [c for c in (registry.get_creator(p.name, VERSION, "regionrt") for p in PLUGINS.values()) if c]

    before = ours()
    for creator in before:
        registry.deregister_creator(creator)
    monkeypatch.setattr(registration, "_loaded", {})
    yield trt
    for creator in ours():
        registry.deregister_creator(creator)
    for creator in before:
        registry.register_creator(creator, "regionrt")


def test_an_engines_plugins_are_registered_once_and_launch_on_its_gpu(
    library: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = FakeGpu()
    compiled: list[str] = []

    def at_once(op: str, compute_capability: str, newest: tuple[int, int]) -> bytes:
        compiled.append(op)
        assert (compute_capability, newest) == ("8.6", (13, 0))
        return kernels.cubin(op)

    monkeypatch.setattr(registration, "compiled", at_once)
    needed = [entry(), entry("RegionRoiAlignPlugin4")]
    for _ in range(2):
        register_to_load(library, needed, gpu.cuda)
    assert sorted(compiled) == ["nms", "roi_align"]
    registry = library.get_plugin_registry()
    names = [name for name in PLUGINS if registry.get_creator(name, VERSION, "regionrt")]
    assert names == ["RegionRoiAlignPlugin4", "RegionNmsPlugin"]

    creator = registry.get_creator("RegionNmsPlugin", VERSION, "regionrt")
    kinds = library.PluginFieldType
    threshold, classes_ = np.float32([0.45]), np.int32([3])
    fields = [
        library.PluginField("iou_threshold", threshold, kinds.FLOAT32),
        library.PluginField("num_classes", classes_, kinds.INT32),
    ]
    plugin = creator.create_plugin("node", library.PluginFieldCollection(fields), library.TensorRTPhase.RUNTIME)
    rng = np.random.default_rng(0)
    corners = rng.integers(0, 50, (2, 90, 2))
    boxes = np.concatenate([corners, corners + rng.integers(0, 20, (2, 90, 2))], -1).astype(np.float32)
    classes = rng.integers(-1, 3, (2, 90)).astype(np.int32)
    on_gpu, out = [gpu.put(boxes), gpu.put(classes)], gpu.empty((2, 90), "uint8")
    linear = lean_tensorrt.TensorFormat.LINEAR

    def desc(shape: tuple[int, ...], dtype: Any) -> Any:
        return SimpleNamespace(dims=shape, type=dtype, format=linear)

    inputs = [desc(boxes.shape, library.float32), desc(classes.shape, library.int32)]
    outputs = [desc(classes.shape, library.bool)]
    plugin.on_shape_change(inputs, outputs)
    loads = gpu.driver.counts["cuModuleLoadData"]
    plugin.enqueue(inputs, outputs, [array.address for array in on_gpu], [out.address], 0, gpu.stream)
    gpu.cuda.synchronize(gpu.stream)
    assert gpu.driver.counts["cuModuleLoadData"] == loads  # a capture would have failed
    np.testing.assert_array_equal(gpu.get(out), nms(boxes, classes, iou_threshold=0.45))
    empty = desc((2, 0), library.bool)
    plugin.on_shape_change([desc((2, 0, 4), library.float32), desc((2, 0), library.int32)], [empty])
    plugin.enqueue(inputs, outputs, [0, 0], [0], 0, gpu.stream)


def test_what_travels_in_the_engine_needs_nothing_here(library: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registration, "compiled", lambda *_: pytest.fail("nothing is to be compiled"))
    register_to_load(library, [entry(kind=QUICK, version="9")], CudaPython(FakeDriver()))
    assert library.get_plugin_registry().get_creator("RegionNmsPlugin", VERSION, "regionrt") is None


def test_without_a_compiler_loading_says_so(library: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: Any) -> bytes:
        raise BackendError("no NVRTC of CUDA 12 is installed: pip install nvidia-cuda-nvrtc-cu12")

    monkeypatch.setattr(registration, "compiled", none)
    with pytest.raises(BackendError, match="pip install nvidia-cuda-nvrtc-cu12"):
        register_to_load(library, [entry()], CudaPython(FakeDriver()))
    assert library.get_plugin_registry().get_creator("RegionNmsPlugin", VERSION, "regionrt") is None


MISSING = [
    (entry("RegionWarpPlugin"), "it needs the plugin regionrt::RegionWarpPlugin, which this version of regionrt lacks"),
    (entry(version="2"), "it needs version 2 of the plugin RegionNmsPlugin, this regionrt has version 1"),
    (entry(namespace="other"), "it needs the plugin other::RegionNmsPlugin, which this version of regionrt lacks"),
    (
        entry(kind="of a later kind"),
        "it needs the plugin regionrt::RegionNmsPlugin, which this version of regionrt lacks",
    ),
    ({}, "it needs the plugin None::None, which this version of regionrt lacks"),
    ("nonsense", "its manifest does not say which plugins it needs: 'nonsense'"),
]


@pytest.mark.parametrize(("needed", "told"), MISSING)
def test_a_plugin_that_is_not_here(needed: Any, told: str, tmp_path: Path) -> None:
    assert why_not_here([entry(), needed]) == told
    with pytest.raises(BackendError, match=told):  # before the engine is opened: TensorRT would name no plugin
        TensorRTRunner(
            tmp_path / "no.engine",
            "tensorrt-rtx",
            {"plugins": [needed]},
            cuda=CudaPython(FakeDriver()),
            trt=SimpleNamespace(__name__="tensorrt_rtx"),
        )


def test_preflight_names_the_plugin_and_the_remedy() -> None:
    certificate: dict[str, Any] = {
        "plugins": [entry(version="2")],
        "os": platform.system(),
        "machine": platform.machine(),
    }
    artifact = Artifact("tensorrt-rtx", "plugin", "fp16", ("engines/e.engine",), engine=certificate)
    manifest: Any = SimpleNamespace(folder=Path("bundle"), files={})
    why = why_not(manifest, artifact)
    assert why is not None
    assert "it needs version 2 of the plugin RegionNmsPlugin, this regionrt has version 1" in why
    assert why.endswith("build it again: regionrt build bundle --target tensorrt-rtx --ops plugin")
    certificate["plugins"] = [entry(version="2", kind=QUICK), entry()]
    assert "plugin RegionNmsPlugin" not in (why_not(manifest, artifact) or "")


def test_a_library_decides_the_kind() -> None:
    assert kind_for(SimpleNamespace(__name__="tensorrt_rtx", IPluginV3OneBuild=object)) == IN_PROCESS
    with pytest.raises(
        BackendError, match=r"tensorrt 8\.6\.1 has no plugins of version 3: use TensorRT 10\.0 or newer"
    ):
        kind_for(SimpleNamespace(__name__="tensorrt", __version__="8.6.1"))


def test_sources_are_hashed_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    sources_sha256.cache_clear()
    before = sources_sha256("nms")
    assert len(before) == 64
    assert before != sources_sha256("roi_align")
    sources_sha256.cache_clear()
    monkeypatch.setattr(registration, "source_of", lambda op: ("another source", ()))
    assert sources_sha256("nms") != before
    sources_sha256.cache_clear()


@pytest.mark.parametrize("op", ["nms", "roi_align"])
def test_ptx_is_for_the_architecture_asked_for(op: str) -> None:
    try:
        compiler = open_nvrtc((13, 0))
    except BackendError as error:
        pytest.skip(str(error))
    source, flags = gpu_package.kernels.source_of(op)
    ptx = compiler.ptx(source, f"{op}.cu", flags, 80)
    assert ".target sm_80" in ptx
    assert "\0" not in ptx
    assert f".visible .entry {op}" in ptx
    with pytest.raises(BackendError, match=r"knows no compute capability 2\.0"):
        compiler.ptx(source, f"{op}.cu", flags, 20)


def test_the_parser_finds_the_library_by_the_name_it_opens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel, folder = tmp_path / "tensorrt_rtx_libs", tmp_path / "scratch"
    wheel.mkdir()
    folder.mkdir()
    (wheel / "libtensorrt_rtx.so.1").touch()
    (wheel / "libtensorrt_onnxparser_rtx.so.1").touch()
    spec = SimpleNamespace(submodule_search_locations=[str(wheel)])
    monkeypatch.setattr(build_process, "find_spec", lambda name: spec if name == "tensorrt_rtx_libs" else None)
    environment = {"LD_LIBRARY_PATH": "/elsewhere"}
    build_process._link_library("tensorrt_rtx", folder, environment)
    assert environment == {"LD_LIBRARY_PATH": f"{folder}:/elsewhere"}
    (link,) = folder.iterdir()
    assert (link.name, link.resolve()) == ("libtensorrt_rtx.so", wheel / "libtensorrt_rtx.so.1")
    link.unlink()
    (wheel / "libtensorrt_rtx.so").touch()  # a wheel that has it needs nothing
    for module in ("tensorrt_rtx", "tensorrt"):
        untouched: dict[str, str] = {}
        build_process._link_library(module, folder, untouched)
        assert untouched == {}
    assert not list(folder.iterdir())
