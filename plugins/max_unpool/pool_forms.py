"""RegionMaxPool in ONNX: its schema, and its one form, by comparisons.

The standard MaxPool gives indices too, but ONNX Runtime's passes over NaN, takes twice as long with them, and TensorRT
has none: the native form is the portable one.
"""

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


def portable(op, inputs, attributes):
    """The windows' first cells against their second, the larger against their third, and so on."""
    (x,) = inputs
    kernel, stride, ceil_mode = attributes["kernel"], attributes["stride"], bool(attributes["ceil_mode"])
    known = known_sides(x)
    for length in known or (kernel,):
        window_count(length, kernel, stride, ceil_mode)
    cells = narrow_types(op, x)
    if ceil_mode and not (known and _whole(known, kernel, stride)):  # nothing beyond the edge is larger than the inside
        beyond = op.CastLike(op.Constant(value_float=float("-inf")), cells)
        cells = op.Pad(cells, [0, 0, 0, 0, 0, 0, kernel - 1, kernel - 1], beyond)
    best, *others = _cells_of_windows(op, cells, kernel, stride, bool(known) and _whole(known, kernel, stride))
    place = op.Expand(int32(op, 0), op.Shape(best))
    for index, value in enumerate(others, start=1):
        better = op.Or(op.Greater(value, best), op.IsNaN(value))
        best = op.Where(better, value, best)
        place = op.Where(better, int32(op, index), place)
    return [original_type(op, best, x), place]


FORMS = {"native": portable, "portable": portable}


def _cells_of_windows(op, cells, kernel, stride, whole):
    """The windows' first cells [N, C, h, w], their second, …"""
    if kernel == stride:  # faster than as many slices
        if not whole:
            sides = op.Mul(op.Div(op.Shape(cells, start=2, end=4), stride), stride)
            cells = op.Slice(cells, [0, 0], sides, [2, 3])
        apart = op.SpaceToDepth(cells, blocksize=kernel)  # [N, k·k·C, h, w]
        parts = op.Split(apart, axis=1, num_outputs=kernel**2, _outputs=kernel**2)
        return parts if kernel > 1 else [parts]
    starts = [divmod(index, kernel) for index in range(kernel**2)]
    beyond = np.iinfo(np.int64).max
    return [
        op.Slice(cells, start, [at + 1 - kernel or beyond for at in start], [2, 3], [stride, stride])  # whole ones only
        for start in map(list, starts)
    ]


def known_sides(x):
    """(H, W) where both are constants, else None."""
    sides = tuple(x.shape[2:])
    return sides if all(isinstance(length, int) for length in sides) else None


def _whole(sides, kernel, stride):
    """Whether no window hangs over the edge and no rest is left."""
    return kernel == stride and not any(length % stride for length in sides)


def narrow_types(op, x):
    """bf16 as float32, which selects the same: ONNX Runtime neither compares nor pads bf16."""
    return op.Cast(x, to=1) if x.dtype == ir.DataType.BFLOAT16 else x


def original_type(op, value, x):
    """`value`, computed from `narrow_types(x)`, in the type of `x`."""
    return op.Cast(value, to=int(x.dtype)) if x.dtype == ir.DataType.BFLOAT16 else value


def int32(op, value):
    """A constant."""
    return op.Constant(value=ir.tensor(np.asarray(value, np.int32)))
