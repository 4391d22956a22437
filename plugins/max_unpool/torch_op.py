"""torch.ops.regionrt.max_pool_argmax and .max_unpool: for nn.Modules that are trained and exported.

Both are differentiable, twice too, and deterministic: windows do not overlap, so that no two maxima share a cell;
pooling's gradient is unpooling.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .reference import unpooled_from, window_count


@torch.library.custom_op("regionrt::max_pool_argmax", mutates_args=())
def max_pool_argmax(x: Tensor, kernel: int, stride: int, ceil_mode: bool = False) -> tuple[Tensor, Tensor]:
    """Maxima of windows of `x` [N, C, H, W] -> values [N, C, h, w], and their places in the window, int32 [N, C, h, w].

    h = (H − kernel) // stride + 1, with `ceil_mode` ⌈H / stride⌉; the values are torch's max_pool2d's. ValueError where
    windows overlap (kernel > stride) or a map is smaller than one. See reference.py for what is computed.
    """
    height, width = x.shape[2:]
    _countable(height, width)
    rows, columns = (window_count(size, kernel, stride, ceil_mode) for size in (height, width))
    values, flat = F.max_pool2d(x, kernel, stride, ceil_mode=ceil_mode, return_indices=True)  # flat: row · W + column
    top, left = (torch.arange(count, device=x.device, dtype=torch.int32) * stride for count in (rows, columns))
    offset = flat.to(torch.int32).sub_(top[:, None] * width + left)  # row · W + column, both in the window
    return values.contiguous(), torch.sub(offset, offset // width, alpha=width - kernel).contiguous()


@max_pool_argmax.register_fake
def _(x, kernel, stride, ceil_mode=False):
    h, w = ((size + stride - 1) // stride if ceil_mode else (size - kernel) // stride + 1 for size in x.shape[2:])
    shape = (*x.shape[:2], h, w)
    return x.new_empty(shape), x.new_empty(shape, dtype=torch.int32)


@torch.library.custom_op("regionrt::max_unpool", mutates_args=())
def max_unpool(x: Tensor, argmax: Tensor, like: Tensor, kernel: int, stride: int) -> Tensor:
    """[N, C, H, W]: each of `x` [N, C, h, w] at its place `argmax` (of max_pool_argmax) in its window, else zero.

    `like` [·, ·, H, W] is the map that was pooled, or any of its size: only its shape is used, and a graph works for
    every size. ValueError where that size does not have h × w windows.
    """
    if argmax.shape != x.shape:
        raise ValueError(f"max_unpool: expected a place for each value, got {list(argmax.shape)} for {list(x.shape)}")
    height, width = like.shape[2:]
    _countable(height, width)
    unpooled_from((height, width), tuple(x.shape[2:]), kernel, stride)
    cell, inside = _cells(argmax, height, width, kernel, stride)
    out = x.new_zeros((*x.shape[:2], height * width))
    out.scatter_(2, cell, torch.where(inside, x, 0).flatten(2))
    return out.unflatten(2, (height, width))


@max_unpool.register_fake
def _(x, argmax, like, kernel, stride):
    return x.new_empty((*x.shape[:2], *like.shape[2:]))


def _countable(height: int, width: int) -> None:
    if height * width >= 2**31:
        raise ValueError(f"expected a map of less than 2³¹ cells, got {height} × {width}")


def _cells(argmax: Tensor, height: int, width: int, kernel: int, stride: int) -> tuple[Tensor, Tensor]:
    """int64 [N, C, h·w], row · W + column of each place in the map, and bool [N, C, h, w], whether it is one.

    Of a place that is none it is the window's first cell, which is inside and no other window's: scattering zero to it
    is in nobody's way.
    """
    rows, columns = argmax.shape[2:]
    top, left = (torch.arange(count, device=argmax.device, dtype=torch.int32) * stride for count in (rows, columns))
    row = argmax // kernel
    inside = (argmax >= 0) & (argmax < kernel * kernel)
    if (rows - 1) * stride + kernel > height or (columns - 1) * stride + kernel > width:  # the last windows hang over
        inside &= (row + top[:, None] < height) & (argmax - row * kernel + left < width)
    offset = torch.add(argmax, row, alpha=width - kernel).mul_(inside)
    return offset.add_(top[:, None] * width + left).flatten(2).to(torch.int64), inside


def _gathered(x: Tensor, argmax: Tensor, kernel: int, stride: int) -> Tensor:
    """[N, C, h, w]: of `x` [N, C, H, W] what lies at the places; zero where there is none."""
    height, width = x.shape[2:]
    cell, inside = _cells(argmax, height, width, kernel, stride)
    return torch.where(inside, x.flatten(2).gather(2, cell).view_as(argmax), 0)


def _keep_pooling(ctx, inputs, output):
    x, ctx.kernel, ctx.stride, _ = inputs
    ctx.save_for_backward(output[1], x.new_empty(()).expand(1, 1, *x.shape[2:]))
    ctx.mark_non_differentiable(output[1])


def _pooling_backward(ctx, grad, _):
    argmax, like = ctx.saved_tensors
    return max_unpool(grad, argmax, like, ctx.kernel, ctx.stride), None, None, None


def _keep_unpooling(ctx, inputs, output):
    _, argmax, _, ctx.kernel, ctx.stride = inputs
    ctx.save_for_backward(argmax)


def _unpooling_backward(ctx, grad):
    (argmax,) = ctx.saved_tensors
    return _gathered(grad, argmax, ctx.kernel, ctx.stride), None, None, None, None


max_pool_argmax.register_autograd(_pooling_backward, setup_context=_keep_pooling)
max_unpool.register_autograd(_unpooling_backward, setup_context=_keep_unpooling)
