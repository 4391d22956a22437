"""The C++ library of TensorRT plugins: its objects driven as TensorRT drives them, with kernels on the CPU, and the
library as it is deployed in a build by TensorRT for RTX. TENSORRT_INCLUDE names the folder with NvInferRuntime.h."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from regionrt.plugins.native import tensorrt_build
from regionrt.plugins.native.build import PLUGINS, BuildError
from regionrt.plugins.nms.reference import nms
from regionrt.plugins.roi_align.reference import level_thresholds, roi_align

LINEAR, HWC8, HWC = 0, 2, 8  # TensorFormat
FP32, FP16, INT32, BOOL, BF16 = 0, 1, 3, 4, 7  # DataType
FIELD_FLOAT32, FIELD_INT32 = 1, 5  # PluginFieldType
TYPES = {FP32: np.float32, FP16: np.float16, INT32: np.int32, BOOL: np.bool_}
needs_rtx = pytest.mark.skipif(
    find_spec("tensorrt_rtx") is None, reason="tensorrt-rtx is not installed: pip install 'regionrt[rtx]'"
)
SCALES = [1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 64]


@pytest.fixture(scope="module")
def include() -> Path:
    """TensorRT's headers; without them the test is skipped."""
    named = os.environ.get("TENSORRT_INCLUDE")
    folder = Path(named) if named else tensorrt_build.HEADERS
    if not (folder / "NvInferRuntime.h").exists():
        pytest.skip(f"TensorRT's headers are not in {folder}: set TENSORRT_INCLUDE to the folder with NvInferRuntime.h")
    return folder


class Field(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char_p),
        ("data", ctypes.c_void_p),
        ("type", ctypes.c_int32),
        ("length", ctypes.c_int32),
    )


class Fields(ctypes.Structure):
    _fields_ = (("count", ctypes.c_int32), ("fields", ctypes.POINTER(Field)))

    def read(self) -> dict[str, tuple[int, Any]]:
        """Type and values by name; None for fields without data."""
        found = {}
        for field in self.fields[: self.count]:
            number = ctypes.c_float if field.type == FIELD_FLOAT32 else ctypes.c_int32
            values = None if not field.data else list((number * field.length).from_address(field.data))
            found[field.name.decode()] = (field.type, values)
        return found


def fields(values: dict[str, Any]) -> Fields:
    """As TensorRT's parser makes them: whole numbers int32, others float32."""
    made = []
    for name, value in values.items():
        whole = isinstance(value, int)
        numbers = np.atleast_1d(np.asarray(value, np.int32 if whole else np.float32))
        made.append(Field(name.encode(), numbers.ctypes.data, FIELD_INT32 if whole else FIELD_FLOAT32, numbers.size))
        made[-1].kept = numbers  # type: ignore[attr-defined]
    array = (Field * len(made))(*made)
    result = Fields(len(made), array)
    result.kept = (made, array)  # type: ignore[attr-defined]
    return result


class Harness:
    """tensorrt_harness.cpp, with the library's sources, for the CPU."""

    def __init__(self, include: Path, folder: Path) -> None:
        cuda = next(
            (path for path in _cuda_headers() if (path / "cuda_runtime_api.h").exists()),
            None,
        )
        if cuda is None:
            pytest.skip(
                "CUDA's headers are not there, which TensorRT's include: install nvidia-cuda-runtime or a toolkit"
            )
        if shutil.which("g++") is None:
            pytest.skip("no g++")
        system = ["-isystem", str(include), "-isystem", str(cuda)]
        flags = ["g++", "-std=c++17", "-O1", "-fPIC", "-ffp-contract=off"]
        objects = []
        harness = Path(__file__).with_name("tensorrt_harness.cpp")
        for source in [*tensorrt_build.sources(), harness]:
            objects.append(str(folder / f"{source.parent.name}-{source.stem}.o"))
            command = [*flags, *system, "-Wall", "-Wextra", "-Werror", "-DREGIONRT_ON_CPU", "-c", str(source)]
            subprocess.run([*command, "-o", objects[-1]], check=True)
        for op in tensorrt_build.OPS:
            objects.append(str(folder / f"{op}-kernel.o"))
            kernel = str(PLUGINS / op / "kernel.cu")
            subprocess.run([*flags, "-fno-strict-aliasing", "-x", "c++", "-c", kernel, "-o", objects[-1]], check=True)
        made = str(folder / "harness.so")
        link = ["-shared", "-Wl,--allow-multiple-definition"]  # of the kernels' own test entries
        subprocess.run(["g++", *link, *objects, "-o", made], check=True)
        library: Any = ctypes.CDLL(made)
        for name in ("creator", "create", "clone_of", "attach"):
            getattr(library, name).restype = ctypes.c_void_p
        for name in ("last_error", "interface_of", "name_of", "namespace_of", "version_of", "plugin_name"):
            getattr(library, name).restype = ctypes.c_char_p
        for name in ("fields_of", "serialized"):
            getattr(library, name).restype = ctypes.POINTER(Fields)
        self.library = library
        self.creators: dict[str, Any] = {}
        while found := library.creator(len(self.creators)):
            self.creators[library.name_of(ctypes.c_void_p(found)).decode()] = ctypes.c_void_p(found)

    def make(self, name: str, values: dict[str, Any], phase: int = 0) -> Plugin:
        given = fields(values)
        made = self.library.create(self.creators[name], ctypes.byref(given), phase)
        return Plugin(self.library, made)

    def refused(self, name: str, values: dict[str, Any]) -> str:
        given = fields(values)
        assert not self.library.create(self.creators[name], ctypes.byref(given), 0)
        return self.library.last_error().decode()


def _cuda_headers() -> list[Path]:
    nvcc, wheel = shutil.which("nvcc"), find_spec("nvidia")
    found = [Path(nvcc).resolve().parents[1] / "include"] if nvcc else []
    found.append(Path("/usr/local/cuda/include"))
    for place in wheel.submodule_search_locations or () if wheel else ():
        found += sorted(Path(place).glob("cu*/include"))
    return found


class Plugin:
    """A plugin's object, destroyed with this one."""

    def __init__(self, library: Any, address: int) -> None:
        assert address, library.last_error()
        self.library, self.address = library, ctypes.c_void_p(address)

    def __del__(self) -> None:
        self.library.destroy(self.address)

    def clone(self) -> Plugin:
        return Plugin(self.library, self.library.clone_of(self.address))

    def attach(self) -> Plugin:
        return Plugin(self.library, self.library.attach(self.address))

    def serialized(self) -> dict[str, tuple[int, Any]]:
        return self.library.serialized(self.address).contents.read()

    def output_shape(self, shapes: Sequence[Sequence[int]]) -> list[int] | None:
        found = (ctypes.c_int64 * 8)()
        rank = self.library.output_shape(self.address, len(shapes), _shapes(shapes), found)
        return None if rank < 0 else list(found[:rank])

    def output_type(self, types: Sequence[int]) -> int:
        return self.library.output_type(self.address, len(types), _int32(types))

    def takes(self, shapes: Sequence[Sequence[int]], types: Sequence[int], formats: Sequence[int]) -> bool:
        """Whether all inputs and the output are taken together, asked as TensorRT asks: one after the other."""
        count = len(shapes) - 1
        return all(
            self.library.takes(self.address, place, count, _shapes(shapes), _int32(types), _int32(formats))
            for place in range(count + 1)
        )

    def run(self, inputs: Sequence[np.ndarray], output: np.ndarray, shapes: Any, types: Any, formats: Any) -> int:
        data = (ctypes.c_void_p * (len(inputs) + 1))(*(array.ctypes.data for array in (*inputs, output)))
        return self.library.run(self.address, len(inputs), _shapes(shapes), _int32(types), _int32(formats), data)


def _shapes(shapes: Sequence[Sequence[int]]) -> Any:
    rows = np.zeros((len(shapes), 8), np.int64)
    for row, shape in zip(rows, shapes, strict=True):
        row[0], row[1 : 1 + len(shape)] = len(shape), shape
    return (ctypes.c_int64 * rows.size)(*rows.ravel().tolist())


def _int32(values: Sequence[int]) -> Any:
    return (ctypes.c_int32 * len(values))(*values)


@pytest.fixture(scope="module")
def harness(include: Path, tmp_path_factory: pytest.TempPathFactory) -> Harness:
    return Harness(include, tmp_path_factory.mktemp("harness"))


def roi_fields(levels: int, **more: Any) -> dict[str, Any]:
    scales = SCALES[:levels]
    areas = [0.0, *level_thresholds(scales, 60.0, 3)]
    return {
        "spatial_scales": scales,
        "level_areas": areas,
        "output_height": 3,
        "output_width": 4,
        "sampling_ratio": 2,
        "aligned": 0,
        "maximum": 0,
    } | more


NMS_FIELDS: dict[str, Any] = {"iou_threshold": 0.5, "num_classes": 3}


def test_creators(harness: Harness) -> None:
    assert list(harness.creators) == [*(f"RegionRoiAlignPlugin{levels}" for levels in range(1, 6)), "RegionNmsPlugin"]
    for creator in harness.creators.values():
        assert harness.library.interface_of(creator) == b"PLUGIN CREATOR_V3ONE"
        assert harness.library.namespace_of(creator) == b"regionrt"
        assert harness.library.version_of(creator) == b"1"


@pytest.mark.parametrize("name", ["RegionRoiAlignPlugin4", "RegionNmsPlugin"])
def test_fields_are_what_the_node_has_and_survive_the_engine(harness: Harness, name: str) -> None:
    values = NMS_FIELDS if "Nms" in name else roi_fields(4, aligned=1, sampling_ratio=0, output_height=7)
    declared = harness.library.fields_of(harness.creators[name]).contents.read()
    types = {key: FIELD_INT32 if isinstance(value, int) else FIELD_FLOAT32 for key, value in values.items()}
    assert {key: kind for key, (kind, _) in declared.items()} == types
    expected = {
        key: (types[key], np.atleast_1d(np.asarray(value, np.int32 if isinstance(value, int) else np.float32)).tolist())
        for key, value in values.items()
    }
    plugin = harness.make(name, values)
    assert harness.library.plugin_name(plugin.address) == name.encode()
    assert plugin.serialized() == expected
    clone = plugin.clone()
    del plugin  # the copy keeps nothing of the original
    assert clone.attach().serialized() == clone.serialized() == expected
    from_engine = harness.make(name, values, phase=1)
    assert from_engine.serialized() == expected


@pytest.mark.parametrize(
    ("name", "change", "told"),
    [
        ("RegionRoiAlignPlugin2", {"level_areas": None}, "attribute level_areas is missing"),
        ("RegionRoiAlignPlugin2", {"aligned": 0.5}, "attribute aligned: expected one number of type 5"),
        ("RegionRoiAlignPlugin2", {"spatial_scales": SCALES[:3]}, "expected 2 spatial_scales and level_areas, found 3"),
        ("RegionRoiAlignPlugin2", {"output_width": 0}, "at least 1×1, found 3×0"),
        ("RegionNmsPlugin", {"num_classes": 0}, "num_classes: expected 1 to 65535, found 0"),
        ("RegionNmsPlugin", {"iou_threshold": [0.5, 0.6]}, "iou_threshold: expected one number of type 1"),
    ],
)
def test_attributes_are_checked(harness: Harness, name: str, change: dict[str, Any], told: str) -> None:
    values = (NMS_FIELDS if "Nms" in name else roi_fields(2)) | change
    message = harness.refused(name, {key: value for key, value in values.items() if value is not None})
    assert message.startswith(f"regionrt plugin {name}: a node: ")
    assert told in message


def test_shapes_and_types(harness: Harness) -> None:
    roi = harness.make("RegionRoiAlignPlugin3", roi_fields(3))
    shapes = [(2, 16, 40, 48), (2, 16, 20, 24), (2, 16, 10, 12), (2, 7, 4), (2,)]
    assert roi.output_shape(shapes) == [14, 16, 3, 4]
    assert roi.output_shape(shapes[:-1]) is None
    assert "expected 5 inputs and 1 output, found 4 and 1" in harness.library.last_error().decode()
    assert roi.output_shape([*shapes[:-2], (2, 7), (2,)]) is None
    assert "input 3: expected 3 dimensions, found 2" in harness.library.last_error().decode()
    for kind in (FP32, FP16, BF16):
        assert roi.output_type([kind, kind, kind, FP32, INT32]) == kind
    suppress = harness.make("RegionNmsPlugin", NMS_FIELDS)
    assert suppress.output_shape([(2, 9, 4), (2, 9)]) == [2, 9]
    assert suppress.output_type([FP32, INT32]) == BOOL


@pytest.mark.parametrize(
    ("kind", "layout", "channels", "taken"),
    [
        (FP32, LINEAR, 5, True),
        (FP16, LINEAR, 5, True),
        (BF16, LINEAR, 5, True),
        (FP32, HWC, 8, True),
        (FP32, HWC, 6, False),
        (FP16, HWC8, 16, True),
        (BF16, HWC8, 16, True),
        (FP16, HWC8, 12, False),
        (FP16, HWC8, -1, False),
        (FP32, HWC8, 16, False),
        (FP16, HWC, 16, False),
        (INT32, LINEAR, 8, False),
    ],
)
def test_formats(harness: Harness, kind: int, layout: int, channels: int, taken: bool) -> None:
    plugin = harness.make("RegionRoiAlignPlugin2", roi_fields(2))
    shapes = [(1, channels, 8, 8), (1, channels, 4, 4), (1, 5, 4), (1,), (5, channels, 3, 4)]
    types, formats = [kind, kind, FP32, INT32, kind], [layout, layout, LINEAR, LINEAR, layout]
    assert plugin.takes(shapes, types, formats) is taken
    if taken:
        other = HWC8 if layout != HWC8 else LINEAR
        assert not plugin.takes(shapes, types, [layout, other, LINEAR, LINEAR, layout])  # all alike, or none
        assert not plugin.takes(shapes, types, [layout, layout, LINEAR, LINEAR, other])
        assert not plugin.takes(shapes, types, [layout, layout, HWC, LINEAR, layout])
        assert not plugin.takes(shapes, [kind, kind, FP16, INT32, kind], formats)
        assert not plugin.takes(shapes, [kind, kind, FP32, FP32, kind], formats)


def test_formats_of_nms(harness: Harness) -> None:
    plugin = harness.make("RegionNmsPlugin", NMS_FIELDS)
    shapes = [(1, 9, 4), (1, 9), (1, 9)]
    assert plugin.takes(shapes, [FP32, INT32, BOOL], [LINEAR] * 3)
    assert not plugin.takes(shapes, [FP16, INT32, BOOL], [LINEAR] * 3)
    assert not plugin.takes(shapes, [FP32, INT32, INT32], [LINEAR] * 3)


@pytest.mark.parametrize("levels", [1, 2, 3, 4, 5])
@pytest.mark.parametrize(("kind", "layout"), [(FP32, LINEAR), (FP16, LINEAR), (FP32, HWC), (FP16, HWC8)])
@pytest.mark.parametrize("maximum", [0, 1])
def test_roi_align_computes_what_the_reference_does(
    harness: Harness, levels: int, kind: int, layout: int, maximum: int
) -> None:
    rng = np.random.default_rng(levels)
    images, most, channels, dtype = 2, 3, 40 if layout else 33, TYPES[kind]
    maps = [
        rng.standard_normal((images, channels, 32 >> level, (40 >> level) + 1)).astype(dtype) for level in range(levels)
    ]
    corners = rng.uniform(-20, 170, (images, most, 2, 2)).astype(np.float32)
    rois = np.ascontiguousarray(np.concatenate([corners.min(2), corners.max(2)], -1))
    counts = np.array([most, 1], np.int32)
    expected = roi_align(
        maps, rois, counts, spatial_scales=SCALES[:levels], output_size=(3, 4), sampling_ratio=2, aligned=True,
        mode="max" if maximum else "avg", canonical_scale=60.0, canonical_level=3,
    )  # fmt: skip
    plugin = harness.make(f"RegionRoiAlignPlugin{levels}", roi_fields(levels, aligned=1, maximum=maximum)).attach()
    shape = (images * most, channels, 3, 4)
    inputs = [np.ascontiguousarray(m.transpose(0, 2, 3, 1)) if layout else m for m in maps] + [rois, counts]
    found = np.full((shape[0], 3, 4, channels) if layout else shape, np.nan, dtype)
    shapes = [*(m.shape for m in maps), rois.shape, counts.shape, shape]
    types, formats = [kind] * levels + [FP32, INT32, kind], [layout] * levels + [LINEAR, LINEAR, layout]
    assert plugin.run(inputs, found, shapes, types, formats) == 0
    found = found.transpose(0, 3, 1, 2) if layout else found
    worst = np.abs(expected.astype(np.float32)).max()
    tolerance = {FP32: 1e-5, FP16: 2e-3}[kind]  # fp16 is rounded once, from float32
    np.testing.assert_allclose(found.reshape(expected.shape), expected, atol=tolerance * worst, rtol=0)


@pytest.mark.parametrize("rows", [1, 40, 300])
def test_nms_computes_what_the_reference_does(harness: Harness, rows: int) -> None:
    rng = np.random.default_rng(rows)
    corners = rng.uniform(0, 60, (2, rows, 2, 2)).astype(np.float32)
    boxes = np.ascontiguousarray(np.concatenate([corners.min(2), corners.max(2)], -1))
    classes = rng.integers(-1, 3, (2, rows)).astype(np.int32)
    found = np.full((2, rows), 7, np.uint8)
    plugin = harness.make("RegionNmsPlugin", NMS_FIELDS).clone()
    shapes = [boxes.shape, classes.shape, classes.shape]
    assert plugin.run([boxes, classes], found, shapes, [FP32, INT32, BOOL], [LINEAR] * 3) == 0
    np.testing.assert_array_equal(found, nms(boxes, classes, iou_threshold=0.5))


def test_nothing_to_do_is_done(harness: Harness) -> None:
    """No RoIs, and no images."""
    plugin = harness.make("RegionRoiAlignPlugin1", roi_fields(1))
    nothing = np.zeros(1, np.float32)
    for images, most in ((1, 0), (0, 5)):
        shapes = [(images, 8, 8, 8), (images, most, 4), (images,), (0, 8, 3, 4)]
        assert plugin.run([nothing] * 3, nothing, shapes, [FP32, FP32, INT32, FP32], [LINEAR] * 4) == 0
    suppress = harness.make("RegionNmsPlugin", NMS_FIELDS)
    assert suppress.run([nothing] * 2, nothing, [(1, 0, 4), (1, 0), (1, 0)], [FP32, INT32, BOOL], [LINEAR] * 3) == 0


def test_shapes_are_checked_before_a_launch(harness: Harness) -> None:
    nothing = np.zeros(1, np.float32)
    suppress = harness.make("RegionNmsPlugin", NMS_FIELDS)
    shapes = [(1, 4097, 4), (1, 4097), (1, 4097)]
    assert suppress.run([nothing] * 2, nothing, shapes, [FP32, INT32, BOOL], [LINEAR] * 3) == 2
    assert "expected at most 4096 boxes an image, found 4097" in harness.library.last_error().decode()
    plugin = harness.make("RegionRoiAlignPlugin2", roi_fields(2))
    shapes = [(1, 8, 8, 8), (1, 9, 4, 4), (1, 5, 4), (1,), (5, 8, 3, 4)]
    assert plugin.run([nothing] * 4, nothing, shapes, [FP32, FP32, FP32, INT32, FP32], [LINEAR] * 5) == 2
    assert "level 1 has others" in harness.library.last_error().decode()


def test_headers_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"NvInferVersion.h: No such file .*libnvinfer-headers-dev"):
        tensorrt_build.build(tmp_path)
    (tmp_path / "NvInferVersion.h").write_text("#define NV_TENSORRT_MAJOR 8 //!<\n#define NV_TENSORRT_MINOR 6\n")
    with pytest.raises(BuildError, match=r"expected TensorRT 10.0 or newer .*found 8.6"):
        tensorrt_build.build(tmp_path)
    (tmp_path / "NvInferVersion.h").write_text("#define TRT_MAJOR_ENTERPRISE 11\n#define TRT_MINOR_ENTERPRISE 1\n")
    assert tensorrt_build.tensorrt_version(tmp_path) == (11, 1)
    with pytest.raises(BuildError, match="expected --cuda to be the folder of a CUDA toolkit"):
        tensorrt_build.build(tmp_path, cuda=tmp_path)


@pytest.fixture(scope="module")
def library(include: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library as it is deployed, for one architecture."""
    if shutil.which("nvcc") is None:
        pytest.skip("nvcc is not installed: it comes with the CUDA toolkit")
    return tensorrt_build.build(include, tmp_path_factory.mktemp("library"), architectures=("86",))


def test_the_library_shows_its_entries_only_and_needs_no_tensorrt(library: Path) -> None:
    shown = subprocess.run(["nm", "-D", "--defined-only", library], capture_output=True, text=True, check=True).stdout
    assert {line.split()[-1] for line in shown.splitlines()} == {"getCreators", "setLoggerFinder"}
    needed = subprocess.run(["ldd", library], capture_output=True, text=True, check=True).stdout
    assert "nvinfer" not in needed
    assert "cudart" not in needed
    loaded = ctypes.CDLL(str(library))
    count = ctypes.c_int32()
    loaded.getCreators.restype = ctypes.c_void_p
    assert loaded.getCreators(ctypes.byref(count))
    assert count.value == 6


def test_an_unknown_architecture(include: Path, tmp_path: Path) -> None:
    if shutil.which("nvcc") is None:
        pytest.skip("nvcc is not installed: it comes with the CUDA toolkit")
    with pytest.raises(BuildError, match=r"does not compile for 20; it knows .*86"):
        tensorrt_build.build(include, tmp_path, architectures=("20",))
    assert not list(tmp_path.iterdir())


@needs_rtx
def test_tensorrt_for_rtx_builds_an_engine_with_the_library(library: Path, tmp_path: Path) -> None:
    """In a process of its own: the parser opens libtensorrt_rtx.so, a name that the wheel does not have, and aborts."""
    libraries = find_spec("tensorrt_rtx_libs")
    assert libraries is not None
    (place,) = libraries.submodule_search_locations or ()
    (found,) = Path(place).glob("libtensorrt_rtx.so.*")
    (tmp_path / "libtensorrt_rtx.so").symlink_to(found)
    environment = dict(os.environ) | {"LD_LIBRARY_PATH": str(tmp_path)}
    command = [sys.executable, str(Path(__file__).with_name("rtx_with_library.py")), str(library)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split("\n")[:3] == ["ra PLUGIN_V3 (-1, 16, 7, 7) HALF", "nms PLUGIN_V3 (-1, 20) BOOL", "engine"]


@needs_rtx
def test_an_engine_is_loaded_with_the_library_where_it_was_built(library: Path, tmp_path: Path) -> None:
    program = str(Path(__file__).with_name("load_with_library.py"))
    root = {"PYTHONPATH": os.pathsep.join(filter(None, (str(PLUGINS.parent), os.environ.get("PYTHONPATH"))))}

    def run(path: Path) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, program, str(path)]
        return subprocess.run(command, capture_output=True, text=True, env=os.environ | root, timeout=120, check=False)

    done = run(library)
    assert done.returncode == 0, done.stderr[-2000:]
    names = [f"RegionRoiAlignPlugin{levels}" for levels in range(1, 6)]
    assert sorted(done.stdout.split()) == sorted([*names, "RegionNmsPlugin"])
    (tmp_path / "broken.so").write_bytes(b"no library")
    done = run(tmp_path / "broken.so")
    assert done.returncode == 1
    assert "broken.so cannot be loaded" in done.stderr
    assert "make plugins-so" in done.stderr
