"""One standard ONNX node as a model, run by ONNX Runtime or OpenVINO: what a peer's op costs on its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
from onnx import helper

OPSET = 20


class OneNode:
    """`op` with `inputs` by name (in its order) and `attributes`; the calls give the outputs as NumPy arrays."""

    def __init__(self, op: str, inputs: Mapping[str, np.ndarray], attributes: Mapping[str, Any], threads: int) -> None:
        self.inputs = {name: np.ascontiguousarray(value) for name, value in inputs.items()}
        self.threads = threads
        output = {"NonMaxSuppression": onnx.TensorProto.INT64}.get(op, onnx.TensorProto.FLOAT)
        graph = helper.make_graph(
            [helper.make_node(op, list(inputs), ["out"], **attributes)],
            op,
            [
                helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
                for name, value in self.inputs.items()
            ],
            [helper.make_tensor_value_info("out", output, None)],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
        self.model = model.SerializeToString()

    def onnxruntime(self) -> Callable[[], Any]:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = self.threads, 3
        session = onnxruntime.InferenceSession(self.model, options, providers=["CPUExecutionProvider"])
        return lambda: session.run(None, self.inputs)[0]

    def openvino(self) -> Callable[[], Any]:
        import openvino

        core = openvino.Core()
        settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": self.threads}
        request = core.compile_model(core.read_model(self.model), "CPU", settings).create_infer_request()
        return lambda: request.infer(self.inputs, share_inputs=True, share_outputs=True)[0]
