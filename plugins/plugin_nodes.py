"""How a TensorRT plugin stands in an ONNX file: one node of our domain, with what TensorRT's parser goes by."""

from collections.abc import Mapping, Sequence
from typing import Any

from regionrt.runtime.engine_plugins.declaration import EnginePlugin

from .schemas import DOMAIN, VERSION


def emit(op: Any, plugin: EnginePlugin, inputs: Sequence[Any], fields: Mapping[str, Any]) -> Any:
    """The node of `plugin`, with all of its fields as attributes. -> its output

    The parser looks for the plugin by namespace, name and version; `aot` asks of quickly deployable plugins that the
    kernel travels inside the engine. It would inline a model-local function of this name instead.
    """
    return getattr(op, plugin.name)(
        *inputs,
        _domain=DOMAIN,
        _version=VERSION,
        **plugin.checked(fields),
        plugin_namespace=plugin.namespace,
        plugin_version=plugin.version,
        aot=1,
    )
