"""RegionRoiPool in ONNX: its schema, and its native and portable forms."""

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
from .reference import MOST_CELLS

SCHEMA = domain_schema(
    "RegionRoiPool",
    "The maximum of each of h x w bins of a RoI, whose corners are rounded to cells of the map.",
    inputs=[
        ("feature", FLOATS, "[N, C, H, W]"),
        ("rois", FLOAT32, "float32 [N, P, 4]"),
        ("counts", INT32, "int32 [N]"),
    ],
    outputs=[("roi_features", FLOATS, "[N, P, C, h, w]")],
    attributes=[
        attribute("spatial_scale", OpSchema.AttrType.FLOAT),
        attribute("output_height", OpSchema.AttrType.INT),
        attribute("output_width", OpSchema.AttrType.INT),
    ],
)


def native(op, inputs, attributes):
    """By MaxRoiPool on the RoIs that are real (NonZero: shapes depend on the data), then one gather back into order."""
    feature, rois, counts = inputs
    _check_sides(feature)
    flat, real = emit_real(op, rois, counts)
    rows = op.Squeeze(op.NonZero(real), [0])
    image = op.Cast(op.Gather(emit_image_of_row(op, rois), rows), to=1)
    regions = op.Concat(op.Unsqueeze(image, [1]), op.Gather(_in_cells(op, flat, attributes), rows), axis=1)
    size = [attributes["output_height"], attributes["output_width"]]
    pooled = op.MaxRoiPool(op.Cast(feature, to=1), regions, pooled_shape=size, spatial_scale=1.0)
    return [emit_unflatten(op, emit_into_place(op, pooled, rows, real), rois, feature)]


def portable(op, inputs, attributes):
    """By gathers: bin edges from a table of all lengths, four windows of a sparse table for each bin."""
    feature, rois, counts = inputs
    _check_sides(feature)
    flat, real = emit_real(op, rois, counts)
    at = _in_cells(op, flat, attributes)
    below = op.Floor(at)
    part = op.Sub(at, below)  # exact; Round would round halves to even
    up = op.Or(op.Greater(part, 0.5), op.And(op.GreaterOrEqual(part, 0.5), op.GreaterOrEqual(at, 0.0)))
    left, top, right, bottom = op.Split(
        op.Cast(op.Add(below, op.Cast(up, to=1)), to=7), axis=1, num_outputs=4, _outputs=4
    )

    def edges(first, last, bins, side):
        """First cell and end of each bin, int64 [R, bins]."""
        length = op.Squeeze(op.Max(op.Add(op.Sub(last, first), 1), 1), [1])
        return tuple(
            op.Max(op.Min(op.Add(op.Gather(_constant(op, table), length), first), side), 0) for table in _tables(bins)
        )

    rows = edges(top, bottom, attributes["output_height"], emit_side(op, feature, 2))
    columns = edges(left, right, attributes["output_width"], emit_side(op, feature, 3))
    pooled = LargestCells(op, feature).of(emit_image_of_row(op, rois), rows, columns)  # [R, h, w, C]
    pooled = op.Where(op.Reshape(real, [-1, 1, 1, 1]), pooled, 0.0)
    return [emit_unflatten(op, op.Transpose(pooled, perm=[0, 3, 1, 2]), rois, feature)]


FORMS = {"native": native, "portable": portable}


def _check_sides(feature):
    if any(side is not None and side > MOST_CELLS for side in known_sides(feature)):
        raise ValueError(
            f"RegionRoiPool: expected a map of at most {MOST_CELLS} cells a side, got {known_sides(feature)}: "
            "pool from a coarser one"
        )


def _in_cells(op, flat, attributes):
    """Corners [R, 4] in cells, limited as in the reference, not yet rounded."""
    at = op.Mul(flat, float(np.float32(attributes["spatial_scale"])))
    return op.Max(op.Min(at, float(MOST_CELLS)), -float(MOST_CELLS))


def _tables(bins):
    """Where each bin begins and ends in a RoI of 0 … 2·MOST_CELLS + 1 cells: int64 [length, bin] each.

    A division at run time is rounded differently by OpenVINO and by GPUs, and moves an edge by a cell.
    """
    share = np.arange(2 * MOST_CELLS + 2, dtype=np.float32)[:, None] / np.float32(bins)
    index = np.arange(bins, dtype=np.float32)
    return np.floor(index * share).astype(np.int64), np.ceil((index + 1) * share).astype(np.int64)


def _constant(op, values):
    return op.Constant(value=ir.tensor(values))
