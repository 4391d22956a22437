"""Our plugins as TensorRT's `IPluginV3` in Python, which launches the kernel from this process.

For TensorRT 10.0 to 10.8, which has no quickly deployable plugins that travel in an engine, and TensorRT for RTX, whose
Python has none. An engine holds the plugin's fields only: the process that loads it has the plugin registered.
Kernels are compiled when a context first needs one: a build without a GPU never does.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from regionrt.runtime.errors import BackendError

from .declaration import (
    BF16,
    BOOL,
    CHANNELS_LAST,
    FLOAT,
    FLOATS,
    FP16,
    FP32,
    INT,
    INT32,
    LINEAR,
    EnginePlugin,
    Format,
    Launch,
    Tensor,
)


class Launcher(Protocol):
    """What puts kernels on a stream; both methods raise BackendError."""

    def prepare(self, op: str, kernel: str) -> None:
        """Compile and load `kernel` of `op`, before a stream may be captured."""

    def launch(self, op: str, kernel: str, grid: Sequence[int], block: int, arguments: list[Any], stream: int) -> None:
        """`arguments` as ctypes values."""


def creator(trt: Any, plugin: EnginePlugin, launcher: Launcher, used: Callable[[EnginePlugin], None]) -> Any:
    """The creator of `plugin`, to be registered with the plugin registry of `trt`, and to be kept as long.

    used: is told when an engine needs the plugin.
    """
    kind_of = {INT: trt.PluginFieldType.INT32, FLOAT: trt.PluginFieldType.FLOAT32, FLOATS: trt.PluginFieldType.FLOAT32}
    dtypes = {
        FP32: trt.DataType.FLOAT,
        FP16: trt.DataType.HALF,
        BF16: trt.DataType.BF16,
        INT32: trt.DataType.INT32,
        BOOL: trt.DataType.BOOL,
    }
    names = {dtype: name for name, dtype in dtypes.items()}

    class Plugin(trt.IPluginV3, trt.IPluginV3OneCore, trt.IPluginV3OneBuild, trt.IPluginV3OneRuntime):  # type: ignore
        """One node of a network, and its clones in the engine's contexts."""

        def __init__(self, fields: dict[str, Any]) -> None:
            trt.IPluginV3.__init__(self)
            trt.IPluginV3OneCore.__init__(self)
            trt.IPluginV3OneBuild.__init__(self)
            trt.IPluginV3OneRuntime.__init__(self)
            self.plugin_name, self.plugin_namespace = plugin.name, plugin.namespace
            self.plugin_version, self.num_outputs = plugin.version, 1
            self.fields = fields
            self.ready: Launch | None = None
            # TensorRT keeps pointers into these arrays.
            self.arrays = {
                name: np.array(fields[name], np.int32 if kind == INT else np.float32).reshape(-1)
                for name, kind in plugin.fields.items()
            }
            self.serialized = trt.PluginFieldCollection(
                [trt.PluginField(name, self.arrays[name], kind_of[kind]) for name, kind in plugin.fields.items()]
            )

        def get_capability_interface(self, kind: Any) -> Any:
            return self

        def clone(self) -> Any:
            return Plugin(self.fields)

        def get_fields_to_serialize(self) -> Any:
            return self.serialized

        def get_output_data_types(self, input_types: Sequence[Any]) -> list[Any]:
            return [dtypes[plugin.output_dtype([names.get(dtype, "") for dtype in input_types])]]

        def get_output_shapes(self, inputs: Sequence[Any], shape_inputs: Sequence[Any], builder: Any) -> list[Any]:
            shapes = [[_Expression.of(trt, builder, shape[i]) for i in range(len(shape))] for shape in inputs]
            sizes = plugin.output_shape(shapes, self.fields)
            result = trt.DimsExprs(len(sizes))
            for index, size in enumerate(sizes):
                result[index] = size.handle if isinstance(size, _Expression) else builder.constant(size)
            return [result]

        def supports_format_combination(self, position: int, tensors: Sequence[Any], inputs: int) -> bool:
            shapes = [tuple(tensor.desc.dims) for tensor in tensors]
            return any(
                all(
                    (tensor.desc.type, tensor.desc.format) == (dtypes[dtype], trt_layout(trt, dtype, layout))
                    for tensor, (dtype, layout) in zip(tensors[: position + 1], combination, strict=False)
                )
                for combination in plugin.combinations(shapes)
            )

        def configure_plugin(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
            pass

        def get_workspace_size(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
            return 0

        def get_valid_tactics(self) -> list[int]:
            return []

        def set_tactic(self, tactic: int) -> None:
            pass

        def attach_to_context(self, context: Any) -> Any:
            return self.clone()

        def on_shape_change(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
            tensors = [
                Tensor(tuple(int(size) for size in desc.dims), *_format(names, trt, desc))
                for desc in [*inputs, *outputs]
            ]
            self.ready = plugin.launch(tensors[:-1], tensors[-1], self.fields)
            launcher.prepare(plugin.op, self.ready.kernel)

        def enqueue(
            self,
            input_desc: Sequence[Any],
            output_desc: Sequence[Any],
            inputs: Sequence[int],
            outputs: Sequence[int],
            workspace: int,
            stream: int,
        ) -> None:
            if self.ready is None:
                raise BackendError(f"{plugin.name}: TensorRT launches it before it has said the shapes")
            arguments = [
                *(ctypes.c_void_p(int(address)) for address in inputs),
                *(ctypes.c_int32(scalar) for scalar in self.ready.scalars),
                *(ctypes.c_void_p(int(address)) for address in outputs),
            ]
            launcher.launch(plugin.op, self.ready.kernel, self.ready.grid, self.ready.block, arguments, int(stream))

    class Creator(trt.IPluginCreatorV3One):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            trt.IPluginCreatorV3One.__init__(self)
            self.name, self.plugin_version, self.plugin_namespace = plugin.name, plugin.version, plugin.namespace
            self.field_names = trt.PluginFieldCollection(
                [trt.PluginField(name, np.array([]), kind_of[kind]) for name, kind in plugin.fields.items()]
            )

        def create_plugin(self, name: str, fields: Any, phase: Any) -> Any:
            used(plugin)
            return Plugin(plugin.checked({field.name: np.array(field.data) for field in fields}))

    return Creator()


def trt_layout(trt: Any, dtype: str, layout: str) -> Any:
    """TensorRT's word for a layout: channels last are scalars (HWC) in fp32, and vectors of 8 in the half types."""
    if layout == LINEAR:
        return trt.TensorFormat.LINEAR
    return trt.TensorFormat.HWC if dtype == FP32 else trt.TensorFormat.HWC8


def _format(names: dict[Any, str], trt: Any, desc: Any) -> Format:
    return names[desc.type], LINEAR if desc.format == trt.TensorFormat.LINEAR else CHANNELS_LAST


class _Expression:
    """A size that TensorRT knows as an expression; as much of arithmetic as output shapes need."""

    def __init__(self, trt: Any, builder: Any, handle: Any) -> None:
        self.trt, self.builder, self.handle = trt, builder, handle

    @classmethod
    def of(cls, trt: Any, builder: Any, handle: Any) -> Any:
        return handle.get_constant_value() if handle.is_constant() else cls(trt, builder, handle)

    def __mul__(self, other: Any) -> _Expression:
        handle = other.handle if isinstance(other, _Expression) else self.builder.constant(other)
        return _Expression(
            self.trt, self.builder, self.builder.operation(self.trt.DimensionOperation.PROD, self.handle, handle)
        )

    __rmul__ = __mul__
