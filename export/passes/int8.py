"""int8: layers behind Q/DQ nodes, weights per output channel, in the dialect of the engine that is to compile them."""

from collections.abc import Collection, Mapping

import numpy as np
import onnx_ir as ir

from .hold_layout import hold_layout
from .qdq import Dialect, Range, insert_qdq

_INT8 = np.dtype(np.int8)
SYMMETRIC = Dialect("symmetric", _INT8, _INT8, 127, per_channel=True, whole=False, integer_bias=False)
"""For TensorRT and TensorRT for RTX."""
U8S8 = Dialect("u8s8", np.dtype(np.uint8), _INT8, 63, per_channel=True, whole=True, integer_bias=True)
"""For ONNX Runtime and OpenVINO on CPUs. Weights of 7 bits give the same results on CPUs with and without VNNI."""


def int8(
    model: ir.Model, ranges: Mapping[str, Range], dialect: Dialect, keep: Collection[str] = ()
) -> tuple[ir.Model, tuple[str, ...]]:
    """A copy of `model` (abstract, or one dense stage) with its layers in int8, and their names; see `insert_qdq`."""
    quantized, layers = insert_qdq(model, ranges, dialect, keep)
    if dialect is U8S8:
        hold_layout(quantized)
    return quantized, layers
