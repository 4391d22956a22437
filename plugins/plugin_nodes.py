"""How a TensorRT plugin stands in an ONNX file: one node of our domain, with what TensorRT's parser goes by."""

from collections.abc import Mapping, Sequence
from typing import Any

from onnx.defs import OpSchema

from regionrt.runtime.engine_plugins.declaration import FLOAT, FLOATS, INT, EnginePlugin

from .schemas import DOMAIN, MIXED, VERSION, attribute, domain_schema, register
from .schemas import FLOATS as FLOAT_TYPES

_KINDS = {INT: OpSchema.AttrType.INT, FLOAT: OpSchema.AttrType.FLOAT, FLOATS: OpSchema.AttrType.FLOATS}
_STRING = OpSchema.AttrType.STRING


def schema_of(plugin: EnginePlugin) -> OpSchema:
    """The schema of the plugin's node, by which onnx's checker sees that no attribute is missing."""
    return domain_schema(
        plugin.name,
        f"A TensorRT plugin that launches the kernels of {plugin.op}.",
        inputs=[(name, MIXED, name) for name in plugin.inputs],
        outputs=[("output", [*FLOAT_TYPES, "tensor(bool)"], "one output")],
        attributes=[
            *(attribute(name, _KINDS[kind]) for name, kind in plugin.fields.items()),
            attribute("plugin_namespace", _STRING),
            attribute("plugin_version", _STRING),
            attribute("aot", OpSchema.AttrType.INT),
        ],
    )


def emit(op: Any, plugin: EnginePlugin, inputs: Sequence[Any], fields: Mapping[str, Any]) -> Any:
    """The node of `plugin`, with all of its fields as attributes. -> its output

    The parser looks for the plugin by namespace, name and version; `aot` asks of quickly deployable plugins that the
    kernel travels inside the engine. It would inline a model-local function of this name instead.
    """
    register(schema_of(plugin))
    return getattr(op, plugin.name)(
        *inputs,
        _domain=DOMAIN,
        _version=VERSION,
        **plugin.checked(fields),
        plugin_namespace=plugin.namespace,
        plugin_version=plugin.version,
        aot=1,
    )
