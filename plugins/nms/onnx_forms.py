"""RegionNms in ONNX: its schema, and its native, portable and plugin forms."""

from typing import Any

import onnx_ir as ir
from onnx.defs import OpSchema

from .. import boxes as box_math
from .. import plugin_nodes
from ..schemas import FLOAT32, INT32, attribute, domain_schema
from .tensorrt_plugin import MOST_BOXES, PLUGINS

SCHEMA = domain_schema(
    "RegionNms",
    "Exact greedy NMS per class on boxes sorted by score; negative classes are padding.",
    inputs=[("boxes", FLOAT32, "float32 [N, Q, 4]"), ("classes", INT32, "int32 [N, Q]")],
    outputs=[("keep", ["tensor(bool)"], "bool [N, Q]")],
    attributes=[attribute("iou_threshold", OpSchema.AttrType.FLOAT), attribute("num_classes", OpSchema.AttrType.INT)],
)


def native(op, inputs, attributes):
    """By NonMaxSuppression. Its scores are made from the positions, so that equal scores cannot change the order."""
    boxes, classes = inputs
    return [emit(op, boxes, classes, attributes["iou_threshold"], attributes["num_classes"], "native")]


def portable(op, inputs, attributes):
    """By arithmetic and a Loop: keep <- valid and not suppressed by a kept box, until nothing changes.

    Each round fixes at least the first box that was still wrong, so the fixed point is reached and is the greedy
    solution; usually in less than ten rounds, at most in Q.
    """
    boxes, classes = inputs
    return [emit(op, boxes, classes, attributes["iou_threshold"], attributes["num_classes"], "portable")]


def plugin(op, inputs, attributes):
    """By one node for TensorRT, which launches our kernel."""
    boxes, classes = inputs
    return [emit(op, boxes, classes, attributes["iou_threshold"], attributes["num_classes"], "plugin")]


FORMS = {"native": native, "portable": portable, "plugin": plugin}


def emit(op: Any, boxes: Any, classes: Any, iou_threshold: float, num_classes: int, form: str) -> Any:
    """Nodes of the given form for `boxes` float32 [N, Q, 4], `classes` int32 [N, Q]; Q must be known. -> bool [N, Q]"""
    emitters = {"native": _emit_native, "portable": _emit_portable, "plugin": _emit_plugin}
    return emitters[form](op, boxes, classes, iou_threshold, num_classes)


def _emit_native(op, boxes, classes, iou_threshold, num_classes):
    number = op.Shape(classes, start=1, end=2)
    one = op.Squeeze(number)
    rank = op.Cast(op.Range(one, 0, -1), to=1)  # Q..1, exact in float32
    mine = op.Equal(op.Unsqueeze(classes, [1]), op.Cast(op.Reshape(op.Range(0, num_classes, 1), [1, -1, 1]), to=6))
    scores = op.Where(mine, rank, -1.0)  # [N, K, Q]
    picked = op.NonMaxSuppression(boxes, scores, number, [float(iou_threshold)], [0.0])  # [S, 3]: image, class, box
    where = op.Gather(picked, [0, 2], axis=1)
    marks = op.Expand(op.CastLike([1], number), op.Shape(where, start=0, end=1))
    blank = op.Expand(op.CastLike([0], number), op.Shape(classes))
    return op.Cast(op.ScatterND(blank, where, marks), to=9)


def _emit_portable(op, boxes, classes, iou_threshold, num_classes):
    x1, y1, x2, y2 = box_math.emit_columns(op, boxes)  # each [N, Q, 1]
    area = op.Mul(op.Sub(x2, x1), op.Sub(y2, y1))

    def row(column):
        return op.Transpose(column, perm=[0, 2, 1])  # [N, 1, Q]

    width = op.Max(op.Sub(op.Min(x2, row(x2)), op.Max(x1, row(x1))), 0.0)
    height = op.Max(op.Sub(op.Min(y2, row(y2)), op.Max(y1, row(y1))), 0.0)
    intersection = op.Mul(width, height)
    union = op.Sub(op.Add(area, row(area)), intersection)
    overlap = op.Greater(op.Div(intersection, op.Max(union, 1e-30)), float(iou_threshold))
    same = op.Equal(op.Unsqueeze(classes, [2]), op.Unsqueeze(classes, [1]))
    position = op.Range(0, op.Squeeze(op.Shape(classes, start=1, end=2)), 1)
    earlier = op.Less(op.Unsqueeze(position, [0]), op.Unsqueeze(position, [1]))  # [i, j]: j before i
    suppresses = op.Cast(op.And(op.And(overlap, same), earlier), to=1)  # [N, Q, Q]
    valid = op.Cast(op.GreaterOrEqual(classes, 0), to=1)

    def round_(inner, iteration, condition, keep):
        hit = inner.ReduceMax(inner.Mul(suppresses, inner.Unsqueeze(keep, [1])), [2], keepdims=0)
        kept = inner.Mul(valid, inner.Sub(1.0, hit))
        changed = inner.ReduceMax(inner.Abs(inner.Sub(kept, keep)), keepdims=0)
        return inner.Greater(changed, 0.5), kept

    body = op.builder.subgraph(
        round_,
        [
            ir.val("iteration", ir.DataType.INT64, []),
            ir.val("condition", ir.DataType.BOOL, []),
            ir.val("keep", ir.DataType.FLOAT, valid.shape),
        ],
        [ir.val("changed", ir.DataType.BOOL, []), ir.val("kept", ir.DataType.FLOAT)],
        name="suppress",
    )
    keep = op.Loop(None, op.Constant(value=ir.tensor(True)), valid, body=body)
    return op.Greater(keep, 0.5)


def _emit_plugin(op, boxes, classes, iou_threshold, num_classes):
    rows = None if classes.shape is None else classes.shape[1]
    if isinstance(rows, int) and rows > MOST_BOXES:
        raise ValueError(
            f"the plugin form of RegionNms takes at most {MOST_BOXES} boxes of an image, found {rows}: export "
            "with fewer candidates, or lower the detector's rpn_pre_nms_top_n"
        )
    (plugin_of_nms,) = PLUGINS
    fields = {"iou_threshold": iou_threshold, "num_classes": num_classes}
    return plugin_nodes.emit(op, plugin_of_nms, [boxes, classes], fields)
