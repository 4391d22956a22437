"""What all native ops promise together: any variant and number of threads give the same, and bad input is refused.

That each computes what its reference defines is tested in tests/plugins, variant by variant.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import ml_dtypes
import numpy as np
import pytest

from regionrt.runtime import native
from regionrt.runtime.native.arrays import narrowed, widened

VARIANTS = native.usable_variants()
Arrays = tuple[np.ndarray, ...]


def maps(dtype: type = np.float32, channels: int = 37, images: int = 2) -> list[np.ndarray]:
    """Channels last; 37 is two vectors of 16 lanes and a rest."""
    rng = np.random.default_rng(0)
    return [rng.standard_normal((images, h, w, channels), np.float32).astype(dtype) for h, w in ((40, 50), (20, 25))]


def rois(images: int = 2, rows: int = 23) -> Arrays:
    rng = np.random.default_rng(1)
    center, half = rng.uniform(-10, 210, (images, rows, 2)), np.exp(rng.uniform(0, 4.5, (images, rows, 2)))
    boxes = np.concatenate([center - half, center + half], -1).astype(np.float32)
    return boxes, np.array([rows, 11][:images], np.int32)


def align(features: list[np.ndarray] | None = None, **options) -> np.ndarray:
    settings = {"spatial_scales": [1 / 4, 1 / 8], "output_size": (3, 5), "canonical_scale": 60.0, "canonical_level": 2}
    return native.roi_align(features or maps(), *rois(), **settings | options)


def pool(feature: np.ndarray | None = None, **options) -> np.ndarray:
    settings = {"spatial_scale": 1 / 4, "output_size": (3, 5)}
    return native.roi_pool(maps()[0] if feature is None else feature, *rois(), **settings | options)


def pyramid(feature: np.ndarray | None = None, **options) -> np.ndarray:
    settings = {"spatial_scale": 1 / 4, "bins": (6, 4, 3, 2, 1)}
    return native.pyramid_pool(maps()[0] if feature is None else feature, *rois(), **settings | options)


def crop(images: np.ndarray | None = None, **options) -> np.ndarray:
    settings = {"output_size": (19, 23), "context": 3}
    return native.warp(maps(channels=3)[0] if images is None else images, *rois(), **settings | options)


def crowd(images: int = 2, rows: int = 700, classes: int = 3) -> Arrays:
    rng = np.random.default_rng(2)
    low = rng.uniform(0, 300, (images, rows, 2))
    boxes = np.concatenate([low, low + rng.uniform(5, 90, (images, rows, 2))], -1).astype(np.float32)
    return boxes, rng.integers(-1, classes, (images, rows)).astype(np.int32)


def suppress(**options) -> Arrays:
    return (native.nms(*crowd(), iou_threshold=0.45, **options),)


def rpn(dtype: type = np.float32) -> tuple[list[np.ndarray], ...]:
    """One level so large that only a part of it is sorted, one of fewer anchors than are asked for."""
    rng = np.random.default_rng(3)
    counts = (30_000, 1_500, 40)
    logits = [(rng.normal(0, 2, (2, a)) * 64).round() / 64 for a in counts]  # many ties
    deltas = [rng.normal(0, 0.4, (2, a, 4)) for a in counts]
    anchors = []
    for count in counts:
        center, half = rng.uniform(-20, 420, (count, 2)), rng.uniform(4, 60, (count, 2))
        anchors.append(np.concatenate([center - half, center + half], 1).astype(np.float32))
    return [v.astype(dtype) for v in logits], [v.astype(dtype) for v in deltas], anchors


def propose(dtype: type = np.float32, **options) -> Arrays:
    sizes = np.array([[300, 400], [250, 333]], np.int32)
    settings = {"pre_nms": 300, "post_nms": 200, "iou_threshold": 0.7}
    return tuple(native.proposals(*rpn(dtype), sizes, **settings | options))


def heads(dtype: type = np.float32) -> Arrays:
    rng = np.random.default_rng(4)
    boxes, counts = rois(2, 150)
    logits = rng.normal(0, 2, (2, 150, 22)).astype(dtype)
    return (
        logits,
        rng.normal(0, 1, (2, 150, 88)).astype(dtype),
        boxes,
        counts,
        np.array([[190, 200], [99, 222]], np.int32),
    )


def detect(dtype: type = np.float32, **options) -> Arrays:
    settings = {"score_threshold": 0.05, "iou_threshold": 0.5, "max_detections": 60, "candidates": 900}
    return tuple(native.detections(*heads(dtype), **settings | options))


def paste(**options) -> Arrays:
    rng = np.random.default_rng(5)
    boxes = rng.uniform(-20, 300, (12, 4)).astype(np.float32)
    return (native.paste_masks(rng.random((12, 28, 28), np.float32), boxes, (260, 333), **options),)


def resize(**options) -> Arrays:
    image = np.random.default_rng(6).integers(0, 256, (211, 307, 3), dtype=np.uint8)
    return (native.resize_bilinear(image, 301, 207, **options),)


def max_pool(**options) -> Arrays:
    x = np.random.default_rng(7).integers(-9, 9, (2, 5, 75, 133)).astype(np.float32)
    x[0, 0, ::3] = np.nan
    return tuple(native.max_pool(x, kernel=2, stride=2, ceil_mode=True, **options))


def unpool(**options) -> Arrays:
    values, argmax = max_pool()
    argmax[0, 1, ::2] += 5
    return (native.max_unpool(values, argmax, kernel=2, stride=2, size=(75, 133), **options),)


OPS: dict[str, Callable[..., Arrays]] = {
    "roi_align": lambda **options: (align(**options),),
    "roi_align max": lambda **options: (align(mode="max", **options),),
    "roi_pool": lambda **options: (pool(**options),),
    "pyramid_pool": lambda **options: (pyramid(**options),),
    "warp": lambda **options: (crop(**options),),
    "nms": suppress,
    "proposals": propose,
    "detections": detect,
    "paste": paste,
    "resize": resize,
    "max_pool": max_pool,
    "max_unpool": unpool,
}


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


BAD = {
    "a map of float64 to pool": (lambda: pool(maps()[0].astype(np.float64)), "float32, or bf16"),
    "a map that is too long": (
        lambda: native.roi_pool(
            np.zeros((1, 1, 4097, 1), np.float32), rois(1)[0], rois(1)[1], spatial_scale=1.0, output_size=(1, 1)
        ),
        "at most 4096 cells",
    ),
    "nine levels": (lambda: pyramid(bins=[1] * 9), "bins: expected 1 to 8 levels"),
    "no levels": (lambda: pyramid(bins=[]), "bins: expected 1 to 8 levels"),
    "a level of no bins": (lambda: pyramid(bins=[3, 0]), "bins: expected a whole number ≥ 1"),
    "images of uint8": (lambda: crop(np.zeros((2, 9, 9, 3), np.uint8)), "float32, or bf16"),
    "nothing but context": (lambda: crop(context=10), "context: expected less than half"),
    "a negative context": (lambda: crop(context=-1), "context: expected a whole number ≥ 0"),
    "a scale of 0": (lambda: pool(spatial_scale=0.0), "spatial_scale: expected a number > 0"),
    "no bins to pool": (lambda: pool(output_size=(3, 0)), "output_size"),
    "a map of float64": (lambda: align([m.astype(np.float64) for m in maps()]), "float32, or bf16"),
    "maps of two types": (lambda: align([maps()[0], maps(ml_dtypes.bfloat16)[1]]), r"features\[1\]: expected float32"),
    "channels first": (lambda: align([m.transpose(0, 3, 1, 2) for m in maps()]), r"features\[1\]: expected the shape"),
    "an unknown mode": (lambda: align(mode="median"), "'avg' or 'max'"),
    "no bins": (lambda: align(output_size=(0, 7)), "output_size"),
    "a stride left out": (lambda: align(spatial_scales=[1 / 4, 1 / 16]), "no stride left out"),
    "too few scales": (lambda: align(spatial_scales=[1 / 4]), "a spatial scale for each level"),
    "no threads": (lambda: align(threads=0), "threads"),
    "an out of another shape": (lambda: align(out=np.empty((2, 23, 37, 5, 3), np.float32)), "out: expected"),
    "an out in Fortran's order": (lambda: align(out=np.empty((5, 3, 37, 23, 2), np.float32).T), "C order"),
    "more RoIs than rows": (
        lambda: native.roi_align(
            maps(), rois()[0], np.array([24, 1], np.int32), spatial_scales=[1 / 4, 1 / 8], output_size=(7, 7)
        ),
        "counts: expected 0 to 23",
    ),
    "negative counts": (
        lambda: native.detections(
            *heads()[:3], np.array([-1, 1], np.int32), heads()[4],
            score_threshold=0.1, iou_threshold=0.5, max_detections=5, candidates=5,
        ),
        "counts: expected 0 to 150",
    ),
    "int64 classes": (lambda: native.nms(crowd()[0], crowd()[1].astype(np.int64), iou_threshold=0.5), "expected int32"),
    "an IoU of 2": (lambda: native.nms(*crowd(), iou_threshold=2.0), "iou_threshold: expected 0 to 1"),
    "an IoU of NaN": (lambda: native.nms(*crowd(), iou_threshold=float("nan")), "iou_threshold: expected 0 to 1"),
    "a list": (lambda: native.nms([[1, 2, 3, 4]], crowd()[1], iou_threshold=0.5), "expected a NumPy array, got list"),
    "no proposals wanted": (lambda: propose(post_nms=0), "post_nms: expected a whole number ≥ 1"),
    "weights of zero": (lambda: propose(box_weights=(1, 1, 0, 1)), "box_weights"),
    "levels that do not match": (
        lambda: native.proposals(
            rpn()[0], rpn()[1][:2], rpn()[2], np.ones((2, 2), np.int32), pre_nms=5, post_nms=5, iou_threshold=0.5
        ),
        "as many levels",
    ),
    "deltas of another class count": (lambda: detect(class_agnostic=True), "box_deltas: expected the shape"),
    "windows that overlap": (
        lambda: native.max_pool(np.zeros((1, 1, 8, 8), np.float32), kernel=3, stride=2),
        "stride: expected at least the kernel, 3",
    ),
    "a map without a window": (
        lambda: native.max_pool(np.zeros((1, 1, 1, 8), np.float32), kernel=2, stride=2),
        "x: expected a map of at least 2 cells each way, got 1 × 8",
    ),
    "a size of more windows": (
        lambda: native.max_unpool(*max_pool(), kernel=2, stride=2, size=(75, 140)),
        "size: expected 133 to 135 cells for 67 windows, got 140",
    ),
    "places of another shape": (
        lambda: native.max_unpool(max_pool()[0], max_pool()[1][:1], kernel=2, stride=2, size=(75, 133)),
        "argmax: expected the shape",
    ),
    "a threshold of −1": (lambda: detect(score_threshold=-1.0), "score_threshold"),
}  # fmt: skip


@pytest.mark.parametrize("variant", dict.fromkeys((VARIANTS[0], "numpy")))
@pytest.mark.parametrize(("call", "message"), BAD.values(), ids=BAD.keys())
def test_what_is_refused(call, message, variant):
    with native.using(variant), pytest.raises(ValueError, match=message):
        call()
