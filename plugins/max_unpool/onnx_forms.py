"""RegionMaxUnpool in ONNX: its schema, and its native and portable forms. RegionMaxPool's stand in pool_forms.py."""

import numpy as np
import onnx_ir as ir
from onnx.defs import OpSchema

from ..schemas import FLOATS, INT32, attribute, domain_schema
from .pool_forms import first_cells, narrow_types, original_type, side
from .reference import unpooled_from

SCHEMA = domain_schema(
    "RegionMaxUnpool",
    "Values put back to their places in windows that do not overlap, zero elsewhere. Of `like` only H and W are used.",
    inputs=[
        ("x", FLOATS, "[N, C, h, w]"),
        ("argmax", INT32, "int32 [N, C, h, w]: row · kernel + column in the window"),
        ("like", FLOATS, "[N, C, H, W]: the map that was pooled"),
    ],
    outputs=[("unpooled", FLOATS, "[N, C, H, W]")],
    attributes=[attribute(name, OpSchema.AttrType.INT) for name in ("kernel", "stride")],
)


def native(op, inputs, attributes):
    """By MaxUnpool, with indices made of the places. It is given no output shape, which runtimes read differently: its
    map holds the windows whole, and is cut then. Windows with gaps between them: as `portable`."""
    kernel, stride = attributes["kernel"], attributes["stride"]
    if kernel != stride:
        return portable(op, inputs, attributes)
    x, argmax, like = _padded(op, inputs, kernel, stride)
    height, width = (op.Mul(side(op, x, axis), stride) for axis in (2, 3))
    known = op.And(op.GreaterOrEqual(argmax, _int32(op, 0)), op.Less(argmax, _int32(op, kernel * kernel)))
    place = op.Cast(op.Where(known, argmax, _int32(op, 0)), to=7)
    offset = op.Add(place, op.Mul(op.Div(place, kernel), op.Sub(width, kernel)))
    flat = op.Add(offset, first_cells(op, x, height, width, stride))
    values = op.Where(known, x if x.dtype == ir.DataType.FLOAT else op.Cast(x, to=1), 0.0)  # float32 is all that
    out = op.MaxUnpool(values, flat, kernel_shape=[kernel, kernel], strides=[stride, stride])  # ONNX Runtime has
    return [original_type(op, _cut(op, out, like, stride), inputs[0])]


def portable(op, inputs, attributes):
    """By one comparison: [N, C, h, 1, w, 1] against the cells of a window [k, 1, k], then the axes joined to a map."""
    kernel, stride = attributes["kernel"], attributes["stride"]
    x, argmax, like = _padded(op, inputs, kernel, stride)
    cells = np.arange(kernel * kernel, dtype=np.int32).reshape(kernel, 1, kernel)
    here = op.Equal(op.Unsqueeze(argmax, [3, 5]), op.Constant(value=ir.tensor(cells)))
    spread = op.Where(here, op.Unsqueeze(x, [3, 5]), op.CastLike(0.0, x))  # [N, C, h, k, w, k]
    if stride > kernel:
        spread = op.Pad(spread, [0] * 9 + [stride - kernel, 0, stride - kernel])
    sizes = [op.Mul(side(op, x, axis), stride) for axis in (2, 3)]
    out = op.Reshape(spread, op.Concat(op.Shape(x, start=0, end=2), *sizes, axis=0))
    return [original_type(op, _cut(op, out, like, stride), inputs[0])]


FORMS = {"native": native, "portable": portable}


def _padded(op, inputs, kernel, stride):
    """x and argmax with windows, of zeros, for the rest of the map that no window covers: ⌈H / stride⌉ × ⌈W / stride⌉.

    Padding them and cutting the map is cheaper than padding the map.
    """
    x, argmax, like = narrow_types(op, inputs[0]), *inputs[1:]
    if known := _known_sides(x, like):
        unpooled_from(*reversed(known), kernel, stride)
        rest = [-(-length // stride) - windows for windows, length in zip(*known, strict=True)]
        if not any(rest):
            return x, argmax, like
        pads = op.Constant(value_ints=[0] * 6 + rest)
    else:
        wanted = op.Div(op.Add(op.Shape(like, start=2, end=4), stride - 1), stride)
        pads = op.Concat([0] * 6, op.Sub(wanted, op.Shape(x, start=2, end=4)), axis=0)
    return op.Pad(x, pads), op.Pad(argmax, pads), like


def _known_sides(*values):
    """(H, W) of each, where all are constants."""
    sides = [tuple(value.shape[2:]) for value in values]
    return sides if all(isinstance(length, int) for pair in sides for length in pair) else None


def _cut(op, whole, like, stride):
    """The top left H × W of the map."""
    known = _known_sides(like)
    if known and not any(length % stride for length in known[0]):
        return whole
    return op.Slice(whole, [0, 0], op.Concat(side(op, like, 2), side(op, like, 3), axis=0), [2, 3])


def _int32(op, value):
    return op.Constant(value=ir.tensor(np.int32(value)))
