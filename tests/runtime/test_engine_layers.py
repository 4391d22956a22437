"""Reading TensorRT's list of compiled layers, on lines that it wrote, and the proof of precision drawn from it."""

import pytest

from regionrt.runtime.engine_layers import EngineLayer, count_by_kind, parse_layers, prove_precision
from regionrt.runtime.errors import BackendError


def tensor(name: str, dimensions: str, dtype: str) -> str:
    """A tensor as TensorRT for RTX 1.7.1 writes it."""
    return (
        f"{{ Name: {name}, Dimensions: [{dimensions}], Strides: [1], StrideOrder: [0], Datatype: {dtype}, "
        "Format: (NHWC) Channel major format }"
    )


def line(
    name: str, layer_type: str, inputs: list[str], constants: list[str], outputs: list[str], metadata: str = ""
) -> str:
    """A layer as TensorRT for RTX 1.7.1 writes it."""
    return (
        f"Name: {name}, LayerType: {layer_type}, Inputs: [ {', '.join(inputs)}], Constants: [ {', '.join(constants)}], "
        f"Outputs: [ {', '.join(outputs)}], TacticName: __myelin_CASK_STUB, StreamId: 0, Metadata: {metadata}"
    )


# Recorded from builds, shortened in the strides only.
STEM = line(
    "node_of_a_myl0_1",
    "correlation",
    [tensor("b.1_2_myl0", "1,4,64,64", "Half")],
    [tensor("__mye326_dconst_myl0", "64,4,3,3", "Half"), tensor("__mye363_const_myl0", "1", "Float")],
    [tensor("c2.1_3_myl0", "1,64,64,64", "Half")],
    "[ONNX Layer: node_of_a][ONNX Layer: node_of_b]",
)
INT8 = line(
    "/c/Conv_myl0_1",
    "correlation",
    [tensor("x", "1,4,56,56", "Int8")],
    [tensor("w", "32,4,3,3", "Int8"), tensor("s", "1", "Float")],
    [tensor("y", "1,32,28,28", "Float")],
    "[ONNX Layer: /c/Conv][ONNX Layer: x_DequantizeLinear][ONNX Layer: onnx::Conv_59_DequantizeLinear]",
)
FUSED = line(
    "__myl_CorrAdd_myl0_4",
    "runtime_fusion",
    [tensor("residual", "1,64,28,28", "Float"), tensor("x", "1,64,28,28", "Half")],
    [tensor("bias", "1,64,1,1", "Float"), tensor("w", "64,64,1,1", "Half")],
    [tensor("y", "1,64,28,28", "Half")],
    "[ONNX Layer: /pw/Conv][ONNX Layer: /Relu_3][ONNX Layer: /Add]",
)
TRANSPOSED = line(
    "/t/ConvTranspose_myl0_5",
    "deconv",
    [tensor("x", "1,64,28,28", "FP8")],
    [tensor("w", "64,64,2,2", "FP8")],
    [tensor("y", "1,64,56,56", "Half")],
    "[ONNX Layer: /t/ConvTranspose]",
)
POINTWISE_AS_GEMM = line(
    "__myl_FcAddRelu_myl0_10",
    "runtime_fusion",
    [tensor("x", "1,1024,20,26", "BFloat16")],
    [tensor("w", "256,1024", "BFloat16"), tensor("b", "1,256", "BFloat16")],
    [tensor("y", "1,256,20,26", "BFloat16")],
    "[ONNX Layer: /layer3/conv1/Conv][ONNX Layer: /Relu]",
)
PRODUCT = line(
    "/MatMul_myl0_14",
    "gemm",
    [tensor("a", "100,5", "Float"), tensor("b", "5,100", "Float")],
    [tensor("alpha", "1", "Float")],
    [tensor("c", "100,100", "Float")],
    "[ONNX Layer: /MatMul]",
)
CONCAT = line(
    "__myl_ConcMove_myl0_0",
    "kgen",
    [tensor("x", "1,3,56,56", "Half")],
    [tensor("zeros", "1,1,56,56", "Half")],
    [tensor("y", "1,4,56,56", "Half")],
    "[ONNX Layer: /c/Conv][ONNX Layer: /Relu]",
)
SIGNAL = (
    "Name: __mye359_0_myl0_0, LayerType: shape_call, Inputs: [], Constants: [], Outputs: [], TacticName: , "
    "StreamId: 0, Metadata: "
)
JUMP = (
    "Name: cbr___mye326_myl0_21, LayerType: cjmp, Inputs: [ "
    + tensor("__myln_k_arg__bb305_10_myl0", "1", "Bool")
    + "], Constants: [], Outputs: [], TacticName: , StreamId: 0, "
    "JumpTargetThen: $$myelin$$(Unnamed Loop* 0)^ElementWise 2_to_add_myl0_14, JumpTargetElse: <EXIT>, Metadata: "
)
IN_A_FUNCTION = line(
    "node_of_o_myl0_15",
    "correlation",
    [tensor("$$myelin$$(Unnamed Loop* 0)^v.2_myl0", "-1,32,8,8", "Float")],
    [tensor("w", "32,32,3,3", "Float")],
    [tensor("z", "-1,32,8,8", "Float")],
    "[ONNX Layer: node_of_o | node_of_o (Step) | node_of_z (RegionIterate)]",
)
TENSORRT_10 = (
    "Name: /features/0/Conv + /features/1/Relu, LayerType: CaskConvolution, Inputs: [ { Name: Reformatted Input "
    "Tensor 0 to /features/0/Conv + /features/1/Relu, Location: Device, Dimensions: [1,3,224,224], Format/Datatype: "
    "Half }], Outputs: [ { Name: /features/1/Relu_output_0, Location: Device, Dimensions: [1,64,224,224], "
    "Format/Datatype: Half }], ParameterType: Convolution, Kernel: [3,3], PaddingMode: kEXPLICIT_ROUND_DOWN, Groups: "
    '1, Weights: {"Type": "Half", "Count": 1728}, Bias: {"Type": "Half", "Count": 64}, Activation: RELU, TacticName: '
    "sm80_xmma_fprop, TacticValue: 0x1, StreamId: 0, Metadata: [ONNX Layer: /features/0/Conv]\x1e[ONNX Layer: "
    "/features/1/Relu]"
)
TENSORRT_8 = (
    "Name: conv0 + relu0, LayerType: CaskConvolution, Inputs: [ { Name: pool, Location: Device, Dimensions: "
    "[4,64,56,56], Format/Datatype: Thirty-two wide channel vectorized row major Int8 format }], Outputs: [ { Name: "
    "out, Location: Device, Dimensions: [4,64,56,56], Format/Datatype: Thirty-two wide channel vectorized row major "
    'Int8 format }], ParameterType: Convolution, Weights: {"Type": "Int8", "Count": 36864}, TacticName: x'
)


def listed(*lines: str) -> str:
    """The message of the builder's log."""
    return "\n".join(
        ["Layers:", *lines, "", "I/O Tensors:", " Name: images, IOMode: Input, DataType: UInt8", "", "Engine Metadata:"]
    )


@pytest.mark.parametrize(
    ("text", "kind", "dtype", "nodes"),
    [
        (STEM, "conv", "fp16", ("node_of_a", "node_of_b")),
        (INT8, "conv", "int8", ("/c/Conv", "x_DequantizeLinear", "onnx::Conv_59_DequantizeLinear")),
        (FUSED, "conv", "fp16", ("/pw/Conv", "/Relu_3", "/Add")),
        (TRANSPOSED, "conv", "fp8", ("/t/ConvTranspose",)),
        (POINTWISE_AS_GEMM, "matmul", "bf16", ("/layer3/conv1/Conv", "/Relu")),
        (PRODUCT, "matmul", "fp32", ("/MatMul",)),
        (CONCAT, "other", "fp16", ("/c/Conv", "/Relu")),
        (SIGNAL, "other", "none", ("__mye359_0_myl0_0",)),
        (JUMP, "other", "bool", ("cbr___mye326_myl0_21",)),
        (IN_A_FUNCTION, "conv", "fp32", ("node_of_o | node_of_o (Step) | node_of_z (RegionIterate)",)),
        (TENSORRT_10, "conv", "fp16", ("/features/0/Conv", "/features/1/Relu")),
        (TENSORRT_8, "conv", "int8", ("conv0", "relu0")),
    ],
)
def test_a_recorded_line_reads_as_a_layer(text: str, kind: str, dtype: str, nodes: tuple[str, ...]) -> None:
    (layer,) = parse_layers(listed(text))
    assert (layer.kind, layer.dtype, layer.onnx_nodes) == (kind, dtype, nodes)


def test_layers_are_counted_by_kind_and_datatype() -> None:
    layers = parse_layers(listed(STEM, FUSED, INT8, PRODUCT, CONCAT, SIGNAL))
    assert count_by_kind(layers) == {
        "conv": {"fp16": 2, "int8": 1},
        "matmul": {"fp32": 1},
        "other": {"fp16": 1, "none": 1},
    }


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Layers:",
        "Layers:\n\nI/O Tensors:\n Name: images",
        STEM,
        listed(STEM, "Layer(CaskConvolution): conv1, Tactic: 0x3, data (Half[1,3,8,8]) -> out (Half[1,8,8,8])"),
        listed(STEM, STEM[:60]),
        listed(STEM, STEM.replace("LayerType", "Kind")),
        listed(STEM, STEM[: STEM.index(", Outputs")]),
    ],
    ids=["empty", "no layers", "only tensors", "no heading", "other format", "cut", "no type", "no outputs"],
)
def test_a_list_that_does_not_read_whole_is_no_proof(text: str) -> None:
    with pytest.raises(BackendError, match=r"no proof of the precision built: expected .*Layers:.* found"):
        parse_layers(text)


def layer(node: str, dtype: str, kind: str = "conv") -> EngineLayer:
    """A compiled layer that came from one ONNX node."""
    return EngineLayer(node + "_myl0_0", "correlation", kind, dtype, (node,))


def test_nine_of_ten_convolutions_in_the_precision_are_enough_and_fewer_are_not() -> None:
    nodes = [f"conv{index}" for index in range(20)]
    two_left = [layer(node, "fp32" if index < 2 else "fp16") for index, node in enumerate(nodes)]
    assert prove_precision(two_left, nodes, "fp16") == {"of": "conv", "layers": 20, "in_precision": 18, "share": 0.9}
    three_left = [layer(node, "fp32" if index < 3 else "fp16") for index, node in enumerate(nodes)]
    with pytest.raises(BackendError, match=r"asked for fp16.*only 17 of 20 convolutions.*conv0 \(fp32\)"):
        prove_precision(three_left, nodes, "fp16")
    with pytest.raises(BackendError, match=r"asked for fp32.*only 3 of 20"):
        prove_precision(three_left, nodes, "fp32")


def test_a_convolution_that_the_list_does_not_show_is_not_proved() -> None:
    hidden = [layer("conv0", "fp16"), layer("conv1", "fp16", kind="other")]
    with pytest.raises(BackendError, match=r"only 1 of 2 convolutions.*conv1 \(not found\)"):
        prove_precision(hidden, ["conv0", "conv1"], "fp16")


def test_a_convolution_split_over_two_precisions_is_not_proved() -> None:
    with pytest.raises(BackendError, match=r"only 0 of 1 convolutions.*conv0 \(fp16\+fp32\)"):
        prove_precision([layer("conv0", "fp16"), layer("conv0", "fp32")], ["conv0"], "fp16")


def test_a_pointwise_convolution_may_become_a_matrix_multiplication() -> None:
    assert prove_precision([layer("conv0", "int8", kind="matmul")], ["conv0"], "int8")["share"] == 1.0


def test_a_network_without_convolutions_is_judged_by_its_matrix_multiplications() -> None:
    heads = [layer("fc6", "fp16", "matmul"), layer("fc7", "fp16", "matmul")]
    assert prove_precision(heads, [], "fp16") == {"of": "matmul", "layers": 2, "in_precision": 2, "share": 1.0}
    with pytest.raises(BackendError, match="only 0 of 2 matrix multiplications"):
        prove_precision(heads, [], "fp32")


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_an_engine_without_arithmetic_proves_nothing(precision: str) -> None:
    with pytest.raises(BackendError, match="neither a convolution nor a matrix multiplication"):
        prove_precision([layer("cast", precision, "other")], [], precision)


def test_an_unknown_precision_cannot_be_proved() -> None:
    with pytest.raises(BackendError, match="expected one of fp32"):
        prove_precision([layer("conv0", "fp16")], ["conv0"], "half")
