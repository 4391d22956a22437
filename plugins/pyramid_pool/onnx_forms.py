"""RegionPyramidPool in ONNX: its schema, and its native and portable forms."""

import numpy as np
import onnx_ir as ir
from onnx.defs import OpSchema

from ..rectangles import (
    LargestCells,
    emit_image_of_row,
    emit_into_place,
    emit_real,
    emit_side,
    emit_unflatten,
    known_sides,
)
from ..schemas import FLOAT32, FLOATS, INT32, attribute, domain_schema
from .reference import MOST_CELLS, check, exact_in_float32

SCHEMA = domain_schema(
    "RegionPyramidPool",
    "Maxima of a RoI's window on the map in b x b bins for each level of a pyramid: level by level, each [C, b, b].",
    inputs=[
        ("feature", FLOATS, "[N, C, H, W]"),
        ("rois", FLOAT32, "float32 [N, P, 4]"),
        ("counts", INT32, "int32 [N]"),
    ],
    outputs=[("roi_features", FLOATS, "[N, P, C * sum(b * b)]")],
    attributes=[attribute("spatial_scale", OpSchema.AttrType.FLOAT), attribute("bins", OpSchema.AttrType.INTS)],
)


def native(op, inputs, attributes):
    """By MaxRoiPool, level by level, on the windows of the RoIs that are real, in whole cells; one gather back.

    MaxRoiPool divides in float32. Where that takes another edge for some window, the portable form's gathers are used.
    """
    if not all(exact_in_float32(b) for b in attributes["bins"]):
        return portable(op, inputs, attributes)
    feature, rois, counts = inputs
    flat, real = emit_real(op, rois, counts)
    down, across = _windows(op, feature, flat, attributes)
    there = op.Reshape(op.And(op.Less(*down), op.Less(*across)), [-1])
    rows = op.Squeeze(op.NonZero(op.And(real, there)), [0])
    corners = [across[0], down[0], op.Sub(across[1], 1), op.Sub(down[1], 1)]  # MaxRoiPool's ends are both inside
    regions = op.Cast(op.Concat(op.Unsqueeze(emit_image_of_row(op, rois), [1]), *corners, axis=1), to=1)
    regions = op.Gather(regions, rows)
    wide = op.Cast(feature, to=1)

    def from_map(b):
        return op.MaxRoiPool(wide, regions, pooled_shape=[b, b], spatial_scale=1.0)

    whole = emit_into_place(op, _levels(op, attributes["bins"], from_map), rows, op.And(real, there))
    return [emit_unflatten(op, whole, rois, feature)]


def portable(op, inputs, attributes):
    """By gathers: bin edges from a table of all lengths, four windows of a sparse table for each bin."""
    feature, rois, counts = inputs
    flat, real = emit_real(op, rois, counts)
    windows = _windows(op, feature, flat, attributes)
    table, image = LargestCells(op, feature), emit_image_of_row(op, rois)

    def from_map(b):
        rows, columns = (_bins(op, begin, end, b) for begin, end in windows)
        cells = op.Where(op.Reshape(real, [-1, 1, 1, 1]), table.of(image, rows, columns), 0.0)
        return op.Transpose(cells, perm=[0, 3, 1, 2])

    return [emit_unflatten(op, _levels(op, attributes["bins"], from_map), rois, feature)]


FORMS = {"native": native, "portable": portable}


def _windows(op, feature, flat, attributes):
    """First cells and ends of the RoIs' windows, down and across: int64 [R, 1] each."""
    check(known_sides(feature), attributes["bins"])
    at = op.Mul(flat, float(np.float32(attributes["spatial_scale"])))
    at = op.Max(op.Min(at, float(MOST_CELLS)), -float(MOST_CELLS))
    corners = op.Split(at, axis=1, num_outputs=4, _outputs=4)

    def window(low, high, side):
        begin = op.Add(op.Floor(op.Sub(low, 0.5)), 1.0)
        end = op.Ceil(op.Sub(high, 0.5))
        none = op.GreaterOrEqual(begin, end)
        middle = op.Floor(op.Mul(op.Add(low, high), 0.5))
        edges = op.Where(none, middle, begin), op.Where(none, op.Add(middle, 1.0), end)
        return tuple(op.Max(op.Min(op.Cast(edge, to=7), side), 0) for edge in edges)

    return [window(corners[low], corners[low + 2], emit_side(op, feature, 3 - low)) for low in (1, 0)]


def _bins(op, begin, end, bins):
    """First cell and end of each bin: int64 [R, bins]. By a table: integers are divided as floats here and there."""
    length = np.arange(MOST_CELLS + 1)[:, None]
    index = np.arange(bins)
    tables = (index * length // bins, -(-(index + 1) * length // bins))
    found = op.Squeeze(op.Max(op.Sub(end, begin), 0), [1])
    return tuple(op.Add(op.Gather(op.Constant(value=ir.tensor(table)), found), begin) for table in tables)


def _levels(op, bins, from_map):
    """[R, C · Σb²]: of each level [R, C, b, b] by `from_map(b)`, or from a finer level that its bins divide."""
    pooled: dict = {}
    for b in sorted(set(bins), reverse=True):
        finer = min((other for other in pooled if other % b == 0), default=None)
        size = 0 if finer is None else finer // b
        pooled[b] = op.MaxPool(pooled[finer], kernel_shape=[size] * 2, strides=[size] * 2) if size else from_map(b)
    flat = [op.Flatten(pooled[b], axis=1) for b in bins]
    return flat[0] if len(flat) == 1 else op.Concat(*flat, axis=1)
