"""Module → abstract ONNX graph, in which our ops are nodes of the domain `regionrt` (the dynamo exporter)."""

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import onnx_ir as ir
import torch
from onnxscript.values import Opset
from torch import nn
from torch.onnx.errors import OnnxExporterError

from regionrt.plugins.ops import DOMAIN, OPS, OPSET, POOLINGS, VERSION, Op
from regionrt.runtime.image import Canvas
from regionrt.runtime.inputs import INPUTS
from regionrt.train.models.overfeat import Overfeat
from regionrt.train.models.proposal_net import ProposalNet
from regionrt.train.models.region import MAX_CANDIDATES

from .errors import ExportError
from .exportable import OUTPUTS, ExportableDetector
from .exportable_dense import dense_program
from .exportable_proposals import ExportableProposalNet
from .exportable_windows import ExportableOverfeat
from .passes.fold_scale import fold_scale

__all__ = ["OUTPUTS", "onnx_from_module"]

_STAGE_NAMES = {  # of the values at our nodes, so that verify can speak of them; `.` marks one per level
    "RegionProposals": (("objectness.", "rpn_deltas.", "anchors."), ("rois", "roi_scores", "roi_counts")),
    "RegionDetections": (
        ("class_logits", "box_deltas"),
        ("num_detections", "boxes", "scores", "labels", "roi_index", "overflow"),
    ),
    "RegionMerge": (
        ("class_logits", "box_edges", "windows"),
        ("num_detections", "boxes", "scores", "labels", "overflow"),
    ),
}


_POOLING_NAMES = {  # numbered in the order in which they run
    "RegionMaxPool": (("pool_input",), ("pooled", "places")),
    "RegionMaxUnpool": (("unpool_input",), ("unpooled",)),
    "RegionPyramidPool": (("features", "rois", "roi_counts"), ("roi_features",)),
}


def onnx_from_module(
    module: nn.Module, canvas: Canvas, *, candidates: int = MAX_CANDIDATES, probabilities: bool = False
) -> ir.Model:
    """The abstract graph of a torchvision FasterRCNN or MaskRCNN, or of a net of ours, for one canvas.

    Inputs `images` uint8 [N, H, W, 3] and `image_sizes` int32 [N, 2], of a `ProposalNet` also `proposals` float32
    [N, P, 4] and `proposal_counts` int32 [N]; N is dynamic, H and W too when the canvas is
    (multiples of canvas.multiple, at most canvas.height × canvas.width). Values at our nodes carry the stage names of
    docs/design.md. Raises ExportError.
    """
    if canvas.dynamic and min(canvas.height, canvas.width) < 3 * canvas.multiple:
        raise ExportError(
            f"expected a dynamic canvas of at least 3 strides ({3 * canvas.multiple} px) each way, "
            f"found {canvas.height}x{canvas.width}: give a larger size, or a fixed one"
        )
    program = _program(module, canvas, candidates, probabilities)
    program.eval()
    names = getattr(program, "inputs", tuple(INPUTS))
    batch = 2  # an example of batch 1 would be frozen to 1
    images = torch.zeros(batch, canvas.height, canvas.width, 3, dtype=torch.uint8)
    image_sizes = torch.tensor([[canvas.height, canvas.width]] * batch, dtype=torch.int32)
    try:
        with torch.no_grad(), _quiet():
            exported = torch.onnx.export(
                program,
                (images, image_sizes, *(program.examples(images) if len(names) > len(INPUTS) else ())),
                dynamo=True,
                opset_version=OPSET,
                input_names=list(names),
                output_names=list(program.outputs),
                dynamic_shapes=_dynamic_shapes(canvas, names),
                custom_translation_table={op.torch_op._opoverload: _translation(op) for op in OPS.values()},
                verbose=False,
            )
    except OnnxExporterError as error:
        cause = error.__cause__ or error
        raise ExportError(f"torch could not export this module: {str(cause).strip().splitlines()[0]}") from error
    model = fold_scale(exported.model)
    model.ir_version = 10  # what opset 20 came with; older runtimes refuse newer ones
    model.producer_name, model.producer_version = "regionrt", ""
    model.graph.name = type(module).__name__
    if hasattr(program, "pooled_levels"):
        _name_stages(model, program.pooled_levels)
    else:
        _name_dense_stages(model, "labels" in program.outputs[:1])
    _strip_metadata(model)
    return model


def _program(module: nn.Module, canvas: Canvas, candidates: int, probabilities: bool) -> Any:
    dense = dense_program(module, canvas, probabilities)
    if dense is not None:
        return dense
    if isinstance(module, Overfeat):
        return ExportableOverfeat(module, canvas, candidates=candidates)
    if isinstance(module, ProposalNet):
        return ExportableProposalNet(module, candidates=candidates)
    return ExportableDetector(module, canvas.height, canvas.width, candidates=candidates, dynamic=canvas.dynamic)


def _dynamic_shapes(canvas: Canvas, names: Sequence[str]) -> dict[str, dict[int, Any]]:
    batch = torch.export.Dim("batch", min=1, max=1024)
    sizes: dict[int, Any] = {0: batch}
    if canvas.dynamic:
        step = canvas.multiple
        sizes[1] = step * torch.export.Dim("rows", min=2, max=canvas.height // step)
        sizes[2] = step * torch.export.Dim("columns", min=2, max=canvas.width // step)
    return {name: sizes if name == "images" else {0: batch} for name in names}


def _translation(op: Op) -> Callable:
    """How the exporter writes one of our torch ops: tensors become inputs, everything else attributes of that name."""
    arguments = op.torch_op._opoverload._schema.arguments
    opset = Opset(DOMAIN, VERSION)

    def translate(*values: Any) -> Any:
        inputs: list[Any] = []
        attributes: dict[str, Any] = {}
        left_out = [argument.default_value for argument in arguments[len(values) :]]
        for argument, value in zip(arguments, [*values, *left_out], strict=True):
            if "Tensor" in str(argument.type):
                inputs.extend(value if isinstance(value, list | tuple) else [value])
            else:
                attributes[argument.name] = int(value) if isinstance(value, bool) else value
        return getattr(opset, op.name)(*inputs, **attributes)

    return translate


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter prints progress and deprecations of its own code, which the user can do nothing about."""
    level = logging.getLogger("torch.onnx").level
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.getLogger("torch.onnx").setLevel(level)


def _name_stages(model: ir.Model, pooled_levels: Sequence[Sequence[int]]) -> None:
    """Name the values at our nodes as the eager reference does; the k-th pooling reads the maps `pooled_levels[k]`."""
    poolings = 0
    for node in model.graph:
        if node.domain != DOMAIN:
            continue
        if node.op_type in POOLINGS:
            *levels, rois, _ = node.inputs
            if not rois.is_graph_input() and rois.producer().domain != DOMAIN:
                rois.name = "rois"
            for level, value in zip(pooled_levels[poolings], levels, strict=True):
                value.name = f"features.{level}"
            node.outputs[0].name = "roi_features" if poolings == 0 else "mask_roi_features"
            node.outputs[0].type = levels[0].type  # our schemas leave it open, as the levels repeat
            poolings += 1
            continue
        inputs, outputs = _STAGE_NAMES[node.op_type]
        levels = (len(node.inputs) - 1) // len(inputs)
        names = [f"{n}{i}" for n in inputs for i in range(levels)] if inputs[0].endswith(".") else inputs
        for value, name in zip(node.inputs, names, strict=False):
            value.name = name
        for value, name in zip(node.outputs, outputs, strict=True):
            value.name = name


def _name_dense_stages(model: ir.Model, segments: bool) -> None:
    """Name what is pooled and unpooled, and the logits, as the nets' eager references do."""
    named: set[ir.Value] = set()
    counts = dict.fromkeys(_POOLING_NAMES, 0)
    for node in model.graph:
        if segments and node.op_type == "ArgMax" and node.inputs[0] is not None:
            node.inputs[0].name = "logits"
        if node.domain != DOMAIN:
            continue
        number = counts[node.op_type]
        counts[node.op_type] += 1
        for values, names in zip((node.inputs, node.outputs), _POOLING_NAMES[node.op_type], strict=True):
            for value, name in zip(values, names, strict=False):
                if value not in named:
                    value.name = f"{name}.{number}"
                    named.add(value)
        node.outputs[0].type = node.inputs[0].type  # our schemas leave it open


def _strip_metadata(model: ir.Model) -> None:
    """Drop the exporter's stack traces: they hold paths of this machine and half of the file's bytes."""
    model.metadata_props.clear()
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
        for value in node.outputs:
            value.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
