"""Box arithmetic that several ops share: decode, clip and IoU, in NumPy (the definition) and as ONNX nodes.

Boxes are xyxy. Deltas are (dx, dy, dw, dh) as in R-CNN (Girshick et al., arXiv:1311.2524, appendix C), divided by the
coder's weights; dw and dh are clipped at log(1000/16) as in Detectron and torchvision, so that exp cannot overflow.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

MAX_LOG_RATIO = math.log(1000.0 / 16)


def exp(values: np.ndarray) -> np.ndarray:
    """exp of float32 values, in float64: rounded to float32 it is the same bits on every machine.

    A float32 exp is not: it differs between libraries and processors by an ulp or two, and with it the order of nearly
    equal scores and which of two boxes NMS keeps.
    """
    with np.errstate(over="ignore"):  # inf is what is meant
        return np.exp(np.asarray(values, np.float64))


def decode(deltas: np.ndarray, boxes: np.ndarray, weights: Sequence[float]) -> np.ndarray:
    """Move `boxes` [..., 4] by `deltas` [..., 4]; float32 in, float32 out."""
    wx, wy, ww, wh = (np.float32(w) for w in weights)
    half = np.float32(0.5)
    width, height = boxes[..., 2] - boxes[..., 0], boxes[..., 3] - boxes[..., 1]
    center_x = deltas[..., 0] / wx * width + (boxes[..., 0] + half * width)
    center_y = deltas[..., 1] / wy * height + (boxes[..., 1] + half * height)
    limit = np.float32(MAX_LOG_RATIO)
    half_width = half * (exp(np.minimum(deltas[..., 2] / ww, limit)).astype(np.float32) * width)
    half_height = half * (exp(np.minimum(deltas[..., 3] / wh, limit)).astype(np.float32) * height)
    corners = (center_x - half_width, center_y - half_height, center_x + half_width, center_y + half_height)
    return np.stack(corners, axis=-1)


def clip(boxes: np.ndarray, height: int, width: int) -> np.ndarray:
    """Clip `boxes` [..., 4] to the image: x to 0..width, y to 0..height."""
    return np.clip(boxes, 0, np.array([width, height, width, height], boxes.dtype))


def iou_one_to_many(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """IoU of one box [4] with `others` [M, 4] in float32; 0 where both are empty."""
    top_left, bottom_right = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])
    sides = np.maximum(bottom_right - top_left, np.float32(0))
    intersection = sides[:, 0] * sides[:, 1]
    area = (box[2] - box[0]) * (box[3] - box[1])
    areas = (others[:, 2] - others[:, 0]) * (others[:, 3] - others[:, 1])
    union = area + areas - intersection
    return np.divide(intersection, union, out=np.zeros_like(intersection), where=union > 0)


def emit_columns(op: Any, boxes: Any) -> Any:
    """ONNX: the four columns of `boxes` [N, Q, 4], each [N, Q, 1]."""
    return op.Split(boxes, axis=-1, num_outputs=4, _outputs=4)


def emit_decode(op: Any, deltas: Any, boxes: Any, weights: Sequence[float]) -> Any:
    """ONNX: `decode` of `deltas` [N, Q, 4] and `boxes` [N, Q, 4] -> [N, Q, 4]."""
    x1, y1, x2, y2 = emit_columns(op, boxes)
    dx, dy, dw, dh = (
        delta if weight == 1 else op.Div(delta, float(weight))
        for delta, weight in zip(emit_columns(op, deltas), weights, strict=True)
    )

    def interval(low, high, shift, log_ratio):
        length = op.Sub(high, low)
        center = op.Add(op.Mul(shift, length), op.Add(low, op.Mul(length, 0.5)))
        half = op.Mul(op.Mul(op.Exp(op.Min(log_ratio, MAX_LOG_RATIO)), length), 0.5)
        return op.Sub(center, half), op.Add(center, half)

    left, right = interval(x1, x2, dx, dw)
    top, bottom = interval(y1, y2, dy, dh)
    return op.Concat(left, top, right, bottom, axis=-1)


def emit_clip(op: Any, boxes: Any, image_sizes: Any) -> Any:
    """ONNX: clip `boxes` [N, Q, 4] to `image_sizes` int32 [N, 2] (height, width)."""
    sizes = op.Cast(image_sizes, to=1)
    limit = op.Unsqueeze(op.Gather(sizes, [1, 0, 1, 0], axis=1), [1])  # [N, 1, 4] = w, h, w, h
    return op.Max(op.Min(boxes, limit), 0.0)


def emit_large_enough(op: Any, boxes: Any, min_size: float) -> Any:
    """ONNX: bool [N, Q], both sides of `boxes` [N, Q, 4] are at least `min_size` pixels."""
    x1, y1, x2, y2 = emit_columns(op, boxes)
    both = op.And(
        op.GreaterOrEqual(op.Sub(x2, x1), float(min_size)), op.GreaterOrEqual(op.Sub(y2, y1), float(min_size))
    )
    return op.Squeeze(both, [-1])


def emit_take(op: Any, data: Any, indices: Any) -> Any:
    """ONNX: rows `indices` int64 [N, K] of `data` [N, A, ...], image by image -> [N, K, ...]."""
    return op.GatherND(data, op.Unsqueeze(indices, [-1]), batch_dims=1)
