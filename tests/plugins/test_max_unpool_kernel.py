"""The CUDA kernels of RegionMaxPool and RegionMaxUnpool, run on the CPU: the reference's bits, exactly."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels import launch, thread_order  # noqa: F401 (a fixture)

from regionrt.plugins.max_unpool.reference import max_pool, max_unpool

KINDS = ("f32", "f16", "bf16")


def as_kind(x: np.ndarray, kind: str) -> np.ndarray:
    if kind == "bf16":
        return (x.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)  # whole numbers: nothing is cut off
    return x.astype(np.float16 if kind == "f16" else np.float32)


def rubbish(shape: tuple[int, ...], like: np.ndarray) -> np.ndarray:
    return np.full(np.prod(shape, dtype=int) * like.itemsize, 0xCB, np.uint8).view(like.dtype).reshape(shape)


def same_bits(found: np.ndarray, expected: np.ndarray, kind: str) -> None:
    expected = as_kind(expected, kind)
    numbers = ~np.isnan(expected) if kind != "bf16" else (expected & 0x7FFF) <= 0x7F80
    bits = np.uint32 if kind == "f32" else np.uint16
    np.testing.assert_array_equal(found.view(bits)[numbers], expected.view(bits)[numbers])
    if kind != "bf16":
        assert np.isnan(found[~numbers]).all()


def check(
    kind: str,
    size: tuple[int, int],
    kernel: int = 2,
    stride: int = 2,
    ceil_mode: bool = False,
    grid: tuple[int, int] = (2, 3),
    seed: int = 0,
) -> None:
    rng = np.random.default_rng(seed)
    height, width = size
    x = rng.integers(-3, 4, (2, 3, *size)).astype(np.float32)
    x[rng.random(x.shape) < 0.1] = np.nan
    expected, places = max_pool(x, kernel=kernel, stride=stride, ceil_mode=ceil_mode)
    given, rows, columns = as_kind(x, kind), *expected.shape[2:]
    values, argmax = rubbish(expected.shape, given), rubbish(expected.shape, places)
    numbers = [6, height, width, rows, columns, kernel, stride]
    launch("max_unpool", f"max_pool_{kind}", grid, 64, [given, *numbers, values, argmax])
    np.testing.assert_array_equal(argmax, places)
    same_bits(values, expected, kind)

    broken = places.copy()
    broken.flat[::5], broken.flat[2::7] = -4, kernel * kernel
    whole = max_unpool(expected, broken, kernel=kernel, stride=stride, height=height, width=width)
    out = rubbish(whole.shape, given)
    launch("max_unpool", f"max_unpool_{kind}", grid, 64, [as_kind(expected, kind), broken, *numbers, out])
    same_bits(out, whole, kind)


@pytest.mark.usefixtures("thread_order")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize("size", [(8, 32), (9, 16), (6, 10), (7, 9), (5, 8), (2, 2), (22, 30), (45, 60)])
def test_sizes(size: tuple[int, int], ceil_mode: bool, kind: str) -> None:
    """Packs of 16 bytes, packs of two cells, no packs; a row without windows; windows that hang over the edge."""
    check(kind, size, ceil_mode=ceil_mode)


@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (3, 3), (2, 3), (1, 4), (4, 4)])
def test_other_windows(kernel: int, stride: int, ceil_mode: bool) -> None:
    for kind in KINDS:
        check(kind, (11, 13), kernel, stride, ceil_mode)


@pytest.mark.parametrize("grid", [(1, 1), (1, 6), (7, 2)])
def test_any_grid_does_all_the_work(grid: tuple[int, int]) -> None:
    for size in ((12, 32), (9, 11)):
        check("f16", size, grid=grid)


def test_memory_that_is_aligned_to_its_elements_only() -> None:
    x = np.arange(4 * 32, dtype=np.float32).reshape(1, 1, 4, 32)
    expected, places = max_pool(x, kernel=2, stride=2)
    numbers = [1, 4, 32, 2, 16, 2, 2]
    given, values, argmax, out = (
        np.full(n + 5, -9, t)[1:] for n, t in ((128, "f4"), (32, "f4"), (32, "i4"), (128, "f4"))
    )
    assert given.ctypes.data % 16
    given[:128] = x.ravel()
    launch("max_unpool", "max_pool_f32", (1, 1), 64, [given, *numbers, values, argmax])
    np.testing.assert_array_equal(values[:32], expected.ravel())
    np.testing.assert_array_equal(argmax[:32], places.ravel())
    launch("max_unpool", "max_unpool_f32", (1, 1), 64, [values, argmax, *numbers, out])
    np.testing.assert_array_equal(
        out[:128], max_unpool(expected, places, kernel=2, stride=2, height=4, width=32).ravel()
    )
    for array in (values[32:], out[128:]):
        assert (array == -9).all()


@settings(max_examples=60, deadline=None, database=None, derandomize=True)
@given(
    seed=st.integers(0, 2**31),
    kernel=st.integers(1, 4),
    gap=st.integers(0, 2),
    size=st.tuples(st.integers(4, 20), st.integers(4, 34)),
    ceil_mode=st.booleans(),
    kind=st.sampled_from(KINDS),
)
def test_anything(seed, kernel, gap, size, ceil_mode, kind) -> None:
    check(kind, size, kernel, kernel + gap, ceil_mode, seed=seed)
