"""RegionDetections in ONNX: its schema, and its native, portable and plugin forms, which differ in NMS only."""

from onnx.defs import OpSchema

from .. import boxes as box_math
from ..nms import onnx_forms as nms
from ..schemas import FLOAT32, INT32, attribute, domain_schema

SCHEMA = domain_schema(
    "RegionDetections",
    "Final detections: softmax, box decoding, score filter, exact NMS per class, best D.",
    inputs=[
        ("class_logits", FLOAT32, "float32 [N, P, K+1]"),
        ("box_deltas", FLOAT32, "float32 [N, P, 4(K+1)] or [N, P, 4]"),
        ("rois", FLOAT32, "float32 [N, P, 4]"),
        ("counts", INT32, "int32 [N]"),
        ("image_sizes", INT32, "int32 [N, 2]"),
    ],
    outputs=[
        ("num_detections", INT32, "int32 [N]"),
        ("boxes", FLOAT32, "float32 [N, D, 4]"),
        ("scores", FLOAT32, "float32 [N, D]"),
        ("labels", INT32, "int32 [N, D]"),
        ("roi_index", INT32, "int32 [N, D]"),
        ("overflow", INT32, "int32 [N]"),
    ],
    attributes=[
        attribute("score_threshold", OpSchema.AttrType.FLOAT),
        attribute("iou_threshold", OpSchema.AttrType.FLOAT),
        attribute("max_detections", OpSchema.AttrType.INT),
        attribute("candidates", OpSchema.AttrType.INT),
        attribute("min_size", OpSchema.AttrType.FLOAT),
        attribute("box_weights", OpSchema.AttrType.FLOATS),
        attribute("class_agnostic", OpSchema.AttrType.INT),
    ],
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


def _emit(op, inputs, attributes, form):
    class_logits, box_deltas, rois, counts, image_sizes = inputs
    most, classes = rois.shape[1], class_logits.shape[2] - 1
    threshold, limit = float(attributes["score_threshold"]), attributes["max_detections"]
    cap = min(attributes["candidates"], most * classes)

    probabilities = op.Slice(op.Softmax(class_logits, axis=-1), [1], [classes + 1], [2])
    real = op.Less(op.Cast(op.Range(0, most, 1), to=6), op.Unsqueeze(counts, [1]))  # [N, P]
    probabilities = op.Reshape(op.Where(op.Unsqueeze(real, [2]), probabilities, 0.0), [0, -1])  # [N, P·K]
    above = op.ReduceSum(op.Cast(op.Greater(probabilities, threshold), to=6), [1], keepdims=0)
    overflow = op.Sub(op.Max(above, cap), cap)

    scores, best = op.TopK(probabilities, [cap], axis=1, _outputs=2)
    roi = op.Div(best, classes)
    label = op.Sub(best, op.Mul(roi, classes))  # 0..K−1
    column = roi if attributes["class_agnostic"] else op.Add(op.Mul(roi, classes + 1), op.Add(label, 1))
    deltas = box_math.emit_take(op, op.Reshape(box_deltas, [0, -1, 4]), column)
    decoded = box_math.emit_decode(op, deltas, box_math.emit_take(op, rois, roi), attributes["box_weights"])
    boxes = box_math.emit_clip(op, decoded, image_sizes)
    valid = op.And(
        op.Greater(scores, threshold), box_math.emit_large_enough(op, boxes, attributes["min_size"])
    )  # [N, Q]
    groups = op.Where(valid, op.Cast(label, to=6), -1)
    keep = nms.emit(op, boxes, groups, attributes["iou_threshold"], classes, form)

    # Rows of padding: there may be fewer candidates than rows to give.
    kept = op.Pad(op.Where(keep, scores, -1.0), [0, 0, 0, limit], -1.0)
    scores, best = op.TopK(kept, [limit], axis=1, _outputs=2)
    found = op.GreaterOrEqual(scores, 0.0)
    boxes = box_math.emit_take(op, op.Pad(boxes, [0, 0, 0, 0, limit, 0], 0.0), best)
    boxes = op.Where(op.Unsqueeze(found, [2]), boxes, 0.0)

    def pick(values, shift):
        padded = op.Pad(op.Cast(values, to=6), [0, 0, 0, limit], -1)
        picked = op.GatherElements(padded, best, axis=1)
        return op.Where(found, picked if shift == 0 else op.Add(picked, shift), -1)

    number = op.ReduceSum(op.Cast(found, to=6), [1], keepdims=0)
    return [number, boxes, scores, pick(label, 1), pick(roi, 0), overflow]
