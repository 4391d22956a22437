"""All ops, with what export needs of each.

Adding an op means adding its folder and one entry to OPS.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from onnx.defs import OpSchema
from torch.library import CustomOpDef

from .detections import onnx_forms as detections_forms
from .detections.torch_op import detections as detections_op
from .max_unpool import onnx_forms as max_unpool_forms
from .max_unpool import pool_forms as max_pool_forms
from .max_unpool.torch_op import max_pool_argmax as max_pool_op
from .max_unpool.torch_op import max_unpool as max_unpool_op
from .merge import onnx_forms as merge_forms
from .merge.torch_op import merge as merge_op
from .nms import onnx_forms as nms_forms
from .nms.torch_op import nms as nms_op
from .proposals import onnx_forms as proposals_forms
from .proposals.torch_op import proposals as proposals_op
from .pyramid_pool import onnx_forms as pyramid_pool_forms
from .pyramid_pool.torch_op import pyramid_pool as pyramid_pool_op
from .roi_align import onnx_forms as roi_align_forms
from .roi_align.torch_op import roi_align as roi_align_op
from .roi_pool import onnx_forms as roi_pool_forms
from .roi_pool.torch_op import roi_pool as roi_pool_op
from .schemas import DOMAIN, OPSET, VERSION, register
from .warp import onnx_forms as warp_forms
from .warp.torch_op import warp as warp_op

# (OpBuilder, inputs, attributes) -> outputs: writes the nodes of one form.
Form = Callable[[Any, Sequence[Any], Mapping[str, Any]], Sequence[Any]]


@dataclass(frozen=True)
class Op:
    """One operation: its ONNX schema, its torch custom op (same argument names), and its forms by name."""

    schema: OpSchema
    torch_op: CustomOpDef
    forms: Mapping[str, Form]

    @property
    def name(self) -> str:
        return self.schema.name


def _op(forms: ModuleType, torch_op: CustomOpDef) -> Op:
    register(forms.SCHEMA)
    return Op(forms.SCHEMA, torch_op, forms.FORMS)


OPS: dict[str, Op] = {
    op.name: op
    for op in (
        _op(roi_align_forms, roi_align_op),
        _op(roi_pool_forms, roi_pool_op),
        _op(pyramid_pool_forms, pyramid_pool_op),
        _op(warp_forms, warp_op),
        _op(nms_forms, nms_op),
        _op(proposals_forms, proposals_op),
        _op(detections_forms, detections_op),
        _op(merge_forms, merge_op),
        _op(max_pool_forms, max_pool_op),
        _op(max_unpool_forms, max_unpool_op),
    )
}

POOLINGS = frozenset({"RegionRoiAlign", "RegionRoiPool", "RegionPyramidPool", "RegionWarp"})
"""Ops that give a row for each RoI. Their inputs are maps (images, for RegionWarp), rois, counts."""

__all__ = ["DOMAIN", "OPS", "OPSET", "POOLINGS", "VERSION", "Form", "Op"]
