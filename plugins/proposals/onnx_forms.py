"""RegionProposals in ONNX: its schema, and its native, portable and plugin forms, which differ in NMS only."""

from onnx.defs import OpSchema

from .. import boxes as box_math
from ..nms import onnx_forms as nms
from ..schemas import FLOAT32, INT32, MIXED, attribute, domain_schema

SCHEMA = domain_schema(
    "RegionProposals",
    "Region proposals: objectness logits [N, A] of each level, deltas [N, A, 4] of each, anchors [A, 4] of each, "
    "image_sizes int32 [N, 2].",
    inputs=[("inputs", MIXED, "objectness, deltas and anchors per level, image_sizes")],
    outputs=[
        ("rois", FLOAT32, "float32 [N, P, 4]"),
        ("scores", FLOAT32, "float32 [N, P]"),
        ("counts", INT32, "int32 [N]"),
    ],
    attributes=[
        attribute("pre_nms", OpSchema.AttrType.INT),
        attribute("post_nms", OpSchema.AttrType.INT),
        attribute("iou_threshold", OpSchema.AttrType.FLOAT),
        attribute("score_threshold", OpSchema.AttrType.FLOAT),
        attribute("min_size", OpSchema.AttrType.FLOAT),
        attribute("box_weights", OpSchema.AttrType.FLOATS),
    ],
    variadic=True,
)


def native(op, inputs, attributes):
    """With ONNX's NonMaxSuppression."""
    return _emit(op, inputs, attributes, "native")


def portable(op, inputs, attributes):
    """With fixed-point NMS in a Loop."""
    return _emit(op, inputs, attributes, "portable")


def plugin(op, inputs, attributes):
    """With our NMS as a plugin of TensorRT; around it TopK and arithmetic."""
    return _emit(op, inputs, attributes, "plugin")


FORMS = {"native": native, "portable": portable, "plugin": plugin}
_PADDING = -3e38  # lower than any logit of a net


def _emit(op, inputs, attributes, form):
    *levels, image_sizes = inputs
    count = len(levels) // 3
    kept, boxes = [], []
    for logits, deltas, anchors in zip(levels[:count], levels[count : 2 * count], levels[2 * count :], strict=True):
        level_scores, level_boxes = _emit_level(op, logits, deltas, anchors, image_sizes, attributes, form)
        kept.append(level_scores)
        boxes.append(level_boxes)
    kept = kept[0] if count == 1 else op.Concat(*kept, axis=1)  # [N, sum K]
    boxes = boxes[0] if count == 1 else op.Concat(*boxes, axis=1)
    # Rows of padding let one image with few anchors still give P rows, and TopK's K stay a constant.
    most = attributes["post_nms"]
    kept = op.Pad(kept, [0, 0, 0, most], -1.0)
    boxes = op.Pad(boxes, [0, 0, 0, 0, most, 0], 0.0)
    scores, best = op.TopK(kept, [most], axis=1, _outputs=2)
    real = op.GreaterOrEqual(scores, 0.0)
    rois = op.Where(op.Unsqueeze(real, [2]), box_math.emit_take(op, boxes, best), 0.0)
    counts = op.ReduceSum(op.Cast(real, to=6), [1], keepdims=0)
    return [rois, op.Max(scores, 0.0), counts]


def _emit_level(op, logits, deltas, anchors, image_sizes, attributes, form):
    """Scores float32 [N, K] (−1 where dropped) and boxes [N, K, 4] of one level."""
    most, known = attributes["pre_nms"], logits.shape is not None and isinstance(logits.shape[1], int)
    if known:
        most = min(most, logits.shape[1])
    else:  # padding, told by its logits and dropped below, gives TopK enough rows at every size
        logits = op.Pad(logits, [0, 0, 0, most], _PADDING)
        deltas = op.Pad(deltas, [0, 0, 0, 0, most, 0], 0.0)
        anchors = op.Pad(anchors, [0, 0, most, 0], 0.0)
    logits, best = op.TopK(logits, [most], axis=1, _outputs=2)
    decoded = box_math.emit_decode(
        op, box_math.emit_take(op, deltas, best), op.Gather(anchors, best), attributes["box_weights"]
    )
    boxes = box_math.emit_clip(op, decoded, image_sizes)
    # Not Sigmoid: ONNX Runtime's is 0 for all logits below −18, and proposals of a sure net would lose their order.
    scores = op.Div(1.0, op.Add(op.Exp(op.Neg(logits)), 1.0))
    valid = op.And(
        box_math.emit_large_enough(op, boxes, attributes["min_size"]),
        op.GreaterOrEqual(scores, float(attributes["score_threshold"])),
    )
    if not known:
        valid = op.And(valid, op.Greater(logits, _PADDING / 2))
    keep = nms.emit(op, boxes, op.Sub(op.Cast(valid, to=6), 1), attributes["iou_threshold"], 1, form)
    return op.Where(keep, scores, -1.0), boxes
