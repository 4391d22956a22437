"""Give every node of the domain `regionrt` a body: a model-local function in the form that a backend understands."""

from collections.abc import Callable

import onnx_ir as ir
import onnxscript

from regionrt.plugins.ops import DOMAIN, OPS, OPSET, VERSION

from ..errors import ExportError


def lower(model: ir.Model, form: str) -> ir.Model:
    """A copy of the abstract `model` in which each of our nodes calls a function of its own in `form`.

    Requires values with types and known ranks. The nodes stay where they are (passes/split.py finds them in the
    lowered model too); only their operator becomes e.g. `RegionNms_native_0`. Raises ExportError for a form that an
    op does not have, or that cannot express the op's attributes.
    """
    lowered = model.clone()
    for index, node in enumerate(n for n in lowered.graph if n.domain == DOMAIN):
        function = function_of(node, form, f"{node.op_type}_{form}_{index}")
        lowered.functions[function.identifier()] = function
        node.op_type = function.name
        node.attributes.clear()
    return lowered


def function_of(node: ir.Node, form: str, name: str) -> ir.Function:
    """The body of one abstract node in `form`, as a function with the node's input shapes and no attributes."""
    forms = OPS[node.op_type].forms
    if form not in forms:
        raise ExportError(f"{node.op_type} has no form {form!r}: choose one of {', '.join(sorted(forms))}")
    attributes = {key: attribute.value for key, attribute in node.attributes.items()}
    write: Callable = forms[form]
    inputs = [
        ir.Value(name=f"input_{i}", type=value.type, shape=value.shape) for i, value in enumerate(node.inputs) if value
    ]
    try:
        function = onnxscript.build_function(
            lambda op, *values: list(write(op, values, attributes)),
            inputs,
            domain=DOMAIN,
            name=name,
            opset_imports={"": OPSET},
        )
    except ValueError as error:
        raise ExportError(str(error)) from error
    if any(inner.domain == DOMAIN for inner in function.all_nodes()):  # plugins for TensorRT, which stay nodes
        function.opset_imports[DOMAIN] = VERSION
    return function


def base_op(node: ir.Node) -> str:
    """The abstract operator of one of our nodes, lowered or not: `RegionNms_native_0` -> `RegionNms`."""
    return node.op_type.split("_")[0]
