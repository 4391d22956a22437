"""Fold what scales and shifts the channels behind a convolution into its weights: FrozenBatchNorm2d leaves such nodes.

The exporter folds BatchNorm2d itself. Done before the precision is chosen, so that the product is rounded once.
"""

import numpy as np
import onnx_ir as ir


def fold_scale(model: ir.Model) -> ir.Model:
    """A copy of `model` without the `Mul`s and `Add`s of one constant per channel that alone read a `Conv`'s output."""
    folded = model.clone()
    graph = folded.graph
    for conv in [node for node in graph if node.op_type == "Conv" and node.domain == ""]:
        weight, bias = conv.inputs[1], conv.inputs[2] if len(conv.inputs) > 2 else None
        if _constant(weight) is None or (bias is not None and _constant(bias) is None):
            continue
        kernels = weight.const_value.numpy()
        shift = np.zeros(len(kernels), kernels.dtype) if bias is None else bias.const_value.numpy()
        changed = False
        while (step := _per_channel(conv.outputs[0], len(kernels))) is not None:
            node, values = step
            if node.op_type == "Mul":
                kernels, shift = kernels * values.reshape(-1, 1, 1, 1), shift * values
            else:
                shift = shift + values
            ir.convenience.replace_all_uses_with(node.outputs[0], conv.outputs[0])
            graph.remove(node, safe=True)
            changed = True
        if changed:
            _set_input(graph, conv, 1, weight.name, kernels)
            _set_input(graph, conv, 2, f"{weight.name}.bias" if bias is None else bias.name, shift)
    for name in [name for name, value in graph.initializers.items() if not value.uses()]:
        del graph.initializers[name]
    return folded


def _constant(value: ir.Value | None) -> ir.TensorProtocol | None:
    return value.const_value if value is not None and value.is_initializer() else None


def _per_channel(value: ir.Value, channels: int) -> tuple[ir.Node, np.ndarray] | None:
    """The `Mul` or `Add` that alone reads `value` [N, C, H, W], and its constants [C]; None without such a node."""
    uses = list(value.uses())
    if len(uses) != 1 or value.is_graph_output():
        return None
    node, index = uses[0]
    if node.domain != "" or node.op_type not in ("Mul", "Add") or node.outputs[0].is_graph_output():
        return None
    constant = _constant(node.inputs[1 - index])
    if constant is None:
        return None
    values = constant.numpy()
    per_channel = values.size == channels and values.shape[-3:] == (channels, 1, 1)
    if not per_channel and not (values.size == 1 and values.ndim <= 4):
        return None
    return node, np.broadcast_to(values.reshape(-1), (channels,))


def _set_input(graph: ir.Graph, conv: ir.Node, index: int, name: str | None, array: np.ndarray) -> None:
    """Give `conv` a new constant, under the old one's name if nobody else reads that."""
    if index == len(conv.inputs):
        conv.resize_inputs(index + 1)
    old = conv.inputs[index]
    conv.replace_input_with(index, None)
    if old is not None and not old.uses():
        del graph.initializers[old.name]
    elif old is not None:
        name = f"{name}.folded_{conv.name}"
    tensor = ir.tensor(np.ascontiguousarray(array), name=name)
    value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=tensor.shape, const_value=tensor)
    graph.register_initializer(value)
    conv.replace_input_with(index, value)
