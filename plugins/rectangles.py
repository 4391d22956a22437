"""What ops that pool regions share in ONNX: which RoIs are real, and the largest cell of rectangles of cells.

The maximum over rectangles of any size is a sparse table: maps of the largest cell of each window of 2^i × 2^j cells,
made by doubling; four such windows cover a rectangle, so that a bin is four gathers, and exact.
"""

from typing import Any

import numpy as np
import onnx_ir as ir

_LEVELS = 4  # of the table along an axis whose length is not known: windows of 1, 2, 4 and 8 cells


def emit_real(op: Any, rois: Any, counts: Any) -> tuple[Any, Any]:
    """RoIs [R, 4] of R = N·P, zero where not real; and which are: bool [R], below the count and without NaN."""
    position = op.Range(0, op.Squeeze(op.Shape(rois, start=1, end=2)), 1)
    counted = op.Less(op.Cast(op.Unsqueeze(position, [0]), to=6), op.Unsqueeze(counts, [1]))  # [N, P]
    flat = op.Reshape(rois, [-1, 4])
    broken = op.ReduceMax(op.Cast(op.IsNaN(flat), to=1), [1], keepdims=0)
    real = op.And(op.Reshape(counted, [-1]), op.Less(broken, 0.5))
    return op.Where(op.Unsqueeze(real, [1]), flat, 0.0), real


def emit_image_of_row(op: Any, rois: Any) -> Any:
    """int64 [N·P]: the image of each row of the flattened RoIs."""
    image = op.Range(0, op.Squeeze(op.Shape(rois, start=0, end=1)), 1)
    return op.Reshape(op.Expand(op.Unsqueeze(image, [1]), op.Shape(rois, start=0, end=2)), [-1])


def emit_into_place(op: Any, pooled: Any, rows: Any, real: Any) -> Any:
    """`pooled` [S, …] of rows `rows` int64 [S] -> [R, …], zero where not `real`: a gather, with one row of zeros."""
    blank = op.Expand(0.0, op.Concat([1], op.Shape(pooled, start=1), axis=0))
    found = op.Shape(rows)
    position = op.ScatterElements(
        op.Expand(found, op.Shape(real)), rows, op.Range(0, op.Squeeze(found), 1), axis=0
    )  # those that are not found read the zeros behind the last
    return op.Gather(op.Concat(pooled, blank, axis=0), position)


def emit_unflatten(op: Any, pooled: Any, rois: Any, feature: Any) -> Any:
    """[N·P, …] -> [N, P, …] in the feature's type."""
    out = op.Reshape(pooled, op.Concat(op.Shape(rois, start=0, end=2), op.Shape(pooled, start=1), axis=0))
    return out if feature.dtype in (None, ir.DataType.FLOAT) else op.CastLike(out, feature)


def emit_side(op: Any, feature: Any, axis: int) -> Any:
    """int64 [1]: a side of the map. Through float and back: TensorRT for RTX 1.7 fails on sizes of a dynamic shape that
    are used as data after a Loop."""
    known = feature.shape[axis] if feature.shape is not None else None
    if isinstance(known, int):
        return op.Constant(value_ints=[known])
    return op.Cast(op.Cast(op.Shape(feature, start=axis, end=axis + 1), to=1), to=7)


def known_sides(feature: Any) -> list[int | None]:
    """Height and width of the map, None where they are dynamic."""
    shape = feature.shape if feature.shape is not None else [None] * 4
    return [side if isinstance(side, int) else None for side in (shape[2], shape[3])]


class LargestCells:
    """The sparse table of one feature map [N, C, H, W], and rectangles of it."""

    def __init__(self, op: Any, feature: Any) -> None:
        self.op = op
        self.sides = known_sides(feature)
        self.levels = [_LEVELS if side is None else side.bit_length() for side in self.sides]
        self.images = op.Shape(feature, start=0, end=1)
        self.height, self.width = emit_side(op, feature, 2), emit_side(op, feature, 3)
        cells = op.Transpose(op.Cast(feature, to=1), perm=[0, 2, 3, 1])  # [N, H, W, C]
        maps = []
        for i in range(self.levels[0]):
            if i > 0:
                cells = op.Max(cells, self._shifted(cells, 1, 2 ** (i - 1)))
            window = cells
            for j in range(self.levels[1]):
                if j > 0:
                    window = op.Max(window, self._shifted(window, 2, 2 ** (j - 1)))
                maps.append(window)
        stacked = maps[0] if len(maps) == 1 else op.Concat(*maps, axis=0)
        self.table = op.Reshape(stacked, op.Concat([-1], op.Shape(feature, start=1, end=2), axis=0))

    def _shifted(self, cells: Any, axis: int, by: int) -> Any:
        """Each cell's neighbour `by` cells on; at the end of the map the last one, which is in the window already."""
        op, known = self.op, self.sides[axis - 1]
        if known is not None:
            at = op.Constant(value=ir.tensor(np.minimum(np.arange(known) + by, known - 1)))
        else:
            side = self.height if axis == 1 else self.width
            at = op.Min(op.Add(op.Range(0, op.Squeeze(side), 1), by), op.Sub(side, 1))
        return op.Gather(cells, at, axis=axis)

    def of(self, image: Any, rows: tuple[Any, Any], columns: tuple[Any, Any]) -> Any:
        """[R, h, w, C] from cells `rows` (begin, end) int64 [R, h] × `columns` [R, w] of `image` int64 [R].

        Begin and end are within 0 to the map's side; a rectangle without cells gives 0.
        """
        op = self.op
        empty_rows, empty_columns = (op.GreaterOrEqual(*edges) for edges in (rows, columns))
        if None not in self.sides:
            found = self._windows(op, image, rows, columns, None)
        else:
            found = self._steps(image, rows, columns)
        empty = op.Or(op.Unsqueeze(empty_rows, [2, 3]), op.Unsqueeze(empty_columns, [1, 3]))
        return op.Where(empty, 0.0, found)

    def _steps(self, image: Any, rows: tuple[Any, Any], columns: tuple[Any, Any]) -> Any:
        """A Loop: rectangles that are larger than the table's windows cover are gone through in steps."""
        op = self.op

        def number(edges, axis):
            span = 2 ** (self.levels[axis] - 1)
            longest = op.ReduceMax(op.Sub(edges[1], edges[0]), keepdims=0)
            return op.Max(op.Div(op.Add(longest, span - 1), span), 1)

        across = number(columns, 1)
        first = self._windows(op, image, rows, columns, (0, 0))

        def step(inner, iteration, condition, best):
            inner.builder.push_module("steps")  # names of its own: values outside are counted alike
            down = inner.Div(iteration, across)
            at = (down, inner.Sub(iteration, inner.Mul(down, across)))
            return inner.Identity(condition), inner.Max(best, self._windows(inner, image, rows, columns, at))

        body = op.builder.subgraph(
            step,
            [
                ir.val("iteration", ir.DataType.INT64, []),
                ir.val("condition", ir.DataType.BOOL, []),
                ir.val("best", ir.DataType.FLOAT),
            ],
            [ir.val("again", ir.DataType.BOOL, []), ir.val("better", ir.DataType.FLOAT)],
            name="steps",
        )
        trips = op.Mul(number(rows, 0), across)
        return op.Loop(trips, op.Constant(value=ir.tensor(True)), first, body=body)

    def _windows(self, op: Any, image: Any, rows: Any, columns: Any, step: Any) -> Any:
        """The largest of the four windows that cover the rectangles, or their part of step `step` = (down, across)."""
        of_map = op.Mul(self.height, self.width)
        of_level = op.Mul(of_map, self.images)
        base = op.Unsqueeze(op.Mul(image, of_map), [1])  # [R, 1]
        down = self._taps(op, rows, 0, step)
        across = self._taps(op, columns, 1, step)
        best = None
        for level_y, y in down:
            from_rows = op.Add(op.Mul(level_y, op.Mul(of_level, self.levels[1])), op.Add(op.Mul(y, self.width), base))
            for level_x, x in across:
                from_columns = op.Add(op.Mul(level_x, of_level), x)
                at = op.Add(op.Unsqueeze(from_rows, [2]), op.Unsqueeze(from_columns, [1]))  # [R, h, w]
                cells = op.Gather(self.table, at, axis=0)
                best = cells if best is None else op.Max(best, cells)
        return best

    def _taps(self, op: Any, edges: Any, axis: int, step: Any) -> list[tuple[Any, Any]]:
        """Level and place, int64 [R, bins] each, of the two windows that cover cells [begin, end) of an axis."""
        begin, end = edges
        levels, side = self.levels[axis], (self.height, self.width)[axis]
        start = begin
        if step is not None:
            start = op.Min(op.Add(begin, op.Mul(step[axis], 2 ** (levels - 1))), op.Sub(end, 1))
        start = op.Max(op.Min(start, op.Sub(side, 1)), 0)  # of an empty range: any cell
        count = op.Max(op.Sub(end, start), 1)
        if step is not None:
            count = op.Min(count, 2 ** (levels - 1))
        sizes = [2**i for i in range(1, levels)]
        if not sizes:
            return [(op.Mul(start, 0), start)]
        reached = op.GreaterOrEqual(op.Unsqueeze(count, [2]), op.Constant(value_ints=sizes))
        level = op.ReduceSum(op.Cast(reached, to=7), [2], keepdims=0)
        window = op.Gather(op.Constant(value_ints=[1, *sizes]), level)
        return [(level, start), (level, op.Sub(op.Add(start, count), window))]
