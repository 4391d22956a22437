"""Our plugins as quickly deployable ones: TensorRT's own code takes each from its node to a launch, which runs here."""

from __future__ import annotations

import re
from functools import cache

import lean_tensorrt
import numpy as np
import pytest
from kernels import launch
from lean_tensorrt import TensorFormat, drive

from regionrt.plugins.nms.reference import nms
from regionrt.plugins.roi_align.reference import level_thresholds, roi_align
from regionrt.runtime.engine_plugins import quick
from regionrt.runtime.engine_plugins.registration import PLUGINS, QUICK, kind_for
from regionrt.runtime.errors import BackendError
from regionrt.runtime.gpu.kernels import ptx_of

LINEAR, HWC, HWC8 = TensorFormat.LINEAR, TensorFormat.HWC, TensorFormat.HWC8
USED: list[str] = []


@cache
def ptx(op: str) -> str:
    try:
        return ptx_of(op, "8.7", (13, 0))
    except BackendError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def trt():
    library = lean_tensorrt.library()
    quick.register(library, tuple(PLUGINS.values()), ptx, lambda plugin: USED.append(plugin.name))
    return library


def test_every_plugin_is_found_as_its_node_names_it(trt) -> None:
    assert kind_for(trt) == QUICK
    for plugin in PLUGINS.values():
        creator = trt.get_plugin_registry().get_creator(plugin.name, "1", "regionrt")
        assert creator is not None
        assert [field.name for field in creator.field_names] == list(plugin.fields)


@pytest.mark.parametrize("dynamic", [True, False])
@pytest.mark.parametrize(("images", "rows", "classes"), [(1, 33, 1), (3, 200, 4)])
def test_nms(trt, images: int, rows: int, classes: int, dynamic: bool) -> None:
    rng = np.random.default_rng(rows)
    corners = rng.integers(0, 60, (images, rows, 2))
    boxes = np.concatenate([corners, corners + rng.integers(0, 20, (images, rows, 2))], -1).astype(np.float32)
    labels = rng.integers(-1, classes, (images, rows)).astype(np.int32)
    fields = {"num_classes": classes, "iou_threshold": 0.45}
    inputs = [(boxes.shape, trt.float32), (labels.shape, trt.int32)]
    driven = drive("RegionNmsPlugin", "regionrt", fields, inputs, [LINEAR] * 3, dynamic)
    assert driven.combinations == (((trt.float32, LINEAR), (trt.int32, LINEAR), (trt.bool, LINEAR)),)
    assert (driven.shape, driven.dtype, driven.shared_bytes) == (labels.shape, trt.bool, 0)
    keep = np.full(labels.shape, 0xCB, np.uint8)
    launch("nms", driven.kernel, driven.grid, driven.block[0], [boxes, labels, *driven.scalars, keep])
    np.testing.assert_array_equal(keep, nms(boxes, labels, iou_threshold=0.45))
    assert USED[-1] == "RegionNmsPlugin"


SCALES = (0.25, 0.125, 0.0625, 0.03125, 0.015625)
CASES = [
    (1, "float32", False),
    (2, "float32", True),
    (4, "float16", False),
    (4, "float16", True),
    (5, "float32", False),
]


@pytest.mark.parametrize("dynamic", [True, False])
@pytest.mark.parametrize(("levels", "kind", "channels_last"), CASES)
def test_roi_align(trt, levels: int, kind: str, channels_last: bool, dynamic: bool) -> None:
    rng = np.random.default_rng(levels)
    images, rows, channels, size = 2, 9, 16, (3, 4)
    sides = [(64 >> level, 96 >> level) for level in range(levels)]
    features = [rng.standard_normal((images, channels, *side)).astype(kind) for side in sides]
    corners = rng.uniform(-20, 300, (images, rows, 2))
    rois = np.concatenate([corners, corners + rng.uniform(0, 200, (images, rows, 2))], -1).astype(np.float32)
    counts = np.array([rows, 5], np.int32)
    areas = [0.0, *level_thresholds(SCALES[:levels], 56.0, 4)]
    fields = {
        "spatial_scales": list(SCALES[:levels]),
        "level_areas": areas,
        "output_height": size[0],
        "output_width": size[1],
        "sampling_ratio": 2,
        "aligned": 1,
        "maximum": 0,
    }
    dtype, last = (trt.float32, HWC) if kind == "float32" else (trt.float16, HWC8)
    layout = last if channels_last else LINEAR
    inputs = [
        *((feature.shape, dtype) for feature in features),
        (rois.shape, trt.float32),
        (counts.shape, trt.int32),
    ]
    formats = [layout] * levels + [LINEAR, LINEAR, layout]
    name = f"RegionRoiAlignPlugin{levels}"
    driven = drive(name, "regionrt", fields, inputs, formats, dynamic)
    assert (driven.shape, driven.dtype) == ((images * rows, channels, *size), dtype)
    expected_offers = [(t, LINEAR) for t in (trt.float32, trt.float16, trt.bfloat16)]
    expected_offers += [(trt.float32, HWC), (trt.float16, HWC8), (trt.bfloat16, HWC8)]
    assert [offer[-1] for offer in driven.combinations] == expected_offers
    assert all(offer[:levels] == (offer[-1],) * levels for offer in driven.combinations)
    assert all(offer[levels:-1] == ((trt.float32, LINEAR), (trt.int32, LINEAR)) for offer in driven.combinations)

    maps = [np.ascontiguousarray(f.transpose(0, 2, 3, 1)) if channels_last else f for f in features]
    shape = (images, rows, *size, channels) if channels_last else (images, rows, channels, *size)
    out = np.full(shape, np.nan, kind)
    launch("roi_align", driven.kernel, driven.grid, driven.block[0], [*maps, rois, counts, *driven.scalars, out])
    if channels_last:
        out = out.transpose(0, 1, 4, 2, 3)
    expected = roi_align(
        features,
        rois,
        counts,
        spatial_scales=SCALES[:levels],
        output_size=size,
        sampling_ratio=2,
        aligned=True,
        canonical_scale=56.0,
        canonical_level=4,
    )
    tolerance = {"float32": 1e-5, "float16": 2e-3}[kind] * np.abs(expected).max()  # the kernels' own, of their dtype
    np.testing.assert_allclose(out.astype(np.float64), expected.astype(np.float64), rtol=0, atol=tolerance)
    assert not out[1, 5:].any()


def test_channels_that_no_vector_takes_are_offered_linear_only(trt) -> None:
    fields = {"spatial_scales": [0.25], "level_areas": [0.0], "output_height": 2, "output_width": 2}
    fields |= {"sampling_ratio": 0, "aligned": 0, "maximum": 1}
    inputs = [((1, 6, 8, 8), trt.float32), ((1, 3, 4), trt.float32), ((1,), trt.int32)]
    driven = drive("RegionRoiAlignPlugin1", "regionrt", fields, inputs, [LINEAR] * 4)
    assert {layout for offer in driven.combinations for _, layout in offer} == {LINEAR}


def test_an_engine_holds_the_one_kernel_that_it_launches() -> None:
    whole = ptx("roi_align")
    kernels = re.findall(r"\.entry (\w+)\(", whole)
    assert len(kernels) == 30
    for kernel in ("roi_align_nchw_f32_1", "roi_align_nhwc_bf16_5"):
        alone = quick.only_kernel(whole, kernel)
        assert re.findall(r"\.entry (\w+)\(", alone) == [kernel]
        assert set(re.findall(r"\.func[^_]*?(_Z\w+)\(", alone)) == set(re.findall(r"\.func[^_]*?(_Z\w+)\(", whole))
        assert ".target sm_87" in alone
        assert alone.count("{") == alone.count("}")
    with pytest.raises(ValueError, match="holds no kernel 'roi_align_nchw_f64_1'"):
        quick.only_kernel(whole, "roi_align_nchw_f64_1")
