"""RegionRoiAlign: the reference against torchvision and onnx, every form against the reference."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, replace

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from one_op import CPU, NATIVE, PORTABLE, WAYS, run
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops import roi_align as torchvision_roi_align

from regionrt.export.errors import ExportError
from regionrt.plugins.roi_align.reference import level_thresholds, roi_align
from regionrt.plugins.roi_align.torch_op import roi_align as torch_op

# Features are N(0, 1). Geometry is fp32 in every form and float64 in the reference: 1e-5 is some 10 ulp of a
# coordinate times the slope of such features. The 16-bit types round the result once, values reach 4.
TOLERANCE = {np.float32: 1e-5, np.float16: 4 * 2**-11, ml_dtypes.bfloat16: 4 * 2**-8}


@dataclass(frozen=True)
class Case:
    """Feature maps of the given strides on a canvas of `size`, and what is asked of them."""

    strides: tuple[int, ...] = (4, 8)
    size: tuple[int, int] = (104, 136)
    out: tuple[int, int] = (3, 2)
    ratio: int = 2
    aligned: bool = False
    mode: str = "avg"
    counts: tuple[int, ...] = (6, 0, 3)  # full, none, some
    rows: int = 6
    canonical: tuple[float, int] = (32.0, 3)

    def attributes(self) -> dict:
        return {
            "spatial_scales": [1 / s for s in self.strides],
            "output_height": self.out[0],
            "output_width": self.out[1],
            "sampling_ratio": self.ratio,
            "aligned": int(self.aligned),
            "mode": self.mode,
            "canonical_scale": self.canonical[0],
            "canonical_level": self.canonical[1],
        }

    def arrays(self, dtype=np.float32, seed: int = 0):
        rng = np.random.default_rng(seed)
        shapes = [tuple(side // s for side in self.size) for s in self.strides]
        features = [rng.normal(size=(len(self.counts), 3, *shape)).astype(dtype) for shape in shapes]
        return features, boxes(rng, (len(self.counts), self.rows), self.size), np.array(self.counts, np.int32)

    def reference(self, features, rois, counts):
        return roi_align(
            features,
            rois,
            counts,
            spatial_scales=[1 / s for s in self.strides],
            output_size=self.out,
            sampling_ratio=self.ratio,
            aligned=self.aligned,
            mode=self.mode,
            canonical_scale=self.canonical[0],
            canonical_level=self.canonical[1],
        )

    def run(self, way, features, rois, counts):
        return run("RegionRoiAlign", way, feeds(features, rois, counts), self.attributes())[0]


def feeds(features, rois, counts):
    return {**{f"level_{i}": f for i, f in enumerate(features)}, "rois": rois, "counts": counts}


def boxes(rng, shape, size, outside: float = 0.4):
    """Boxes of sides from 0.3 px to half the canvas, many of them partly or wholly outside it."""
    height, width = size
    center = rng.uniform(-outside, 1 + outside, (*shape, 2)) * [width, height]
    half = np.exp(rng.uniform(np.log(0.15), np.log(min(size) / 4), (*shape, 2)))
    return np.concatenate([center - half, center + half], -1).astype(np.float32)


CASES = {
    "two levels": Case(),
    "one level": Case(strides=(16,), size=(112, 80)),
    "three levels, odd maps": Case(strides=(4, 8, 16), size=(76, 172), out=(2, 5)),
    "four levels": Case(strides=(4, 8, 16, 32), size=(128, 192), out=(2, 2), canonical=(40.0, 4)),
    "two maps of one stride": Case(strides=(8, 8)),
    "aligned": Case(aligned=True),
    "one sample": Case(ratio=1),
    "nine samples": Case(strides=(8,), ratio=3, out=(2, 3), aligned=True),
    "one image": Case(counts=(4,)),
    "nothing in any image": Case(counts=(0, 0)),
    "maximum": Case(mode="max"),
    "maximum of one sample": Case(mode="max", ratio=1, aligned=True),
    "maximum of nine samples": Case(mode="max", strides=(8,), ratio=3, out=(2, 3)),
    "one bin": Case(out=(1, 1)),
}


@pytest.mark.parametrize("way", WAYS, ids="-".join)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_each_form_computes_what_the_reference_does(case, way):
    features, rois, counts = case.arrays()
    found = case.run(way, features, rois, counts)
    np.testing.assert_allclose(found, case.reference(features, rois, counts), atol=TOLERANCE[np.float32], rtol=0)


@pytest.mark.parametrize("way", [NATIVE, *CPU], ids="-".join)
@pytest.mark.parametrize("aligned", [False, True])
def test_adaptive_sampling_is_not_for_the_portable_form(aligned, way):
    case = Case(ratio=0, aligned=aligned)
    features, rois, counts = case.arrays()
    found = case.run(way, features, rois, counts)
    np.testing.assert_allclose(found, case.reference(features, rois, counts), atol=TOLERANCE[np.float32], rtol=0)
    with pytest.raises(ExportError, match=r"fixed sampling ratio.*sampling_ratio=2.*native"):
        case.run(PORTABLE, features, rois, counts)
    with pytest.raises(ExportError, match=r"maximum.*fixed sampling ratio"):
        replace(case, mode="max").run(NATIVE, features, rois, counts)


@pytest.mark.parametrize(
    ("dtype", "way"),
    [(np.float16, way) for way in WAYS if way not in CPU] + [(ml_dtypes.bfloat16, way) for way in WAYS],
    ids=lambda value: "-".join(value) if isinstance(value, tuple) else value.__name__,
)
def test_features_of_16_bits_keep_boxes_in_32(dtype, way):
    """On a canvas of 1,000 px a box rounded to 11 or 8 bits would lie pixels away. CPUs have no arithmetic for fp16."""
    case = Case(strides=(8, 16), size=(336, 1008), canonical=(128.0, 4))
    features, rois, counts = case.arrays(dtype)
    expected = case.reference([f.astype(np.float32) for f in features], rois, counts)
    found = case.run(way, features, rois, counts).astype(np.float32)
    np.testing.assert_allclose(found, expected, atol=TOLERANCE[dtype], rtol=0)


@pytest.mark.parametrize(
    ("dtype", "numpy"), [(torch.float32, np.float32), (torch.float16, np.float16), (torch.bfloat16, ml_dtypes.bfloat16)]
)
@pytest.mark.parametrize(("mode", "ratio"), [("avg", 2), ("max", 2), ("max", 1)])
def test_the_torch_op_computes_what_the_reference_does(dtype, numpy, mode, ratio):
    case = Case(strides=(8, 16), size=(336, 1008), canonical=(128.0, 4), mode=mode, ratio=ratio)
    features, rois, counts = case.arrays(numpy)
    features = [f.astype(np.float32) for f in features]
    tensors = [torch.from_numpy(f).to(dtype) for f in features]
    found = torch_op(tensors, torch.from_numpy(rois), torch.from_numpy(counts), *case.attributes().values())
    assert found.dtype == dtype
    expected = case.reference(features, rois, counts)
    np.testing.assert_allclose(found.float().numpy(), expected, atol=TOLERANCE[numpy], rtol=0)


def test_the_torch_op_takes_the_maximum_of_a_fixed_number_of_samples():
    case = Case(mode="max", ratio=0)
    features, rois, counts = case.arrays()
    with pytest.raises(ValueError, match="fixed sampling ratio"):
        torch_op(
            [torch.from_numpy(f) for f in features], *map(torch.from_numpy, (rois, counts)), *case.attributes().values()
        )


@pytest.mark.parametrize("way", WAYS, ids="-".join)
@pytest.mark.parametrize("garbage", [np.nan, np.inf, 1e30])
def test_rows_beyond_the_count_influence_nothing(garbage, way):
    case = Case()
    features, rois, counts = case.arrays()
    for image, count in enumerate(counts):
        rois[image, count:] = garbage
    found = case.run(way, features, rois, counts)
    assert (found[1] == 0).all()
    assert (found[2, 3:] == 0).all()
    np.testing.assert_allclose(found, case.reference(features, rois, counts), atol=TOLERANCE[np.float32], rtol=0)


@pytest.mark.parametrize("way", WAYS, ids="-".join)
def test_a_broken_image_does_not_reach_its_neighbours(way):
    case = Case()
    features, rois, counts = case.arrays()
    whole = case.run(way, features, rois, counts)
    for feature in features:
        feature[0] = np.nan
    broken = case.run(way, features, rois, counts)
    assert np.isnan(broken[0]).any()
    np.testing.assert_array_equal(broken[1:], whole[1:])


@pytest.mark.parametrize("way", WAYS, ids="-".join)
def test_boxes_without_area_and_far_outside(way):
    """A point still covers one cell when not aligned; what lies further than a cell outside is zero."""
    case = Case(counts=(6,), out=(2, 2))
    features, rois, counts = case.arrays()
    rois[0] = [
        [20, 20, 20, 20], [0, 0, 0, 0], [135, 103, 135, 103], [30, 10, 30, 60],
        [-500, -500, -400, -400], [400, 10, 500, 60],
    ]  # fmt: skip
    found = case.run(way, features, rois, counts)
    assert (found[0, 4:] == 0).all()
    assert (found[0, :4] != 0).any((1, 2, 3)).all()
    np.testing.assert_allclose(found, case.reference(features, rois, counts), atol=TOLERANCE[np.float32], rtol=0)


@pytest.mark.parametrize("way", WAYS, ids="-".join)
def test_maps_of_any_size_in_one_model(way):
    """With a dynamic canvas the graph does not know the sizes of the maps."""
    shapes = {f"level_{i}": ("N", 3, f"h{i}", f"w{i}") for i in range(2)} | {"rois": ("N", 6, 4), "counts": ("N",)}
    for seed, size in enumerate([(32, 48), (104, 136), (88, 24)]):
        case = Case(size=size)
        features, rois, counts = case.arrays(seed=seed)
        (found,) = run("RegionRoiAlign", way, feeds(features, rois, counts), case.attributes(), shapes)
        np.testing.assert_allclose(found, case.reference(features, rois, counts), atol=TOLERANCE[np.float32], rtol=0)


@pytest.mark.parametrize("ratio", [0, 1, 2, 3])
@pytest.mark.parametrize("aligned", [False, True])
def test_the_reference_is_torchvisions_roi_align(ratio, aligned):
    case = Case(strides=(8,), size=(72, 120), ratio=ratio, aligned=aligned, counts=(6, 4), out=(2, 3))
    (feature,), rois, counts = case.arrays()
    found = case.reference([feature], rois, counts)
    for image, count in enumerate(counts):
        expected = torchvision_roi_align(
            torch.from_numpy(feature[image : image + 1]).double(),
            [torch.from_numpy(rois[image, :count]).double()],
            case.out, 1 / 8, ratio, aligned,
        )  # fmt: skip
        np.testing.assert_allclose(found[image, :count], expected.numpy(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("names", [["0"], ["0", "1"], ["0", "1", "2", "3"]])
def test_levels_are_torchvisions_multi_scale_roi_align(names):
    """Areas at and beside each border between levels, which lies at the canonical scale times a power of two."""
    strides = [4 * 2**i for i in range(len(names))]
    size = (128, 160)
    side = 224.0 * 2.0 ** np.arange(-4, 2)
    around = np.concatenate(
        [side, np.nextafter(side.astype(np.float32), np.float32(0)), side * (1 - 3e-6), side * 1.01]
    )
    rois = np.zeros((1, len(around), 4), np.float32)
    rois[0, :, 2:] = around[:, None]
    case = Case(tuple(strides), size, out=(2, 2), canonical=(224.0, 4), rows=len(around), counts=(len(around),))
    features, _, counts = case.arrays()
    pool = MultiScaleRoIAlign(names, output_size=2, sampling_ratio=2)
    tensors = OrderedDict((name, torch.from_numpy(f)) for name, f in zip(names, features, strict=True))
    expected = pool(tensors, [torch.from_numpy(rois[0])], [size])
    found = case.reference(features, rois, counts)
    np.testing.assert_allclose(found[0], expected.numpy(), atol=TOLERANCE[np.float32], rtol=0)
    for way in (NATIVE, PORTABLE):
        np.testing.assert_allclose(case.run(way, features, rois, counts), found, atol=TOLERANCE[np.float32], rtol=0)


def test_two_maps_of_one_stride_are_read_as_torchvision_does():
    """torchvision's MobileNetV3 pyramid has strides 32, 32: RoIs are read from the first map alone."""
    assert level_thresholds([1 / 32, 1 / 32], 224, 4) == []
    case = Case(strides=(32, 32), size=(192, 224), out=(2, 2))
    features, rois, counts = case.arrays()
    pool = MultiScaleRoIAlign(["0", "1"], output_size=2, sampling_ratio=2)
    pool.canonical_scale, pool.canonical_level = case.canonical
    tensors = OrderedDict((str(i), torch.from_numpy(f)) for i, f in enumerate(features))
    expected = pool(tensors, [torch.from_numpy(r[:c]) for r, c in zip(rois, counts, strict=True)], [case.size] * 3)
    found = case.reference(features, rois, counts)
    np.testing.assert_allclose(np.concatenate([f[:c] for f, c in zip(found, counts, strict=True)]), expected, atol=1e-5)


@pytest.mark.parametrize("form", ["native", "portable"])
def test_onnxs_own_evaluator_agrees(form):
    case = Case()
    features, rois, counts = case.arrays()
    found = case.run((form, "onnx"), features, rois, counts)
    np.testing.assert_allclose(found, case.reference(features, rois, counts), atol=TOLERANCE[np.float32], rtol=0)


HYPOTHESIS = Case(strides=(4, 8), size=(40, 56), out=(2, 3), rows=3)


@settings(max_examples=40, deadline=None, database=None, derandomize=True)
@given(
    corners=st.lists(st.tuples(*[st.floats(-30, 80, width=32)] * 4), min_size=1, max_size=9),
    counts=st.lists(st.integers(0, 3), min_size=3, max_size=3),
    way=st.sampled_from([NATIVE, PORTABLE, *CPU]),
)
def test_any_boxes(corners, counts, way):
    """Corners in any order: what is empty or inside out when not aligned has one cell."""
    rois = np.resize(np.array(corners, np.float32), (3, 3, 4))
    features, _, _ = HYPOTHESIS.arrays()
    counts = np.array(counts, np.int32)
    # A sample within an ulp of a map's edge is in or out by rounding: such boxes are moved by an odd fraction.
    rois += np.float32(0.0137)
    found = HYPOTHESIS.run(way, features, rois, counts)
    np.testing.assert_allclose(found, HYPOTHESIS.reference(features, rois, counts), atol=2e-5, rtol=0)
