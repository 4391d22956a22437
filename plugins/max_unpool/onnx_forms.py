"""RegionMaxUnpool in ONNX: its schema, and its one form, by comparisons. RegionMaxPool's stands in pool_forms.py.

The standard MaxUnpool is in ONNX Runtime alone, for float32 on one CPU core, with indices that count within the whole
batch: making those of places and unpooling takes as long. The native form is the portable one.
"""

from onnx.defs import OpSchema

from ..schemas import FLOATS, INT32, attribute, domain_schema
from .pool_forms import int32, known_sides, narrow_types, original_type
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


def portable(op, inputs, attributes):
    """What belongs to each place, [N, C, h, w] each, interleaved by DepthToSpace."""
    kernel, stride = attributes["kernel"], attributes["stride"]
    x, argmax, like = _padded(op, inputs, kernel, stride)
    zero = op.CastLike(0.0, x)
    parts = [op.Where(op.Equal(argmax, int32(op, place)), x, zero) for place in range(kernel**2)]
    if kernel < stride:
        blank = op.Expand(zero, op.Shape(x))
        cells = [(row, column) for row in range(stride) for column in range(stride)]
        parts = [parts[row * kernel + column] if max(row, column) < kernel else blank for row, column in cells]
    out = op.DepthToSpace(op.Concat(*parts, axis=1), blocksize=stride, mode="DCR")
    return [original_type(op, _cut(op, out, like, stride), inputs[0])]


FORMS = {"native": portable, "portable": portable}


def _padded(op, inputs, kernel, stride):
    """x and argmax with windows, of zeros, for the rest of the map that no window covers: ⌈H / stride⌉ × ⌈W / stride⌉.

    Padding them and cutting the map is cheaper than padding the map.
    """
    x, argmax, like = inputs
    x = narrow_types(op, x)
    windows, sides = known_sides(argmax), known_sides(like)
    if windows and sides:
        unpooled_from(sides, windows, kernel, stride)
        rest = [-(-length // stride) - count for count, length in zip(windows, sides, strict=True)]
        if not any(rest):
            return x, argmax, like
        pads = op.Constant(value_ints=[0] * 6 + rest)
    else:
        wanted = op.Div(op.Add(op.Shape(like, start=2, end=4), stride - 1), stride)
        pads = op.Concat([0] * 6, op.Sub(wanted, op.Shape(x, start=2, end=4)), axis=0)
    return op.Pad(x, pads), op.Pad(argmax, pads), like


def _cut(op, whole, like, stride):
    """The top left H × W of the map."""
    sides = known_sides(like)
    if sides and not any(length % stride for length in sides):
        return whole
    return op.Slice(whole, [0, 0], op.Shape(like, start=2, end=4), [2, 3])
