"""Keeps ONNX Runtime from computing a photo's normalisation channels last.

Its integer convolutions read maps channels last. To save transpositions it moves that of the photo, [N, H, W, 3] to
[N, 3, H, W], from the beginning to behind the normalisation, whose operations then run over rows of three numbers: a
quarter of that stage in a small net. A Reshape that changes nothing stops it; a transposition of bytes remains.
"""

import numpy as np
import onnx_ir as ir

_CHANNELS_FIRST = (0, 3, 1, 2)


def hold_layout(model: ir.Model) -> None:
    """Puts a Reshape to the same shape behind each transposition of a photo, in place; values keep their names."""
    graph = model.graph
    for node in [node for node in graph if _lays_a_photo_out(node)]:
        laid = node.outputs[0]
        name = str(laid.name)
        same = ir.tensor(np.zeros(4, np.int64), name=f"{name}.same")  # a 0 stands for the size that is there
        shape = ir.Value(name=same.name, type=ir.TensorType(same.dtype), shape=same.shape, const_value=same)
        graph.register_initializer(shape)
        held = ir.node("Reshape", [laid, shape], name=f"hold_{name}")
        laid.name, held.outputs[0].name = f"{name}.laid", name
        held.outputs[0].type, held.outputs[0].shape = laid.type, laid.shape
        for use in list(laid.uses()):
            if use.node is not held:
                use.node.replace_input_with(use.idx, held.outputs[0])
        graph.insert_after(node, held)


def _lays_a_photo_out(node: ir.Node) -> bool:
    if node.op_type != "Transpose" or node.domain != "":
        return False
    if tuple(node.attributes.get_ints("perm", ())) != _CHANNELS_FIRST or node.outputs[0].is_graph_output():
        return False
    value = node.inputs[0]
    while value is not None and (made_by := value.producer()) is not None and made_by.op_type == "Cast":
        value = made_by.inputs[0]
    return value is not None and value.is_graph_input()
