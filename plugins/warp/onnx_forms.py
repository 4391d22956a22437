"""RegionWarp in ONNX: its schema, and its form, which is native and portable at once."""

import numpy as np
from onnx.defs import OpSchema

from ..rectangles import emit_real, emit_side
from ..schemas import FLOAT32, FLOATS, INT32, attribute, domain_schema
from .reference import check

SCHEMA = domain_schema(
    "RegionWarp",
    "Regions of images stretched to h x w pixels, bilinear, with `context` pixels of what is around them.",
    inputs=[
        ("images", FLOATS, "[N, C, H, W]"),
        ("rois", FLOAT32, "float32 [N, P, 4]"),
        ("counts", INT32, "int32 [N]"),
    ],
    outputs=[("roi_images", FLOATS, "[N, P, C, h, w]")],
    attributes=[
        attribute("output_height", OpSchema.AttrType.INT),
        attribute("output_width", OpSchema.AttrType.INT),
        attribute("context", OpSchema.AttrType.INT),
    ],
)


def portable(op, inputs, attributes):
    """By one GridSample for each image, its RoIs one below the other; what is outside is masked afterwards.

    Every backend has GridSample. Its coordinates are float32 over the whole image: a sample lies up to W · 2⁻²² px off.
    """
    images, rois, counts = inputs
    height, width, context = (attributes[k] for k in ("output_height", "output_width", "context"))
    check((height, width), context)
    flat, real = emit_real(op, rois, counts)
    shape = op.Shape(rois, start=0, end=2)
    per_roi = op.Concat(shape, [4], axis=0)
    corners = op.Split(op.Reshape(flat, per_roi), axis=2, num_outputs=4, _outputs=4)  # [N, P, 1] each

    def axis(low, high, size, side):
        """Places −1 … 1 over the image and whether they are in it, [N, P, size] each."""
        parts = (np.arange(size) + 0.5 - context) / (size - 2 * context)
        length = op.Max(op.Sub(high, low), 1.0)
        at = op.Add(low, op.Mul(length, op.Constant(value_floats=parts.astype(np.float32).tolist())))
        side = op.Cast(side, to=1)
        there = op.And(op.GreaterOrEqual(at, 0.0), op.LessOrEqual(at, side))
        return op.Sub(op.Div(op.Mul(op.Where(there, at, 0.0), 2.0), side), 1.0), there

    y, there_y = axis(corners[1], corners[3], height, emit_side(op, images, 2))
    x, there_x = axis(corners[0], corners[2], width, emit_side(op, images, 3))
    there_y = op.And(there_y, op.Reshape(real, op.Concat(shape, [1], axis=0)))
    whole = op.Concat(shape, [height, width], axis=0)
    grid = op.Concat(
        op.Unsqueeze(op.Expand(op.Unsqueeze(x, [2]), whole), [4]),
        op.Unsqueeze(op.Expand(op.Unsqueeze(y, [3]), whole), [4]),
        axis=4,
    )
    below = op.Reshape(grid, op.Concat(op.Shape(rois, start=0, end=1), [-1, width, 2], axis=0))
    found = op.GridSample(op.Cast(images, to=1), below, mode="linear", padding_mode="border", align_corners=0)
    channels = op.Shape(images, start=1, end=2)
    split = op.Concat(op.Shape(rois, start=0, end=1), channels, op.Shape(rois, start=1, end=2), [height, width], axis=0)
    crops = op.Transpose(op.Reshape(found, split), perm=[0, 2, 1, 3, 4])  # [N, P, C, h, w]
    there = op.And(op.Unsqueeze(there_y, [2, 4]), op.Unsqueeze(there_x, [2, 3]))
    return [op.CastLike(op.Where(there, crops, 0.0), images)]


FORMS = {"native": portable, "portable": portable}
