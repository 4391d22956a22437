"""RegionMaxPool in ONNX: its schema, and its native and portable forms."""

import numpy as np
import onnx_ir as ir
from onnx.defs import OpSchema

from ..schemas import FLOATS, INT32, attribute, domain_schema
from .reference import window_count

SCHEMA = domain_schema(
    "RegionMaxPool",
    "Maxima of windows that do not overlap, and where in its window each lies (row · kernel + column).",
    inputs=[("x", FLOATS, "[N, C, H, W]")],
    outputs=[("values", FLOATS, "[N, C, h, w]"), ("argmax", INT32, "int32 [N, C, h, w]")],
    attributes=[attribute(name, OpSchema.AttrType.INT) for name in ("kernel", "stride", "ceil_mode")],
)


def native(op, inputs, attributes):
    """By MaxPool with indices, which count within the whole batch: each less that of its window's first cell.

    ONNX Runtime's MaxPool passes over NaN. Windows with gaps between them: as `portable`, because runtimes differ in
    how many of those ceil_mode gives.
    """
    (x,) = inputs
    kernel, stride, ceil_mode = _checked(x, attributes)
    if kernel != stride:
        return portable(op, inputs, attributes)
    values, flat = op.MaxPool(
        _narrow_types(op, x),
        kernel_shape=[kernel, kernel],
        strides=[stride, stride],
        ceil_mode=int(ceil_mode),
        _outputs=2,
    )
    width = side(op, x, 3)
    first = first_cells(op, flat, side(op, x, 2), width, stride)
    offset = op.Clip(op.Sub(flat, first), op.Constant(value_int=0))  # a window of −inf or NaN alone has no index
    row = op.Div(offset, width)
    place = op.Sub(offset, op.Mul(row, op.Sub(width, kernel)))
    return [_original_type(op, values, x), op.Cast(place, to=6)]


def portable(op, inputs, attributes):
    """By comparisons: the windows' first cells, then their second, …, each a slice of the map."""
    (x,) = inputs
    kernel, stride, ceil_mode = _checked(x, attributes)
    cells = _narrow_types(op, x)
    if ceil_mode and not _fits(x, kernel, stride):  # nothing beyond the edge is larger than what is inside
        beyond = op.CastLike(op.Constant(value_float=float("-inf")), cells)
        cells = op.Pad(cells, [0, 0, 0, 0, 0, 0, kernel - 1, kernel - 1], beyond)

    def slice_from(row, column):
        ends = [start + 1 - kernel or np.iinfo(np.int64).max for start in (row, column)]  # whole windows only
        return op.Slice(cells, [row, column], ends, [2, 3], [stride, stride])

    best = slice_from(0, 0)
    place = op.Expand(op.Constant(value=ir.tensor(np.int32(0))), op.Shape(best))
    for index in range(1, kernel * kernel):
        value = slice_from(index // kernel, index % kernel)
        better = op.Or(op.Greater(value, best), op.IsNaN(value))
        best = op.Where(better, value, best)
        place = op.Where(better, op.Constant(value=ir.tensor(np.int32(index))), place)
    return [_original_type(op, best, x), place]


FORMS = {"native": native, "portable": portable}


def side(op, value, axis):
    """The length of one axis as int64 [1], a constant where it is known."""
    length = value.shape[axis] if value.shape is not None else None
    if isinstance(length, int):
        return op.Constant(value_ints=[length])
    return op.Shape(value, start=axis, end=axis + 1)


def first_cells(op, windows, height, width, stride):
    """int64 [N, C, h, w]: where in a whole batch of maps [N, C, height, width] each of the `windows` [N, C, h, w] begins."""

    def steps(axis, step, shape):
        places = op.Range(0, op.Squeeze(side(op, windows, axis)), 1)
        return op.Reshape(op.Mul(places, step), shape)

    plane = op.Mul(height, width)
    image = steps(0, op.Mul(plane, side(op, windows, 1)), [-1, 1, 1, 1])
    corner = op.Add(steps(2, op.Mul(width, stride), [1, 1, -1, 1]), steps(3, [stride], [1, 1, 1, -1]))
    return op.Add(op.Add(image, steps(1, plane, [1, -1, 1, 1])), corner)


def _checked(x, attributes):
    """kernel, stride, ceil_mode; ValueError where the map's size, if known, has no windows."""
    kernel, stride, ceil_mode = attributes["kernel"], attributes["stride"], bool(attributes["ceil_mode"])
    for length in x.shape[2:]:
        window_count(length if isinstance(length, int) else kernel, kernel, stride, ceil_mode)
    return kernel, stride, ceil_mode


def _fits(x, kernel, stride):
    """Whether both sides are known, and no window hangs over the edge."""
    sides = [length for length in x.shape[2:] if isinstance(length, int)]
    return len(sides) == 2 and all(-(-length // stride) == (length - kernel) // stride + 1 for length in sides)


def _narrow_types(op, x):
    """ONNX Runtime compares no bf16: float32 then, which selects the same."""
    return op.Cast(x, to=1) if x.dtype == ir.DataType.BFLOAT16 else x


def _original_type(op, value, x):
    return op.Cast(value, to=16) if x.dtype == ir.DataType.BFLOAT16 else value
