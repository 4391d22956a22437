"""fp8: layers behind Q/DQ nodes in E4M3 (Micikevicius et al., FP8 Formats for Deep Learning, arXiv:2209.05433).

TensorRT and TensorRT for RTX compile them for compute capability 8.9 and newer. One scale for each tensor: largest
value / 448.
"""

from collections.abc import Collection, Mapping

import onnx_ir as ir

from .qdq import FP8, FP8_LARGEST, Dialect, Range, insert_qdq

E4M3 = Dialect("fp8", FP8, FP8, FP8_LARGEST, per_channel=False, whole=False, integer_bias=False)


def fp8(model: ir.Model, ranges: Mapping[str, Range], keep: Collection[str] = ()) -> tuple[ir.Model, tuple[str, ...]]:
    """A copy of the abstract `model` with its layers in fp8, and their names; see `insert_qdq`."""
    return insert_qdq(model, ranges, E4M3, keep)
