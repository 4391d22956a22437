"""How our ops are declared to ONNX: schemas of the domain `regionrt`, version 1, and their registration."""

from collections.abc import Sequence

import onnx
from onnx.defs import OpSchema

DOMAIN = "regionrt"
VERSION = 1
OPSET = 20  # of the standard domain, in every graph we write; RoiAlign 22 is missing in ONNX Runtime

FLOAT32 = ["tensor(float)"]
INT32 = ["tensor(int32)"]
FLOATS = ["tensor(float)", "tensor(float16)", "tensor(bfloat16)"]
MIXED = [*FLOATS, *INT32]


def attribute(name: str, kind: OpSchema.AttrType) -> OpSchema.Attribute:
    """A required attribute."""
    return OpSchema.Attribute(name, kind, "", required=True)


def domain_schema(
    name: str,
    doc: str,
    *,
    inputs: Sequence[tuple[str, list[str], str]],
    outputs: Sequence[tuple[str, list[str], str]],
    attributes: Sequence[OpSchema.Attribute],
    variadic: bool = False,
) -> OpSchema:
    """A schema of our domain.

    ONNX lets only the last input repeat, so an op with lists of levels has one variadic input.
    """
    option = OpSchema.FormalParameterOption
    constraints = [(f"T{i}", types, text) for i, (_, types, text) in enumerate([*inputs, *outputs])]
    parameters = [
        OpSchema.FormalParameter(
            label,
            f"T{i}",
            text,
            param_option=option.Variadic if variadic and i < len(inputs) else option.Single,
            is_homogeneous=not variadic,
            min_arity=1,
        )
        for i, (label, _, text) in enumerate([*inputs, *outputs])
    ]
    return OpSchema(
        name,
        DOMAIN,
        VERSION,
        doc,
        inputs=parameters[: len(inputs)],
        outputs=parameters[len(inputs) :],
        type_constraints=constraints,
        attributes=list(attributes),
    )


def register(schema: OpSchema) -> None:
    """Make the schema known to onnx's checker and to torch's exporter; a second call is harmless."""
    if not onnx.defs.has(schema.name, schema.domain):
        onnx.defs.register_schema(schema)
