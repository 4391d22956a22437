"""One of our ops, run in any way: as an ONNX model written in a form, by a backend; or natively on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache

import numpy as np
import onnx
import onnx_ir as ir
from onnx.inliner import inline_local_functions

from regionrt.export.passes.lower import lower
from regionrt.plugins.ops import DOMAIN, OPS, OPSET, VERSION
from regionrt.runtime import native

# (form, backend): OpenVINO takes no functions and is given the portable form inlined.
NATIVE, PORTABLE, OPENVINO = ("native", "onnxruntime"), ("portable", "onnxruntime"), ("portable", "openvino")
CPU = tuple(("cpu", variant) for variant in native.usable_variants())  # compiled for AVX-512, AVX2 …; NumPy
WAYS = (NATIVE, PORTABLE, OPENVINO, *CPU)
_FLOAT, _BFLOAT16, _INT, _BOOL = ir.DataType.FLOAT, ir.DataType.BFLOAT16, ir.DataType.INT32, ir.DataType.BOOL
_OUTPUTS = {  # type (None: of the first input) and rank
    "RegionNms": ((_BOOL, 2),),
    "RegionRoiAlign": ((None, 5),),
    "RegionRoiPool": ((None, 5),),
    "RegionPyramidPool": ((None, 3),),
    "RegionWarp": ((None, 5),),
    "RegionProposals": ((_FLOAT, 3), (_FLOAT, 2), (_INT, 1)),
    "RegionDetections": ((_INT, 1), (_FLOAT, 3), (_FLOAT, 2), (_INT, 2), (_INT, 2), (_INT, 1)),
    "RegionMerge": ((_INT, 1), (_FLOAT, 3), (_FLOAT, 2), (_INT, 2), (_INT, 1)),
    "RegionMaxPool": ((None, 4), (_INT, 4)),
    "RegionMaxUnpool": ((None, 4),),
}
Shape = tuple[int | str, ...]


def run(
    op: str,
    way: tuple[str, str],
    inputs: Mapping[str, np.ndarray],
    attributes: Mapping[str, object],
    shapes: Mapping[str, Shape] | None = None,
) -> list[np.ndarray]:
    """The outputs of `op` in one form on one backend.

    The model is built once for each set of shapes. `shapes` gives an input's shape as the model declares it, with names
    for dimensions that may vary; without it the first axis is the batch, which always may.
    """
    if way in CPU:
        with native.using(way[1]):
            return list(_ON_CPU[op](list(inputs.values()), attributes))
    declared = tuple(
        (name, value.dtype, (shapes or {}).get(name, ("N", *value.shape[1:]))) for name, value in inputs.items()
    )
    frozen = tuple((k, tuple(v) if isinstance(v, list) else v) for k, v in attributes.items())
    execute = _executable(op, way, declared, frozen)
    return execute(dict(_feed(name, value) for name, value in inputs.items()))


def _roi_align_on_cpu(inputs, attributes):
    *features, rois, counts = inputs
    options = dict(attributes)
    size = options.pop("output_height"), options.pop("output_width")
    options["aligned"] = bool(options["aligned"])
    last = [np.ascontiguousarray(level.transpose(0, 2, 3, 1)) for level in features]
    out = np.full((*rois.shape[:2], features[0].shape[1], *size), np.nan, features[0].dtype)
    return [native.roi_align(last, rois, counts, output_size=size, out=out, **options)]


def _roi_pool_on_cpu(inputs, attributes):
    feature, rois, counts = inputs
    options = dict(attributes)
    size = options.pop("output_height"), options.pop("output_width")
    last = np.ascontiguousarray(feature.transpose(0, 2, 3, 1))
    out = np.full((*rois.shape[:2], feature.shape[1], *size), np.nan, feature.dtype)
    return [native.roi_pool(last, rois, counts, output_size=size, out=out, **options)]


def _pyramid_pool_on_cpu(inputs, attributes):
    feature, rois, counts = inputs
    last = np.ascontiguousarray(feature.transpose(0, 2, 3, 1))
    values = feature.shape[1] * sum(b * b for b in attributes["bins"])
    out = np.full((*rois.shape[:2], values), np.nan, feature.dtype)
    return [native.pyramid_pool(last, rois, counts, out=out, **attributes)]


def _warp_on_cpu(inputs, attributes):
    images, rois, counts = inputs
    size = attributes["output_height"], attributes["output_width"]
    last = np.ascontiguousarray(images.transpose(0, 2, 3, 1))
    out = np.full((*rois.shape[:2], images.shape[1], *size), np.nan, images.dtype)
    return [native.warp(last, rois, counts, output_size=size, context=attributes["context"], out=out)]


def _nms_on_cpu(inputs, attributes):
    return [native.nms(*inputs, iou_threshold=attributes["iou_threshold"], out=np.ones(inputs[1].shape, bool))]


def _proposals_on_cpu(inputs, attributes):
    *levels, sizes = inputs
    third = len(levels) // 3
    rows = attributes["post_nms"]
    out = native.Proposals(
        np.full((len(sizes), rows, 4), np.nan, np.float32),
        np.full((len(sizes), rows), np.nan, np.float32),
        np.full(len(sizes), -7, np.int32),
    )
    return native.proposals(
        levels[:third], levels[third : 2 * third], levels[2 * third :], sizes, out=out, **attributes
    )


def _detections_on_cpu(inputs, attributes):
    images, most = len(inputs[0]), attributes["max_detections"]
    out = native.DetectionArrays(
        np.full(images, -7, np.int32),
        np.full((images, most, 4), np.nan, np.float32),
        np.full((images, most), np.nan, np.float32),
        *(np.full((images, most), -7, np.int32) for _ in range(2)),
        np.full(images, -7, np.int32),
    )
    return native.detections(*inputs, out=out, **attributes | {"class_agnostic": bool(attributes["class_agnostic"])})


def _merge_on_cpu(inputs, attributes):
    images, most = len(inputs[0]), attributes["max_detections"]
    out = native.MergedArrays(
        np.full(images, -7, np.int32),
        np.full((images, most, 4), np.nan, np.float32),
        np.full((images, most), np.nan, np.float32),
        np.full((images, most), -7, np.int32),
        np.full(images, -7, np.int32),
    )
    return native.merge(*inputs, out=out, **attributes | {"class_agnostic": bool(attributes["class_agnostic"])})


def _max_pool_on_cpu(inputs, attributes):
    (x,) = inputs
    shape = native.max_pool(x, **attributes).values.shape
    out = native.MaxPooled(np.full(shape, np.nan, x.dtype), np.full(shape, -7, np.int32))
    return native.max_pool(x, out=out, **attributes)


def _max_unpool_on_cpu(inputs, attributes):
    x, argmax, like = inputs
    out = np.full(like.shape, np.nan, x.dtype)
    return [native.max_unpool(x, argmax, size=like.shape[2:], out=out, **attributes)]


_ON_CPU: dict[str, Callable] = {
    "RegionRoiAlign": _roi_align_on_cpu,
    "RegionRoiPool": _roi_pool_on_cpu,
    "RegionPyramidPool": _pyramid_pool_on_cpu,
    "RegionWarp": _warp_on_cpu,
    "RegionNms": _nms_on_cpu,
    "RegionProposals": _proposals_on_cpu,
    "RegionDetections": _detections_on_cpu,
    "RegionMerge": _merge_on_cpu,
    "RegionMaxPool": _max_pool_on_cpu,
    "RegionMaxUnpool": _max_unpool_on_cpu,
}


def _feed(name: str, value: np.ndarray) -> tuple[str, np.ndarray]:
    if value.dtype.name == "bfloat16":
        return f"{name}_in", value.astype(np.float32)
    return name, np.ascontiguousarray(value)


def abstract(op: str, declared: Sequence[tuple[str, np.dtype, Shape]], attributes: Mapping[str, object]) -> ir.Model:
    """The abstract model that holds the one node."""
    values = [ir.val(name, dtype=ir.DataType.from_numpy(dtype), shape=shape) for name, dtype, shape in declared]
    node = ir.node(op, values, dict(attributes), domain=DOMAIN, num_outputs=len(_OUTPUTS[op]))
    formal = OPS[op].schema.outputs
    for output, described, (dtype, rank) in zip(node.outputs, formal, _OUTPUTS[op], strict=True):
        output.name = described.name
        output.type = ir.TensorType(dtype or values[0].dtype)
        output.shape = ir.Shape([f"{described.name}_{axis}" for axis in range(rank)])
    nodes, inputs, outputs = [node], values, list(node.outputs)
    if any(value.dtype == _BFLOAT16 for value in values):  # NumPy has no such type: in and out as float32
        inputs = [ir.val(f"{v.name}_in", dtype=_FLOAT, shape=v.shape) if v.dtype == _BFLOAT16 else v for v in values]
        nodes = [_cast(i, v) for i, v in zip(inputs, values, strict=True) if i is not v] + nodes
        outputs = [ir.val(f"{o.name}_out", dtype=_FLOAT, shape=o.shape) for o in outputs]
        nodes += [_cast(o, out) for o, out in zip(node.outputs, outputs, strict=True)]
    graph = ir.Graph(inputs, outputs, nodes=nodes, opset_imports={"": OPSET, DOMAIN: VERSION}, name=op)
    return ir.Model(graph, ir_version=10)


def _cast(source: ir.Value, target: ir.Value) -> ir.Node:
    return ir.node("Cast", [source], {"to": int(target.dtype)}, outputs=[target])


@cache
def _executable(op: str, way: tuple[str, str], declared, frozen) -> Callable[[Mapping[str, np.ndarray]], list]:
    form, backend = way
    attributes = {k: list(v) if isinstance(v, tuple) else v for k, v in frozen}
    model = ir.to_proto(lower(abstract(op, declared, attributes), form))
    onnx.checker.check_model(model)
    return {"onnxruntime": _in_onnxruntime, "openvino": _in_openvino, "onnx": _in_onnx}[backend](model)


def _in_onnxruntime(model: onnx.ModelProto):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda feeds: session.run(None, feeds)


def _in_openvino(model: onnx.ModelProto):
    import openvino

    core = openvino.Core()
    inlined = inline_local_functions(model)
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    compiled = core.compile_model(core.read_model(inlined.SerializeToString()), "CPU", settings)
    read = {name for port in compiled.inputs for name in port.names}  # an input that nothing reads is dropped

    def execute(feeds):
        return [np.array(v) for v in compiled({k: v for k, v in feeds.items() if k in read}).values()]

    return execute


def _in_onnx(model: onnx.ModelProto):
    """onnx's own evaluator, written in Python."""
    from onnx.reference import ReferenceEvaluator

    evaluator = ReferenceEvaluator(model)
    return lambda feeds: evaluator.run(None, feeds)
