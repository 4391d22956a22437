"""Our plugins as IPluginV3 in Python: TensorRT's plugin registry, fields there and back, and launches."""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import kernels
import lean_tensorrt
import numpy as np
import pytest
from lean_tensorrt import Expression, ExpressionBuilder, Expressions, TensorFormat

from regionrt.plugins.nms.reference import nms
from regionrt.plugins.roi_align.reference import roi_align
from regionrt.runtime.engine_plugins import python_v3
from regionrt.runtime.engine_plugins.registration import IN_PROCESS, PLUGINS, Registration, _register
from regionrt.runtime.errors import BackendError

LINEAR, HWC, HWC8 = TensorFormat.LINEAR, TensorFormat.HWC, TensorFormat.HWC8
NMS = {"iou_threshold": np.float32([0.45]), "num_classes": np.int32([3])}
ROI_ALIGN = {
    "spatial_scales": np.float32([0.25, 0.125]),
    "level_areas": np.float32([0, 900]),
    "output_height": np.int32([3]),
    "output_width": np.int32([2]),
    "sampling_ratio": np.int32([2]),
    "aligned": np.int32([0]),
    "maximum": np.int32([1]),
}


class OnCpu:
    """A launcher whose GPU is this CPU: an address of the device is one of this process."""

    def __init__(self) -> None:
        self.prepared: list[tuple[str, str]] = []

    def prepare(self, op: str, kernel: str) -> None:
        self.prepared.append((op, kernel))

    def launch(self, op: str, kernel: str, grid: Sequence[int], block: int, arguments: list[Any], stream: int) -> None:
        assert (op, kernel) in self.prepared, "a kernel is loaded before a stream may be captured"
        assert stream == 77
        values = [ctypes.string_at(ctypes.addressof(value), ctypes.sizeof(value)) for value in arguments]
        assert kernels.find(kernel).run(grid, [block], values) == 0


@pytest.fixture
def launcher() -> OnCpu:
    return OnCpu()


def create(trt: Any, name: str, fields: dict[str, np.ndarray], launcher: Any, phase: str = "BUILD") -> Any:
    creator = python_v3.creator(trt, PLUGINS[name], launcher, lambda plugin: None)
    return creator.create_plugin("node", collection(trt, fields), getattr(trt.TensorRTPhase, phase))


def collection(trt: Any, fields: dict[str, np.ndarray]) -> Any:
    """What the ONNX parser, or a serialised engine, hands over."""
    kinds = {"i": trt.PluginFieldType.INT32, "f": trt.PluginFieldType.FLOAT32}
    return trt.PluginFieldCollection([trt.PluginField(k, v, kinds[v.dtype.kind]) for k, v in fields.items()])


def desc(array: np.ndarray, dtype: Any, layout: TensorFormat = LINEAR, shape: Sequence[int] | None = None) -> Any:
    return SimpleNamespace(dims=tuple(array.shape if shape is None else shape), type=dtype, format=layout)


def test_all_are_registered_once() -> None:
    trt = lean_tensorrt.registry_library()
    registration = Registration(IN_PROCESS)
    registry = trt.get_plugin_registry()
    before = [registry.get_creator(plugin.name, "1", "regionrt") for plugin in PLUGINS.values()]
    for creator in filter(None, before):  # another test of this process may have registered the quickly deployable ones
        registry.deregister_creator(creator)
    for plugin in PLUGINS.values():
        _register(trt, plugin, OnCpu(), registration)  # type: ignore[arg-type]
    for plugin in PLUGINS.values():
        found = registry.get_creator(plugin.name, "1", "regionrt")
        assert found is not None
        assert {field.name for field in found.field_names} == set(plugin.fields)
    with pytest.raises(BackendError, match="does not take the plugin regionrt::RegionNmsPlugin version 1"):
        _register(trt, PLUGINS["RegionNmsPlugin"], OnCpu(), registration)  # type: ignore[arg-type]
    assert registration.used() == []
    for plugin in PLUGINS.values():
        registry.deregister_creator(registry.get_creator(plugin.name, "1", "regionrt"))
        assert registry.get_creator(plugin.name, "1", "regionrt") is None
    for creator in filter(None, before):
        registry.register_creator(creator, "regionrt")


@pytest.mark.parametrize(("name", "fields"), [("RegionNmsPlugin", NMS), ("RegionRoiAlignPlugin2", ROI_ALIGN)])
def test_fields_survive_an_engine(name: str, fields: dict[str, np.ndarray], launcher: OnCpu) -> None:
    trt = lean_tensorrt.registry_library()
    plugin = create(trt, name, fields, launcher)
    for one in (plugin, plugin.clone(), plugin.attach_to_context(None)):
        written = {field.name: (field.type, np.array(field.data)) for field in one.get_fields_to_serialize()}
        assert written.keys() == fields.keys()
        for key, value in fields.items():
            kind = trt.PluginFieldType.INT32 if value.dtype.kind == "i" else trt.PluginFieldType.FLOAT32
            assert written[key][0] == kind
            np.testing.assert_array_equal(written[key][1], value)
            assert written[key][1].dtype == value.dtype
        again = create(trt, name, {key: value for key, (_, value) in written.items()}, launcher, "RUNTIME")
        assert again.fields == plugin.fields
        assert (again.plugin_name, again.plugin_version, again.plugin_namespace) == (name, "1", "regionrt")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"num_classes": None}, "expected the fields iou_threshold, num_classes, found iou_threshold"),
        ({"num_classes": np.float32([2.5])}, "num_classes: expected a whole number"),
        ({"iou_threshold": np.float32([0.1, 0.2])}, "iou_threshold: expected a number"),
        ({"iou_threshold": np.float32([])}, "iou_threshold: expected a number"),
    ],
)
def test_fields_that_no_node_of_ours_has(changed: dict[str, Any], message: str, launcher: OnCpu) -> None:
    given = {key: value for key, value in (NMS | changed).items() if value is not None}
    with pytest.raises(ValueError, match=f"RegionNmsPlugin: {message}"):
        PLUGINS["RegionNmsPlugin"].checked(given)


def test_output_shapes_with_a_batch_that_is_not_known(launcher: OnCpu) -> None:
    trt = lean_tensorrt.registry_library()

    def shape(*sizes: int) -> Expressions:
        return Expressions([Expression(size, axis > 0) for axis, size in enumerate(sizes)])

    (of_nms,) = create(trt, "RegionNmsPlugin", NMS, launcher).get_output_shapes(
        [shape(3, 50, 4), shape(3, 50)], [], ExpressionBuilder()
    )
    assert [(size.value, size.known) for size in of_nms] == [(3, False), (50, True)]
    plugin = create(trt, "RegionRoiAlignPlugin2", ROI_ALIGN, launcher)
    inputs = [shape(3, 8, 40, 60), shape(3, 8, 20, 30), shape(3, 11, 4), shape(3)]
    (of_roi_align,) = plugin.get_output_shapes(inputs, [], ExpressionBuilder())
    assert [(size.value, size.known) for size in of_roi_align] == [(33, False), (8, True), (3, True), (2, True)]
    assert plugin.get_output_data_types([trt.float16, trt.float16, trt.float32, trt.int32]) == [trt.float16]


def test_formats_are_taken_together_only(launcher: OnCpu) -> None:
    """Every combination of types and formats of features and output: exactly the kernels' are supported."""
    trt = lean_tensorrt.registry_library()
    plugin = create(trt, "RegionRoiAlignPlugin2", ROI_ALIGN, launcher)
    shapes = [(1, 8, 40, 60), (1, 8, 20, 30), (1, 11, 4), (1,), (11, 8, 3, 2)]
    images = list(itertools.product((trt.float32, trt.float16, trt.bfloat16, trt.int8), (LINEAR, HWC, HWC8)))
    taken = []
    for first, second, out in itertools.product(images, repeat=3):
        kinds = [first, second, (trt.float32, LINEAR), (trt.int32, LINEAR), out]
        tensors = [
            SimpleNamespace(desc=SimpleNamespace(dims=dims, type=dtype, format=layout))
            for dims, (dtype, layout) in zip(shapes, kinds, strict=True)
        ]
        if all(plugin.supports_format_combination(position, tensors, 4) for position in range(5)):
            assert first == second == out
            taken.append(out)
    assert taken == [
        (trt.float32, LINEAR),
        (trt.float32, HWC),
        (trt.float16, LINEAR),
        (trt.float16, HWC8),
        (trt.bfloat16, LINEAR),
        (trt.bfloat16, HWC8),
    ]


def test_nms_is_launched_on_the_shapes_of_the_moment(launcher: OnCpu) -> None:
    trt = lean_tensorrt.registry_library()
    plugin = create(trt, "RegionNmsPlugin", NMS, launcher).attach_to_context(None)
    rng = np.random.default_rng(1)
    for images, rows in ((2, 70), (1, 150)):
        corners = rng.integers(0, 50, (images, rows, 2))
        boxes = np.concatenate([corners, corners + rng.integers(0, 20, (images, rows, 2))], -1).astype(np.float32)
        classes = rng.integers(-1, 3, (images, rows)).astype(np.int32)
        keep = np.full((images, rows), 0xCB, np.uint8)
        inputs, outputs = [desc(boxes, trt.float32), desc(classes, trt.int32)], [desc(keep, trt.bool)]
        plugin.on_shape_change(inputs, outputs)
        plugin.enqueue(inputs, outputs, [boxes.ctypes.data, classes.ctypes.data], [keep.ctypes.data], 0, 77)
        np.testing.assert_array_equal(keep, nms(boxes, classes, iou_threshold=0.45))


@pytest.mark.parametrize("channels_last", [False, True])
def test_roi_align_is_launched_in_both_layouts(channels_last: bool, launcher: OnCpu) -> None:
    trt = lean_tensorrt.registry_library()
    plugin = create(trt, "RegionRoiAlignPlugin2", ROI_ALIGN, launcher).attach_to_context(None)
    rng = np.random.default_rng(2)
    images, rows, channels = 2, 7, 8
    features = [rng.standard_normal((images, channels, h, w)).astype(np.float32) for h, w in ((20, 30), (10, 15))]
    corners = rng.uniform(0, 60, (images, rows, 2))
    rois = np.concatenate([corners, corners + rng.uniform(1, 60, (images, rows, 2))], -1).astype(np.float32)
    counts = np.array([7, 4], np.int32)
    layout = HWC if channels_last else LINEAR
    maps = [np.ascontiguousarray(f.transpose(0, 2, 3, 1)) if channels_last else f for f in features]
    out = np.full((images, rows, 3, 2, channels) if channels_last else (images, rows, channels, 3, 2), np.nan, "f4")
    inputs = [desc(f, trt.float32, layout) for f in features] + [desc(rois, trt.float32), desc(counts, trt.int32)]
    outputs = [desc(out, trt.float32, layout, (images * rows, channels, 3, 2))]
    plugin.on_shape_change(inputs, outputs)
    assert launcher.prepared == [("roi_align", f"roi_align_{'nhwc' if channels_last else 'nchw'}_f32_2")]
    addresses = [array.ctypes.data for array in (*maps, rois, counts)]
    plugin.enqueue(inputs, outputs, addresses, [out.ctypes.data], 0, 77)
    expected = roi_align(
        features,
        rois,
        counts,
        spatial_scales=(0.25, 0.125),
        output_size=(3, 2),
        mode="max",
        canonical_scale=30.0 * 2 ** (1e-6),
        canonical_level=3,
    )
    found = out.transpose(0, 1, 4, 2, 3) if channels_last else out
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_a_launch_before_its_shapes_is_an_error(launcher: OnCpu) -> None:
    plugin = create(lean_tensorrt.registry_library(), "RegionNmsPlugin", NMS, launcher)
    with pytest.raises(BackendError, match="before it has said the shapes"):
        plugin.enqueue([], [], [], [], 0, 77)
