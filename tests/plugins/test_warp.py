"""RegionWarp: the reference against scikit-image and torch's resize, every form against the reference."""

from __future__ import annotations

from dataclasses import dataclass, replace

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from one_op import CPU, NATIVE, OPENVINO, PORTABLE, WAYS, run
from torch.nn.functional import interpolate

from regionrt.export.errors import ExportError
from regionrt.plugins.warp.reference import warp
from regionrt.plugins.warp.torch_op import warp as torch_op

# Of max|reference|. float32: rounding of products and sums. The 16-bit types round the result once.
TOLERANCE = {np.float32: 1e-5, np.float16: 2**-11, ml_dtypes.bfloat16: 2**-8}


@dataclass(frozen=True)
class Case:
    """Images of `size` px and what is asked of them."""

    size: tuple[int, int] = (37, 52)
    out: tuple[int, int] = (14, 11)
    context: int = 2
    counts: tuple[int, ...] = (6, 0, 3)  # full, none, some
    rows: int = 6
    channels: int = 3

    def attributes(self) -> dict:
        return {"output_height": self.out[0], "output_width": self.out[1], "context": self.context}

    def arrays(self, dtype=np.float32, seed: int = 0):
        """Smooth images, as photos are: the ONNX forms' geometry is float32, and its error counts times the slope."""
        rng = np.random.default_rng(seed)
        shape = (max(len(self.counts), 1), self.channels, *(max(-(-side // 8), 2) for side in self.size))
        coarse = torch.from_numpy(rng.normal(size=shape))
        images = interpolate(coarse, self.size, mode="bicubic").numpy()[: len(self.counts)]
        corners = rng.uniform(-0.4, 1.4, (len(self.counts), self.rows, 2, 2)) * [self.size[1], self.size[0]]
        rois = np.concatenate([corners.min(2), corners.max(2)], -1).astype(np.float32)
        return images.astype(dtype), rois, np.array(self.counts, np.int32)

    def reference(self, images, rois, counts):
        return warp(images, rois, counts, output_size=self.out, context=self.context)

    def run(self, way, images, rois, counts, shapes=None):
        inputs = {"images": images, "rois": rois, "counts": counts}
        return run("RegionWarp", way, inputs, self.attributes(), shapes)[0]

    def check(self, way, images, rois, counts, shapes=None):
        expected = self.reference(images, rois, counts)
        found = self.run(way, images, rois, counts, shapes)
        assert found.shape == expected.shape
        atol = 1e-5 * np.abs(expected).max(initial=1e-30)
        np.testing.assert_allclose(found, expected, atol=atol, rtol=0)
        return found


DYNAMIC = {"images": ("N", 3, "h", "w"), "rois": ("N", 6, 4), "counts": ("N",)}
CASES = {
    "context of two pixels": Case(),
    "no context": Case(context=0),
    "all but one pixel is context": Case(out=(9, 9), context=4),
    "as the paper": Case(out=(227, 227), context=16, counts=(2,), rows=2),
    "one pixel out": Case(out=(1, 1), context=0),
    "an image of one pixel": Case(size=(1, 1)),
    "an image of one row": Case(size=(1, 30)),
    "one channel": Case(channels=1),
    "five channels": Case(channels=5),
    "one image": Case(counts=(4,)),
    "nothing in any image": Case(counts=(0, 0)),
}


@pytest.mark.parametrize("way", WAYS, ids="-".join)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_each_form_computes_what_the_reference_does(case, way):
    case.check(way, *case.arrays())


@pytest.mark.parametrize("way", CPU, ids="-".join)
def test_noise_on_a_large_image(way):
    """Where the geometry is float64, neither size nor slopes matter."""
    case = Case(size=(700, 1100), counts=(6,))
    _, rois, counts = case.arrays()
    case.check(way, np.random.default_rng(1).standard_normal((1, 3, 700, 1100), np.float32), rois, counts)


@pytest.mark.parametrize("way", CPU, ids="-".join)
@pytest.mark.parametrize("case", [Case(counts=(0, 0), rows=0), Case(counts=())], ids=["no rows", "no images"])
def test_nothing_to_do(case, way):
    assert case.run(way, *case.arrays()).shape == (len(case.counts), case.rows, 3, 14, 11)


@pytest.mark.parametrize("context", [0, 3])
def test_the_reference_is_scikit_images_warp(context):
    transform = pytest.importorskip("skimage.transform")
    case = Case(context=context, counts=(12,), rows=12, out=(15, 20))
    images, rois, counts = case.arrays(np.float64)
    found = case.reference(images, rois, counts)
    inside = 0
    for (left, top, right, bottom), crop in zip(rois[0].astype(np.float64), found[0], strict=True):
        across, down = max(right - left, 1) / (20 - 2 * context), max(bottom - top, 1) / (15 - 2 * context)
        # from output pixels to the image's, both counted from the centre of the first
        matrix = np.array([
            [across, 0, left + (0.5 - context) * across - 0.5],
            [0, down, top + (0.5 - context) * down - 0.5],
            [0, 0, 1],
        ])  # fmt: skip
        columns, rows = matrix[0, 0] * np.arange(20) + matrix[0, 2], matrix[1, 1] * np.arange(15) + matrix[1, 2]
        there = ((rows >= -0.5) & (rows <= 36.5))[:, None] & ((columns >= -0.5) & (columns <= 51.5))
        warped = transform.warp(images[0].transpose(1, 2, 0), matrix, output_shape=(15, 20), order=1, mode="edge")
        np.testing.assert_allclose(crop, warped.transpose(2, 0, 1) * there, atol=1e-9)
        inside += there.sum()
    assert 500 < inside < 12 * 300


def test_the_whole_image_is_torchs_resize():
    case = Case(context=0, counts=(1,), rows=1)
    images, _, counts = case.arrays()
    found = case.reference(images, np.array([[[0, 0, 52, 37]]], np.float32), counts)
    expected = interpolate(torch.from_numpy(images), case.out, mode="bilinear", align_corners=False, antialias=False)
    np.testing.assert_allclose(found[0], expected.numpy(), atol=1e-5)


@pytest.mark.parametrize("way", WAYS, ids="-".join)
def test_the_box_fills_what_is_not_context(way):
    """A box of the inner size is cut out pixel by pixel, with its surroundings; what is outside the image is 0."""
    case = Case(size=(8, 10), out=(6, 7), context=2, counts=(1,), rows=1, channels=1)
    image = np.arange(1, 81, dtype=np.float32).reshape(1, 1, 8, 10)
    found = case.run(way, image, np.array([[[7, 1, 10, 3]]], np.float32), np.array([1], np.int32))
    whole = np.pad(image[0, 0], 2)
    np.testing.assert_allclose(found[0, 0, 0], whole[1:7, 7:14], atol=1e-4)


@pytest.mark.parametrize("way", WAYS, ids="-".join)
def test_boxes_that_are_reversed_or_points_or_far_outside(way):
    case = Case(rows=8, counts=(8,))
    images, rois, counts = case.arrays()
    rois[0] = [
        [20, 20, 20, 20], [5.2, 5.3, 5.4, 5.5], [40, 30, 20, 10], [1e9, 1e9, 2e9, 2e9], [-500, -500, -400, -400],
        [-np.inf, 0, np.inf, 50], [np.nan, 0, 50, 50], [0, 0, 50, np.nan],
    ]  # fmt: skip
    found = case.check(way, images, rois, counts)
    assert not found[0, 3:].any()
    assert (found[0, :3] != 0).all()


@pytest.mark.parametrize("way", WAYS, ids="-".join)
@pytest.mark.parametrize("garbage", [np.nan, np.inf, 1e30])
def test_rows_beyond_the_count_are_zero(garbage, way):
    case = Case()
    images, rois, counts = case.arrays()
    for image, count in enumerate(counts):
        rois[image, count:] = garbage
    found = case.check(way, images, rois, counts)
    assert not found[1].any()


@pytest.mark.parametrize("way", WAYS, ids="-".join)
def test_a_broken_image_does_not_reach_its_neighbours(way):
    case = Case()
    images, rois, counts = case.arrays()
    whole = case.run(way, images, rois, counts)
    images[0] = np.nan
    broken = case.run(way, images, rois, counts)
    assert np.isnan(broken[0]).any()
    np.testing.assert_array_equal(broken[1:], whole[1:])


@pytest.mark.parametrize("way", WAYS, ids="-".join)
@pytest.mark.parametrize("size", [(13, 17), (40, 29)])
def test_images_of_any_size_in_one_model(size, way):
    case = Case(size=size)
    case.check(way, *case.arrays(), DYNAMIC)


@pytest.mark.parametrize(
    ("dtype", "way"),
    [(np.float16, way) for way in WAYS if way not in CPU] + [(ml_dtypes.bfloat16, way) for way in WAYS],
    ids=lambda value: "-".join(value) if isinstance(value, tuple) else value.__name__,
)
def test_images_of_16_bits(dtype, way):
    case = Case()
    images, rois, counts = case.arrays(dtype)
    expected = case.reference(images.astype(np.float32), rois, counts)
    found = case.run(way, images, rois, counts).astype(np.float32)
    roundings = 2 if way == OPENVINO else 1  # where the CPU computes in bf16, so does that, in between as well
    np.testing.assert_allclose(found, expected, atol=roundings * TOLERANCE[dtype] * np.abs(expected).max(), rtol=0)


@pytest.mark.parametrize(
    ("dtype", "numpy"), [(torch.float32, np.float32), (torch.float16, np.float16), (torch.bfloat16, ml_dtypes.bfloat16)]
)
def test_the_torch_op_computes_what_the_reference_does(dtype, numpy):
    case = Case(rows=40, counts=(40, 0, 17), size=(300, 400))
    _, rois, counts = case.arrays()
    images = np.random.default_rng(2).standard_normal((3, 3, 300, 400), np.float32)
    rois[0, :4] = [[np.nan, 0, 9, 9], [-np.inf, 0, 50, 50], [300, 200, 10, 10], [7, 7, 7, 7]]
    tensor = torch.from_numpy(images).to(dtype)
    found = torch_op(tensor, torch.from_numpy(rois), torch.from_numpy(counts), *case.attributes().values())
    assert found.dtype == dtype
    expected = case.reference(tensor.float().numpy(), rois, counts)
    np.testing.assert_allclose(found.float(), expected, atol=TOLERANCE[numpy] * np.abs(expected).max(), rtol=0)


@pytest.mark.parametrize("context", [-1, 6])
def test_a_context_that_leaves_nothing_is_refused(context):
    case = replace(Case(), context=context)
    arrays = case.arrays()
    for form in (NATIVE, PORTABLE):
        with pytest.raises(ExportError, match="context"):
            case.run(form, *arrays)
    for call in (
        lambda: case.run(CPU[-1], *arrays),
        lambda: case.reference(*arrays),
        lambda: torch_op(*map(torch.from_numpy, arrays), *case.attributes().values()),
    ):
        with pytest.raises(ValueError, match="context"):
            call()


def test_onnxs_own_evaluator_agrees():
    case = Case()
    case.check(("portable", "onnx"), *case.arrays())


HYPOTHESIS = Case(size=(19, 23), out=(7, 6), context=1, rows=3)


@settings(max_examples=60, deadline=None, database=None, derandomize=True)
@given(
    corners=st.lists(st.tuples(*[st.floats(-30, 60, width=32)] * 4), min_size=1, max_size=9),
    counts=st.lists(st.integers(0, 3), min_size=3, max_size=3),
    way=st.sampled_from([NATIVE, PORTABLE, OPENVINO, *CPU]),
)
def test_any_boxes(corners, counts, way):
    rois = np.resize(np.array(corners, np.float32), (3, 3, 4))
    # A sample on an image's edge to the bit is in or out by rounding: such boxes are moved by an odd fraction.
    rois += np.float32(0.0137) * np.array([1, 1.3, 1.7, 2.3], np.float32)
    images, _, _ = HYPOTHESIS.arrays()
    HYPOTHESIS.check(way, images, rois, np.array(counts, np.int32))
