"""RegionMerge in ONNX: its schema, and its form, which is native and portable at once: arithmetic and a Loop."""

import onnx_ir as ir
from onnx.defs import OpSchema

from .. import boxes as box_math
from ..schemas import FLOAT32, INT32, attribute, domain_schema

SCHEMA = domain_schema(
    "RegionMerge",
    "Boxes that windows in the image predict, merged: softmax, score filter, clip, the nearest two become one, best D.",
    inputs=[
        ("class_logits", FLOAT32, "float32 [N, Q, K+1]"),
        ("box_edges", FLOAT32, "float32 [N, Q, 4K] or [N, Q, 4]"),
        ("windows", FLOAT32, "float32 [Q, 4]"),
        ("image_sizes", INT32, "int32 [N, 2]"),
    ],
    outputs=[
        ("num_detections", INT32, "int32 [N]"),
        ("boxes", FLOAT32, "float32 [N, D, 4]"),
        ("scores", FLOAT32, "float32 [N, D]"),
        ("labels", INT32, "int32 [N, D]"),
        ("overflow", INT32, "int32 [N]"),
    ],
    attributes=[
        attribute("window_threshold", OpSchema.AttrType.FLOAT),
        attribute("merge_threshold", OpSchema.AttrType.FLOAT),
        attribute("score_threshold", OpSchema.AttrType.FLOAT),
        attribute("max_detections", OpSchema.AttrType.INT),
        attribute("candidates", OpSchema.AttrType.INT),
        attribute("min_size", OpSchema.AttrType.FLOAT),
        attribute("class_agnostic", OpSchema.AttrType.INT),
    ],
)

_NEVER = 1e9  # instead of a score: more than any, and no infinity, which engines may compute with


def portable(op, inputs, attributes):
    """With the matrix of all pairs' scores in a Loop: each round merges one pair of each image, and renews two rows."""
    class_logits, box_edges, windows, image_sizes = inputs
    most, classes = class_logits.shape[1], class_logits.shape[2] - 1
    threshold, limit = float(attributes["window_threshold"]), attributes["max_detections"]
    cap = min(attributes["candidates"], most * classes)

    probabilities = op.Slice(op.Softmax(class_logits, axis=-1), [1], [classes + 1], [2])  # [N, Q, K]
    outside = op.Unsqueeze(_outside(op, windows, image_sizes), [2])
    probabilities = op.Reshape(op.Where(outside, 0.0, probabilities), [0, -1])
    above = op.ReduceSum(op.Cast(op.Greater(probabilities, threshold), to=6), [1], keepdims=0)
    overflow = op.Sub(op.Max(above, cap), cap)
    scores, best = op.TopK(probabilities, [cap], axis=1, _outputs=2)  # [N, C]
    window = op.Div(best, classes)
    label = op.Sub(best, op.Mul(window, classes))  # 0..K−1
    edges = box_math.emit_take(op, op.Reshape(box_edges, [0, -1, 4]), window if attributes["class_agnostic"] else best)
    corner, far = op.Split(op.Gather(windows, window, axis=0), axis=-1, num_outputs=2, _outputs=2)  # [N, C, 2]
    side = op.Sub(far, corner)
    boxes = op.Add(op.Concat(corner, corner, axis=-1), op.Mul(edges, op.Concat(side, side, axis=-1)))
    boxes = box_math.emit_clip(op, boxes, image_sizes)
    valid = op.And(op.Greater(scores, threshold), box_math.emit_large_enough(op, boxes, attributes["min_size"]))
    boxes = op.Where(op.Unsqueeze(valid, [2]), boxes, 0.0)
    confidence = op.Where(valid, scores, 0.0)
    group = op.Where(valid, op.Cast(label, to=1), op.Sub(-1.0, op.Cast(op.Range(0, cap, 1), to=1)))  # none shares one
    boxes, confidence = _merged(op, boxes, confidence, group, cap, float(attributes["merge_threshold"]))

    final = op.Div(confidence, op.Add(confidence, 1.0))
    kept = op.And(op.Greater(confidence, 0.0), op.Greater(final, float(attributes["score_threshold"])))
    order = op.Pad(op.Where(kept, confidence, -1.0), [0, 0, 0, limit], -1.0)  # there may be fewer than rows to give
    sums, best = op.TopK(order, [limit], axis=1, _outputs=2)
    found = op.GreaterOrEqual(sums, 0.0)
    scores = op.Where(found, op.GatherElements(op.Pad(final, [0, 0, 0, limit], 0.0), best, axis=1), -1.0)
    boxes = box_math.emit_take(op, op.Pad(boxes, [0, 0, 0, 0, limit, 0], 0.0), best)
    boxes = op.Where(op.Unsqueeze(found, [2]), boxes, 0.0)
    labels = op.GatherElements(op.Pad(op.Add(op.Cast(label, to=6), 1), [0, 0, 0, limit], -1), best, axis=1)
    number = op.ReduceSum(op.Cast(found, to=6), [1], keepdims=0)
    return [number, boxes, scores, op.Where(found, labels, -1), overflow]


FORMS = {"native": portable, "portable": portable}


def _outside(op, windows, image_sizes):
    """bool [N, Q]: what `reference.in_image` leaves out of `windows` [Q, 4]."""
    left, top, right, bottom = (op.Transpose(c, perm=[1, 0]) for c in box_math.emit_columns(op, windows))  # [1, Q]
    height, width = op.Split(op.Cast(image_sizes, to=1), axis=-1, num_outputs=2, _outputs=2)  # [N, 1]

    def beyond(low, high, limit):
        return op.And(op.Greater(low, 0.0), op.GreaterOrEqual(op.Mul(op.Add(low, high), 0.5), limit))

    return op.Or(beyond(left, right, width), beyond(top, bottom, height))


def _merged(op, boxes, confidence, group, cap, threshold):
    """`boxes` [N, C, 4] and `confidence` [N, C] after the merges, C = cap; what was merged into another has none.

    The matrix is symmetric: the first row with the lowest score has it at the earliest pair.
    """
    rank = op.Cast(op.Range(0, cap, 1), to=7)  # [C]
    same = op.Equal(op.Unsqueeze(group, [2]), op.Unsqueeze(group, [1]))  # [N, C, C]
    others = op.Not(op.Equal(op.Unsqueeze(rank, [0]), op.Unsqueeze(rank, [1])))
    scores = op.Where(op.And(same, others), _match_scores(op, boxes, boxes), _NEVER)

    def round_(inner, iteration, condition, boxes, confidence, scores):
        inner.builder.push_module("round")  # names of its own: those of the graph around it may not come again
        least = inner.ReduceMin(scores, [2], keepdims=0)  # [N, C]
        first = inner.ArgMin(least, axis=1, keepdims=1)  # [N, 1]
        going = inner.LessOrEqual(inner.GatherElements(least, first, axis=1), threshold)  # [N, 1]
        row = inner.Squeeze(inner.GatherND(scores, inner.Unsqueeze(first, [2]), batch_dims=1), [1])  # [N, C]
        second = inner.ArgMin(row, axis=1, keepdims=1)
        stays = inner.And(inner.Equal(rank, first), going)  # [N, C]
        goes = inner.And(inner.Equal(rank, second), going)

        def of(values, place):
            return inner.GatherElements(values, place, axis=1)

        one, other = of(confidence, first), of(confidence, second)
        both = inner.Add(one, other)  # [N, 1]
        weighed = [
            inner.Mul(box_math.emit_take(inner, boxes, place), inner.Unsqueeze(weight, [2]))
            for place, weight in ((first, one), (second, other))
        ]
        merged = inner.Div(inner.Add(*weighed), inner.Unsqueeze(inner.Max(both, 1e-30), [2]))  # [N, 1, 4]
        boxes = inner.Where(inner.Unsqueeze(stays, [2]), merged, boxes)
        confidence = inner.Where(stays, both, inner.Where(goes, 0.0, confidence))

        # A row holds a score below _NEVER for what it may still be merged with; `row` has that for the first box.
        partners = inner.And(inner.Less(row, _NEVER), inner.Not(goes))
        renewed = inner.Where(partners, inner.Squeeze(_match_scores(inner, merged, boxes), [1]), _NEVER)  # [N, C]
        scores = inner.Where(inner.Unsqueeze(stays, [2]), inner.Unsqueeze(renewed, [1]), scores)
        scores = inner.Where(inner.Unsqueeze(stays, [1]), inner.Unsqueeze(renewed, [2]), scores)
        gone = inner.Or(inner.Unsqueeze(goes, [1]), inner.Unsqueeze(goes, [2]))
        scores = inner.Where(gone, _NEVER, scores)
        more = inner.Greater(inner.ReduceMax(inner.Cast(going, to=1), keepdims=0), 0.5)
        return more, boxes, confidence, scores

    carried = {"boxes": boxes, "confidence": confidence, "scores": scores}
    body = op.builder.subgraph(
        round_,
        [
            ir.val("iteration", ir.DataType.INT64, []),
            ir.val("condition", ir.DataType.BOOL, []),
            *(ir.val(f"{name}_before", ir.DataType.FLOAT, value.shape) for name, value in carried.items()),
        ],
        [ir.val("more", ir.DataType.BOOL, []), *(ir.val(f"{name}_after", ir.DataType.FLOAT) for name in carried)],
        name="merge",
    )
    boxes, confidence, _ = op.Loop(None, op.Constant(value=ir.tensor(True)), *carried.values(), body=body, _outputs=3)
    return boxes, confidence


def _match_scores(op, one, other):
    """`reference.match_scores` of each of `one` [N, A, 4] with each of `other` [N, B, 4] -> [N, A, B]."""
    x1, y1, x2, y2 = box_math.emit_columns(op, one)  # each [N, A, 1]
    u1, v1, u2, v2 = (op.Transpose(c, perm=[0, 2, 1]) for c in box_math.emit_columns(op, other))  # each [N, 1, B]
    width = op.Max(op.Sub(op.Min(x2, u2), op.Max(x1, u1)), 0.0)
    height = op.Max(op.Sub(op.Min(y2, v2), op.Max(y1, v1)), 0.0)
    shared = op.Mul(width, height)
    area = op.Mul(op.Sub(x2, x1), op.Sub(y2, y1))
    joined = op.Sub(op.Add(area, op.Mul(op.Sub(u2, u1), op.Sub(v2, v1))), shared)
    around_x, around_y = op.Sub(op.Max(x2, u2), op.Min(x1, u1)), op.Sub(op.Max(y2, v2), op.Min(y1, v1))
    apart_x, apart_y = op.Sub(op.Add(x1, x2), op.Add(u1, u2)), op.Sub(op.Add(y1, y2), op.Add(v1, v2))
    distance = op.Add(op.Mul(apart_x, apart_x), op.Mul(apart_y, apart_y))
    diagonal = op.Max(op.Add(op.Mul(around_x, around_x), op.Mul(around_y, around_y)), 1e-30)  # padding: zero boxes
    lacking = op.Sub(1.0, op.Div(shared, op.Max(joined, 1e-30)))
    return op.Add(op.Mul(op.Sqrt(op.Div(distance, diagonal)), 0.5), lacking)
