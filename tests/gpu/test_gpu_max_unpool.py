"""Pooling with places, and unpooling, on a GPU: the reference's bits, and torch's own values and indices."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional
from values import TOLERANCES, typed, widened

from regionrt.plugins.max_unpool import reference
from regionrt.plugins.max_unpool.torch_op import max_pool_argmax
from regionrt.plugins.max_unpool.torch_op import max_unpool as torch_unpool
from regionrt.runtime.gpu.max_unpool import max_pool, max_unpool


def pooled(gpu, x, dtype, shape, kernel, stride):
    values, argmax = gpu.empty(shape, dtype), gpu.empty(shape, "int32")
    gpu.run(max_pool(gpu.kernels, gpu.put(x, dtype), values, argmax, kernel=kernel, stride=stride))
    return gpu.get(values), gpu.get(argmax)


def unpooled(gpu, x, argmax, dtype, size, kernel, stride):
    out = gpu.empty((*x.shape[:2], *size), dtype)
    gpu.run(max_unpool(gpu.kernels, gpu.put(x, dtype), gpu.put(argmax), out, kernel=kernel, stride=stride))
    return gpu.get(out)


def full_of_ties(shape: tuple[int, ...], dtype: str) -> np.ndarray:
    rng = np.random.default_rng(shape[-1])
    x = rng.integers(-3, 4, shape).astype(np.float32)
    x[rng.random(shape) < 0.1] = np.nan
    return typed(x, dtype)


@pytest.mark.parametrize("dtype", list(TOLERANCES))
@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize(
    ("kernel", "stride", "size"),
    [
        (2, 2, (24, 64)),
        (2, 2, (45, 60)),
        (2, 2, (22, 30)),
        (2, 2, (23, 31)),
        (1, 1, (5, 9)),
        (3, 3, (20, 31)),
        (2, 3, (20, 31)),
        (5, 5, (23, 24)),
    ],
)
def test_the_reference(gpu, kernel, stride, size, ceil_mode, dtype):
    x = full_of_ties((2, 9 if gpu.large else 3, *size), dtype)
    values, argmax = reference.max_pool(widened(x), kernel=kernel, stride=stride, ceil_mode=ceil_mode)
    found, places = pooled(gpu, x, dtype, values.shape, kernel, stride)
    np.testing.assert_array_equal(places, argmax)
    np.testing.assert_array_equal(widened(found), values)
    argmax.flat[::7], argmax.flat[3::11] = -1, kernel * kernel
    expected = reference.max_unpool(values, argmax, kernel=kernel, stride=stride, height=size[0], width=size[1])
    np.testing.assert_array_equal(widened(unpooled(gpu, found, argmax, dtype, size, kernel, stride)), expected)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("size", [(360, 480), (361, 479)])
def test_torch_at_the_size_of_segnet(gpu, size, dtype):
    size = size if gpu.large else (size[0] // 10, size[1] // 10)
    x = full_of_ties((4, 64, *size) if gpu.large else (1, 4, *size), dtype)
    there = torch.from_numpy(x).to(gpu.torch_device)
    values, flat = functional.max_pool2d(there, 2, 2, return_indices=True)
    found, places = pooled(gpu, x, dtype, tuple(values.shape), 2, 2)
    np.testing.assert_array_equal(found, values.cpu().numpy())
    expected = torch._C._nn.max_unpool2d(values, flat, list(size))
    np.testing.assert_array_equal(unpooled(gpu, found, places, dtype, size, 2, 2), expected.cpu().numpy())
    ours, argmax = max_pool_argmax(there, 2, 2)  # the torch ops, which training uses
    assert torch.equal(argmax.cpu(), torch.from_numpy(places))
    assert torch.equal(torch_unpool(ours, argmax, there, 2, 2).nan_to_num(9), expected.nan_to_num(9))


def test_more_planes_than_a_grid_has(gpu):
    """N · C beyond 65535, the most blocks along y."""
    shape = (70, 1000, 4, 8) if gpu.large else (7, 100, 4, 8)
    x = np.random.default_rng(0).integers(-9, 9, shape).astype(np.float32)
    values, argmax = pooled(gpu, x, "float32", (*shape[:2], 2, 4), 2, 2)
    expected, places = (v.cpu() for v in max_pool_argmax(torch.from_numpy(x).to(gpu.torch_device), 2, 2))
    np.testing.assert_array_equal(values, expected.numpy())
    np.testing.assert_array_equal(argmax, places.numpy())
    back = unpooled(gpu, values, argmax, "float32", shape[2:], 2, 2)
    np.testing.assert_array_equal(back.sum((2, 3)), expected.numpy().sum((2, 3)))
