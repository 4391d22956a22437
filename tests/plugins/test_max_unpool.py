"""RegionMaxPool and RegionMaxUnpool: the reference against torch, every form against the reference, all exactly."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from one_op import CPU, NATIVE, OPENVINO, PORTABLE, WAYS, run
from torch.nn import functional

from regionrt.plugins.max_unpool import reference
from regionrt.plugins.max_unpool.torch_op import max_pool_argmax, max_unpool

WINDOWS = [(1, 1), (2, 2), (3, 3), (2, 3), (1, 4), (5, 5)]
SIZES = [(8, 6), (5, 7), (7, 12), (11, 15), (22, 31)]
ONNX = (NATIVE, PORTABLE, OPENVINO)
ANY = {"x": ("N", "C", "H", "W")}
ANY_TOO = {"x": ("N", "C", "h", "w"), "argmax": ("N", "C", "h", "w"), "like": ("N", "C", "H", "W")}


def full_of_ties(height: int, width: int, seed: int = 0, nan: bool = False) -> np.ndarray:
    """Whole numbers, −0 and 0 among them."""
    rng = np.random.default_rng(seed)
    x = rng.integers(-2, 3, (2, 3, height, width)).astype(np.float32) * rng.choice([1, -1], (2, 3, height, width))
    if nan:
        x[rng.random(x.shape) < 0.3] = np.nan
    return x.astype(np.float32)


def garbage(argmax: np.ndarray, kernel: int) -> np.ndarray:
    """Some places that no window has."""
    broken = argmax.copy()
    broken.flat[::7], broken.flat[3::11], broken.flat[5::13] = -1, kernel * kernel, 2**31 - 1
    return broken


def same(found: np.ndarray, expected: np.ndarray, way: tuple[str, str] | None = None) -> None:
    """Bit by bit where they are numbers: −0 is not 0, except in ONNX Runtime, whose Where loses the sign."""
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    np.testing.assert_array_equal(found, expected)
    if found.dtype.kind == "f" and (way is None or way in CPU):
        numbers = ~np.isnan(expected)
        np.testing.assert_array_equal(np.signbit(found[numbers]), np.signbit(expected[numbers]))


def pooled(way, x, kernel, stride, ceil_mode, shapes=None):
    attributes = {"kernel": kernel, "stride": stride, "ceil_mode": int(ceil_mode)}
    return run("RegionMaxPool", way, {"x": x}, attributes, shapes)


def unpooled(way, x, argmax, like, kernel, stride, shapes=None):
    inputs = {"x": x, "argmax": argmax, "like": like}
    return run("RegionMaxUnpool", way, inputs, {"kernel": kernel, "stride": stride}, shapes)[0]


@pytest.mark.parametrize("nan", [False, True])
@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("kernel", "stride"), WINDOWS)
def test_the_reference_is_torchs(kernel, stride, size, ceil_mode, nan):
    x = full_of_ties(*size, nan=nan)
    values, argmax = reference.max_pool(x, kernel=kernel, stride=stride, ceil_mode=ceil_mode)
    expected, flat = functional.max_pool2d(
        torch.from_numpy(x), kernel, stride, ceil_mode=ceil_mode, return_indices=True
    )
    same(values, expected.numpy())
    top, left = (np.arange(count) * stride for count in values.shape[2:])
    places = (top[:, None] + argmax // kernel) * size[1] + left + argmax % kernel
    np.testing.assert_array_equal(places, flat.numpy())
    back = reference.max_unpool(values, argmax, kernel=kernel, stride=stride, height=size[0], width=size[1])
    # torch's own, below the check of the size that it makes for its default padding
    same(back, torch._C._nn.max_unpool2d(expected, flat, list(size)).numpy())


@pytest.mark.parametrize(("way", "shapes"), [*((way, None) for way in WAYS), *((way, ANY) for way in ONNX)])
@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize("size", SIZES[:3])
@pytest.mark.parametrize(("kernel", "stride"), WINDOWS[:4])
def test_each_form_pools_as_the_reference(kernel, stride, size, ceil_mode, way, shapes):
    x = full_of_ties(*size, nan=way != OPENVINO)  # what that makes of a NaN differs from CPU to CPU
    expected = reference.max_pool(x, kernel=kernel, stride=stride, ceil_mode=ceil_mode)
    for found, wanted in zip(pooled(way, x, kernel, stride, ceil_mode, shapes), expected, strict=True):
        same(found, wanted, way)


@pytest.mark.parametrize(("way", "shapes"), [*((way, None) for way in WAYS), *((way, ANY_TOO) for way in ONNX)])
@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize("size", SIZES[:3])
@pytest.mark.parametrize(("kernel", "stride"), WINDOWS[:4])
def test_each_form_unpools_as_the_reference(kernel, stride, size, ceil_mode, way, shapes):
    like = full_of_ties(*size, nan=True)
    x, argmax = reference.max_pool(like, kernel=kernel, stride=stride, ceil_mode=ceil_mode)
    argmax = garbage(argmax, kernel)
    expected = reference.max_unpool(x, argmax, kernel=kernel, stride=stride, height=size[0], width=size[1])
    same(unpooled(way, x, argmax, like, kernel, stride, shapes), expected, way)


@pytest.mark.parametrize("way", CPU, ids="-".join)
def test_rows_of_several_vectors_and_a_rest(way):
    like = full_of_ties(6, 2 * 37 + 1, nan=True)
    x, argmax = reference.max_pool(like, kernel=2, stride=2)
    argmax = garbage(argmax, 2)
    expected = reference.max_unpool(x, argmax, kernel=2, stride=2, height=6, width=75)
    same(unpooled(way, x, argmax, like, 2, 2), expected, way)


@pytest.mark.parametrize("way", ONNX, ids="-".join)
def test_half_precision_is_exact_too(way):
    like = full_of_ties(45, 60).astype(np.float16)
    x, argmax = reference.max_pool(like, kernel=2, stride=2)
    for found, wanted in zip(pooled(way, like, 2, 2, False), (x, argmax), strict=True):
        same(found, wanted, way)
    expected = reference.max_unpool(x, argmax, kernel=2, stride=2, height=45, width=60)
    same(unpooled(way, x, argmax, like, 2, 2), expected, way)


@pytest.mark.parametrize("way", [NATIVE, PORTABLE, *CPU], ids="-".join)
def test_bf16_is_exact_too(way):
    import ml_dtypes

    like = full_of_ties(9, 14).astype(ml_dtypes.bfloat16)
    x, argmax = reference.max_pool(like.astype(np.float32), kernel=2, stride=2)
    values, places = pooled(way, like, 2, 2, False)
    same(values.astype(np.float32), x, way)
    np.testing.assert_array_equal(places, argmax)
    found = unpooled(way, x.astype(ml_dtypes.bfloat16), argmax, like, 2, 2)
    expected = reference.max_unpool(x, argmax, kernel=2, stride=2, height=9, width=14)
    same(found.astype(np.float32), expected, way)


@pytest.mark.parametrize("way", WAYS, ids="-".join)
def test_a_window_of_minus_infinity_has_a_place(way):
    x = np.full((1, 1, 4, 4), -np.inf, np.float32)
    x[0, 0, 2:, 2:] = 1
    values, argmax = pooled(way, x, 2, 2, False)
    assert not argmax.any()
    assert values.ravel().tolist() == [-np.inf, -np.inf, -np.inf, 1]


@pytest.mark.parametrize("offset", [-1, 0, 1])
@pytest.mark.parametrize("ceil_mode", [False, True])
def test_five_poolings_and_back_at_the_sizes_of_segnet(ceil_mode, offset):
    """360 × 480 and one pixel beside it: each level's size comes back, and the values of torch's own indices."""
    x = torch.randn(1, 2, 360 + offset, 480 - offset)
    encoders, places, theirs = [], [], []
    for _ in range(5):
        encoders.append(x)
        _, flat = functional.max_pool2d(x, 2, 2, ceil_mode=ceil_mode, return_indices=True)
        x, argmax = max_pool_argmax(x, 2, 2, ceil_mode)
        places.append(argmax)
        theirs.append(flat)
    if offset == 0:
        assert [tuple(e.shape[2:]) for e in encoders[2:]] == [(90, 120), (45, 60), (23 if ceil_mode else 22, 30)]
    while encoders:
        like, argmax, flat = encoders.pop(), places.pop(), theirs.pop()
        expected = torch._C._nn.max_unpool2d(x, flat, list(like.shape[2:]))
        x = max_unpool(x, argmax, like, 2, 2)
        assert x.shape == like.shape
        assert torch.equal(x, expected)


@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize(("kernel", "stride"), WINDOWS)
def test_the_torch_ops_compute_what_the_reference_does(kernel, stride, ceil_mode):
    x = full_of_ties(11, 15, nan=True)
    for layout in (torch.contiguous_format, torch.channels_last):
        given = torch.from_numpy(x).contiguous(memory_format=layout)
        values, argmax = max_pool_argmax(given, kernel, stride, ceil_mode)
        expected = reference.max_pool(x, kernel=kernel, stride=stride, ceil_mode=ceil_mode)
        same(values.numpy(), expected[0])
        same(argmax.numpy(), expected[1])
        broken = garbage(expected[1], kernel)
        found = max_unpool(values, torch.from_numpy(broken), given, kernel, stride)
        same(
            found.numpy(), reference.max_unpool(expected[0], broken, kernel=kernel, stride=stride, height=11, width=15)
        )


@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize(("kernel", "stride"), [(2, 2), (3, 3), (2, 3)])
def test_gradients(kernel, stride, ceil_mode):
    torch.manual_seed(0)
    x = torch.randn(1, 2, 7, 8, dtype=torch.float64, requires_grad=True)

    def pool(x):
        return max_pool_argmax(x, kernel, stride, ceil_mode)[0]

    values, argmax = max_pool_argmax(x.detach(), kernel, stride, ceil_mode)
    argmax.flatten()[0] = -1

    def unpool(values):
        return max_unpool(values, argmax, x.detach(), kernel, stride)

    for function, value in ((pool, x), (unpool, values.requires_grad_())):
        assert torch.autograd.gradcheck(function, value)
        assert torch.autograd.gradgradcheck(function, value)


def test_torchs_own_checks_of_an_op():
    x = torch.randn(2, 3, 7, 9, requires_grad=True)
    torch.library.opcheck(max_pool_argmax, (x, 2, 2, True))
    values, argmax = max_pool_argmax(x.detach(), 2, 2)
    torch.library.opcheck(max_unpool, (values.requires_grad_(), argmax, x.detach(), 2, 2))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: max_pool_argmax(x, 3, 2), "do not overlap"),
        (lambda x: max_pool_argmax(x, 7, 7), "at least 7 cells"),
        (
            lambda x: max_unpool(*max_pool_argmax(x, 2, 2), x.new_empty(1, 1, 9, 6), 2, 2),
            "6 to 7 cells for 3 windows|5 to 7",
        ),
        (lambda x: max_unpool(x, max_pool_argmax(x, 2, 2)[1], x, 2, 2), "a place for each value"),
    ],
)
def test_what_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(torch.zeros(1, 1, 6, 6))


@settings(max_examples=150, deadline=None, database=None, derandomize=True)
@given(
    seed=st.integers(0, 2**31),
    kernel=st.integers(1, 4),
    gap=st.integers(0, 2),
    height=st.integers(4, 30),
    width=st.integers(4, 40),
    ceil_mode=st.booleans(),
    way=st.sampled_from(CPU),
)
def test_any_size_on_the_cpu(seed, kernel, gap, height, width, ceil_mode, way):
    stride = kernel + gap
    x = full_of_ties(height, width, seed, nan=True)
    values, argmax = reference.max_pool(x, kernel=kernel, stride=stride, ceil_mode=ceil_mode)
    for found, wanted in zip(pooled(way, x, kernel, stride, ceil_mode), (values, argmax), strict=True):
        same(found, wanted)
    broken = garbage(argmax, kernel)
    expected = reference.max_unpool(values, broken, kernel=kernel, stride=stride, height=height, width=width)
    same(unpooled(way, values, broken, x, kernel, stride), expected)
