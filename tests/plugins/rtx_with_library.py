"""`rtx_with_library.py LIBRARY`: TensorRT for RTX builds a graph with its plugins; prints what became of them.

A program of its own, because TensorRT can end its process.
"""

import os
import sys

import tensorrt_rtx as trt
from onnx import TensorProto, helper

NODE = {"domain": "regionrt", "plugin_namespace": "regionrt", "plugin_version": "1", "aot": 1}
INPUTS = {"images": (16, 32, 32), "rois": (20, 4), "counts": (), "classes": (20,)}  # of each image
TYPES = {
    "images": TensorProto.FLOAT16,
    "rois": TensorProto.FLOAT,
    "counts": TensorProto.INT32,
    "classes": TensorProto.INT32,
}
ROI_ALIGN = {
    "spatial_scales": [0.25, 0.125],
    "level_areas": [0.0, 12544.0],
    "output_height": 7,
    "output_width": 7,
    "sampling_ratio": 2,
    "aligned": 0,
    "maximum": 0,
}


def graph() -> bytes:
    """A convolution, RoIAlign from two levels, NMS; the batch is dynamic."""
    nodes = [
        helper.make_node("Conv", ["images", "weights"], ["fine"], pads=[1] * 4),
        helper.make_node("MaxPool", ["fine"], ["coarse"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node(
            "RegionRoiAlignPlugin2", ["fine", "coarse", "rois", "counts"], ["pooled"], name="ra", **ROI_ALIGN, **NODE
        ),
        helper.make_node("Relu", ["pooled"], ["out"]),
        helper.make_node(
            "RegionNmsPlugin", ["rois", "classes"], ["keep"], name="nms", iou_threshold=0.5, num_classes=3, **NODE
        ),
    ]
    made = helper.make_graph(
        nodes,
        "plugins",
        [helper.make_tensor_value_info(name, TYPES[name], ["N", *shape]) for name, shape in INPUTS.items()],
        [
            helper.make_tensor_value_info("out", TensorProto.FLOAT16, ["M", 16, 7, 7]),
            helper.make_tensor_value_info("keep", TensorProto.BOOL, ["N", 20]),
        ],
        [helper.make_tensor("weights", TensorProto.FLOAT16, [16, 16, 3, 3], [0.01] * 16 * 16 * 9)],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("regionrt", 1)]
    return helper.make_model(made, opset_imports=opsets, ir_version=10).SerializeToString()


def main() -> None:
    log = trt.Logger(trt.Logger.ERROR)
    trt.get_plugin_registry().load_library(sys.argv[1])
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    if not parser.parse(graph()):
        sys.exit("; ".join(parser.get_error(index).desc() for index in range(parser.num_errors)))
    for layer in (network.get_layer(index) for index in range(network.num_layers)):
        if layer.type == trt.LayerType.PLUGIN_V3:
            output = layer.get_output(0)
            print(layer.name, layer.type.name, tuple(output.shape), output.dtype.name)
    config, profile = builder.create_builder_config(), builder.create_optimization_profile()
    for name, shape in INPUTS.items():
        profile.set_shape(name, (1, *shape), (2, *shape), (4, *shape))
    config.add_optimization_profile(profile)
    engine = builder.build_serialized_network(network, config)
    print("engine" if engine is not None and engine.nbytes > 10_000 else "no engine", flush=True)
    os._exit(0)  # native libraries have crashed while they tidied up


main()
