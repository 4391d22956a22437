"""What all native ops promise together: any variant and number of threads give the same bytes.

That each computes what its reference defines is tested in tests/plugins, variant by variant.
"""

from __future__ import annotations

import threading

import ml_dtypes
import numpy as np
import pytest
from native_calls import OPS, VARIANTS, Arrays, align, crop, detect, heads, maps, pool, propose, pyramid, rpn

from regionrt.runtime import native
from regionrt.runtime.native.arrays import narrowed, widened


def same_bytes(found: Arrays, expected: Arrays) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("op", [name for name in OPS if not name.startswith("roi_align")])
def test_every_variant_gives_the_same_bytes(op, variant):
    """Also NumPy. (RoIAlign differs in the last bits: it may fuse multiply and add.)"""
    with native.using(VARIANTS[0]):
        expected = OPS[op]()
    with native.using(variant):
        same_bytes(OPS[op](), expected)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("threads", [2, 3, 16])
def test_any_number_of_threads_gives_the_same_bytes(op, threads, variant):
    if variant == "numpy" and threads > 2:
        pytest.skip("NumPy starts no threads")
    with native.using(variant):
        same_bytes(OPS[op](threads=threads), OPS[op](threads=1))


@pytest.mark.usefixtures("every_core")
def test_eight_callers_at_once_get_what_one_gets():
    """All ops at once from eight threads, each call on two threads of the pool: no call disturbs another."""
    expected = {name: op(threads=1) for name, op in OPS.items()}
    problems: list[str] = []
    start = threading.Barrier(8)

    def call(shift: int) -> None:
        start.wait()
        for turn in range(3 * len(OPS)):
            name = list(OPS)[(turn + shift) % len(OPS)]
            try:
                same_bytes(OPS[name](threads=2), expected[name])
            except Exception as error:
                problems.append(f"{name}: {error}")

    callers = [threading.Thread(target=call, args=(k,)) for k in range(8)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(120)
    assert not problems


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("mode", ["avg", "max"])
@pytest.mark.parametrize("channels", [1, 3, 16, 37, 130, 256])
def test_channels_last_is_the_same_in_another_order(variant, mode, channels):
    features = maps(channels=channels)
    with native.using(variant):
        first = align(features, mode=mode)
        out = np.full((2, 23, 3, 5, channels), np.nan, np.float32)
        last = align(features, mode=mode, channels_last=True, out=out)
    assert last is out
    np.testing.assert_array_equal(last, first.transpose(0, 1, 3, 4, 2))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("mode", ["avg", "max"])
def test_bf16_in_and_out_of_roi_align(variant, channels_last, mode):
    """Sums are float32: bf16 features give what their values give, rounded once."""
    narrow = maps(ml_dtypes.bfloat16)
    with native.using(variant):
        exact = align([level.astype(np.float32) for level in narrow], mode=mode, channels_last=channels_last)
        found = align(narrow, mode=mode, channels_last=channels_last)
        bits = align([level.view(np.uint16) for level in narrow], mode=mode, channels_last=channels_last)
        wide = align(narrow, mode=mode, channels_last=channels_last, dtype=np.float32)
    assert (found.dtype, bits.dtype, wide.dtype) == (narrow[0].dtype, np.uint16, np.float32)
    np.testing.assert_array_equal(found.view(np.uint16), bits)
    np.testing.assert_allclose(wide, exact, atol=1e-5, rtol=0)
    np.testing.assert_array_equal(found, wide.astype(ml_dtypes.bfloat16))
    np.testing.assert_allclose(found.astype(np.float32), exact, atol=1e-2 * np.abs(exact).max(), rtol=0)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("channels", [1, 3, 16, 37, 130, 256])
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_maxima_in_any_order_and_type(variant, channels, dtype):
    """Channels first and last, in either type: the same cells of the map, to the bit."""
    (feature, _) = maps(dtype, channels)
    with native.using("numpy"):
        expected = pool(feature.astype(np.float32))
    with native.using(variant):
        out = np.full((2, 23, 3, 5, channels), np.nan, np.float32)
        last = pool(feature, channels_last=True, dtype=np.float32, out=out)
        first = pool(feature)
        bits = pool(feature.view(np.uint16)) if dtype != np.float32 else first
    assert last is out
    assert (first.dtype, bits.dtype) == (dtype, np.uint16 if dtype != np.float32 else np.float32)
    np.testing.assert_array_equal(first.astype(np.float32), expected)
    np.testing.assert_array_equal(last.transpose(0, 1, 4, 2, 3), expected)
    np.testing.assert_array_equal(bits.view(np.uint8), first.view(np.uint8))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("channels", [1, 3, 37, 130])
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_pyramids_in_any_order_and_type(variant, channels, dtype):
    (feature, _) = maps(dtype, channels)
    with native.using("numpy"):
        expected = pyramid(feature.astype(np.float32))
    with native.using(variant):
        out = np.full((2, 23, 66, channels), np.nan, np.float32)
        last = pyramid(feature, channels_last=True, dtype=np.float32, out=out)
        first = pyramid(feature)
    assert last is out
    assert first.dtype == dtype
    np.testing.assert_array_equal(first.astype(np.float32), expected)
    levels = np.split(last, np.cumsum([36, 16, 9, 4]), axis=2)
    turned = np.concatenate([v.transpose(0, 1, 3, 2).reshape(2, 23, -1) for v in levels], 2)
    np.testing.assert_array_equal(turned, expected)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("channels", [1, 3, 37])
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_crops_in_any_order_and_type(variant, channels, dtype):
    """Sums are float32: bf16 images give what their values give, rounded once."""
    (images, _) = maps(dtype, channels)
    with native.using("numpy"):
        expected = crop(images.astype(np.float32))
    with native.using(variant):
        out = np.full((2, 23, 19, 23, channels), np.nan, np.float32)
        last = crop(images, channels_last=True, dtype=np.float32, out=out)
        first = crop(images)
    assert last is out
    assert first.dtype == dtype
    np.testing.assert_array_equal(last.transpose(0, 1, 4, 2, 3), expected)
    np.testing.assert_array_equal(first, expected.astype(dtype))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("op", [propose, detect])
def test_bf16_logits_are_their_float32_values(variant, op):
    def rounded(values):
        return values.astype(ml_dtypes.bfloat16).astype(np.float32)

    with native.using(variant):
        found = op(ml_dtypes.bfloat16)
        if op is propose:
            logits, deltas, anchors = rpn()
            sizes = np.array([[300, 400], [250, 333]], np.int32)
            levels = [rounded(v) for v in logits], [rounded(v) for v in deltas], anchors
            expected = native.proposals(*levels, sizes, pre_nms=300, post_nms=200, iou_threshold=0.7)
        else:
            logits, deltas, *rest = heads()
            expected = native.detections(
                rounded(logits), rounded(deltas), *rest,
                score_threshold=0.05, iou_threshold=0.5, max_detections=60, candidates=900,
            )  # fmt: skip
    same_bytes(found, tuple(expected))


def test_bf16_conversions_are_ml_dtypes():
    rng = np.random.default_rng(0)
    values = np.concatenate([
        rng.integers(0, 2**32, 5000, dtype=np.uint32).view(np.float32),
        np.array([0, -0.0, np.inf, -np.inf, 1, 1 + 2**-8, 1 + 3 * 2**-8, 3.4e38, 1e-45], np.float32),
    ])  # fmt: skip
    expected = values.astype(ml_dtypes.bfloat16)
    found = narrowed(values, np.dtype(ml_dtypes.bfloat16))
    numbers = ~np.isnan(values)
    np.testing.assert_array_equal(found.view(np.uint16)[numbers], expected.view(np.uint16)[numbers])
    assert np.isnan(found.astype(np.float32)[~numbers]).all()
    np.testing.assert_array_equal(widened(expected[numbers]), expected[numbers].astype(np.float32))


@pytest.mark.parametrize("variant", VARIANTS)
def test_nothing_at_all(variant):
    """No images, no RoIs, no anchors."""
    with native.using(variant):
        no_image = [level[:0] for level in maps()]
        sizes, none = np.zeros((0, 2), np.int32), np.zeros(0, np.int32)
        options = {"spatial_scales": [1 / 4, 1 / 8], "output_size": (7, 7)}
        assert native.roi_align(no_image, np.zeros((0, 5, 4), np.float32), none, **options).shape == (0, 5, 37, 7, 7)
        no_rois = np.zeros((2, 0, 4), np.float32)
        assert native.roi_align(maps(), no_rois, np.zeros(2, np.int32), **options).shape == (2, 0, 37, 7, 7)
        for shape in ((0, 5), (3, 0)):
            assert native.nms(
                np.zeros((*shape, 4), np.float32), np.zeros(shape, np.int32), iou_threshold=0.5
            ).shape == shape  # fmt: skip
        levels = [np.zeros((1, 0), np.float32)], [np.zeros((1, 0, 4), np.float32)], [np.zeros((0, 4), np.float32)]
        one = np.array([[10, 10]], np.int32)
        found = native.proposals(*levels, one, pre_nms=5, post_nms=3, iou_threshold=0.5)
        assert found.counts.tolist() == [0]
        assert not found.rois.any()
        logits, deltas, boxes, _, _ = heads()
        settings = {"score_threshold": 0.05, "iou_threshold": 0.5, "max_detections": 4, "candidates": 9}
        empty = native.detections(logits[:0], deltas[:0], boxes[:0], none, sizes, **settings)
        assert empty.boxes.shape == (0, 4, 4)
        empty = native.detections(logits[:1], deltas[:1], boxes[:1], np.zeros(1, np.int32), one, **settings)
        assert empty.num_detections.tolist() == [0]
        assert (empty.labels == -1).all()


@pytest.mark.parametrize("variant", VARIANTS)
def test_garbage_in_the_boxes_reads_no_memory_it_should_not(variant):
    """Boxes of NaN, infinities and huge numbers: no crash, and zeros where there is nothing to read."""
    boxes = np.array(
        [[[np.nan] * 4, [-np.inf, 0, np.inf, 9], [-1e30, -1e30, 1e30, 1e30], [1e30, 1e30, 2e30, 2e30]]], np.float32
    )
    features = [level[:1] for level in maps()]
    counts = np.array([4], np.int32)
    for ratio in (0, 2):
        for mode in ("avg", "max"):
            with native.using(variant):
                found = native.roi_align(
                    features, boxes, counts, spatial_scales=[1 / 4, 1 / 8], output_size=(2, 2), sampling_ratio=ratio,
                    mode=mode, canonical_scale=60.0, canonical_level=2,
                )  # fmt: skip
            assert np.isfinite(found).all()
            assert not found[0, [0, 1, 3]].any()


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_of_nan_and_infinity_are_never_found(variant):
    logits, deltas, anchors = rpn()
    logits[0][:, ::7] = np.nan
    logits[0][0, 1::7] = -np.inf
    deltas[1][:, ::5] = np.nan
    sizes = np.array([[300, 400], [250, 333]], np.int32)
    settings = {"pre_nms": 300, "post_nms": 200, "iou_threshold": 0.7}
    with native.using("numpy"):
        expected = native.proposals(logits, deltas, anchors, sizes, **settings)
    with native.using(variant):
        found = native.proposals(logits, deltas, anchors, sizes, **settings)
        same_bytes(tuple(found), tuple(expected))
        assert np.isfinite(found.rois).all()
        broken = list(heads())
        broken[0][0, ::3, 5] = np.nan
        broken[0][1, ::4, 2] = np.inf
        results = native.detections(*broken, score_threshold=0.05, iou_threshold=0.5, max_detections=60, candidates=900)
        assert np.isfinite(results.boxes).all()
        assert not np.isin(results.roi_index[0, : results.num_detections[0]] % 3, 0).any()
