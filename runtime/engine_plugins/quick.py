"""Our plugins as quickly deployable ones (`tensorrt.plugin`, from TensorRT 10.9 on): the kernel travels in the engine.

While the engine is built TensorRT asks for a kernel's PTX, its launch grid and its scalars, as expressions of the
inputs' sizes, and keeps them. Whoever runs the engine (C++, trtexec, the lean runtime) needs nothing of this then.
"""

# Not `from __future__ import annotations`: TensorRT looks at the annotations themselves.

import importlib
import inspect
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

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
    Launch,
    Tensor,
)

ANNOTATIONS = {INT: int, FLOAT: float, FLOATS: npt.NDArray[np.float32]}
"""Of the fields, by which TensorRT's parser reads the node's attributes."""
_TYPES = {FP32: "FP32", FP16: "FP16", BF16: "BF16", INT32: "INT32", BOOL: "BOOL"}
_MEMBERS = {FP32: "FLOAT", FP16: "HALF"}  # of trt.DataType, where they are not named as in AutoTuneCombination


def register(
    trt: Any, plugins: Sequence[EnginePlugin], ptx_of: Callable[[str], str], used: Callable[[EnginePlugin], None]
) -> None:
    """Make `plugins` known to `trt.plugin`, and with it to the parser. Once in a process.

    ptx_of: gives the kernels of an op, as PTX, when an engine needs one. used: is told of each plugin that it does.
    """
    trtp = importlib.import_module(f"{trt.__name__}.plugin")
    for plugin in plugins:
        _register(trt, trtp, plugin, ptx_of, used)


def _register(
    trt: Any, trtp: Any, plugin: EnginePlugin, ptx_of: Callable[[str], str], used: Callable[[EnginePlugin], None]
) -> None:
    count = len(plugin.inputs)
    dtypes = {name: getattr(trt.DataType, _MEMBERS.get(name, word)) for name, word in _TYPES.items()}
    names = {dtype: name for name, dtype in dtypes.items()}

    def fields_of(values: Sequence[Any]) -> dict[str, Any]:
        return plugin.checked(dict(zip(plugin.fields, values, strict=True)))

    def describe(*arguments: Any, **fields: Any) -> Any:
        inputs = arguments[:count]
        values = plugin.checked(fields) if fields else fields_of(arguments[count:])
        shape = plugin.output_shape([_sizes(desc) for desc in inputs], values)
        dtype = plugin.output_dtype([names.get(desc.dtype, "") for desc in inputs])
        return trtp.from_shape_expr(tuple(shape), dtypes[dtype])

    def formats(*arguments: Any) -> Any:
        *inputs, outputs = arguments
        combinations = plugin.combinations([_sizes(desc) for desc in (*inputs, *outputs)])
        return [
            trtp.AutoTuneCombination(
                ", ".join(_TYPES[dtype] for dtype, _ in combination),
                ", ".join(_layout(dtype, layout) for dtype, layout in combination),
            )
            for combination in combinations
        ]

    def implement(*arguments: Any) -> Any:
        inputs, (outputs, _) = arguments[:count], arguments[-2:]
        used(plugin)
        tensors = [
            Tensor(
                _sizes(desc),
                names[desc.dtype],
                LINEAR if desc.format == trt.TensorFormat.LINEAR else CHANNELS_LAST,
            )
            for desc in (*inputs, *outputs)
        ]
        launch: Launch = plugin.launch(tensors[:-1], tensors[-1], fields_of(arguments[count:-2]))
        x, y, z = launch.grid
        parameters = trtp.KernelLaunchParams(grid_x=x, grid_y=y, grid_z=z, block_x=launch.block)
        scalars = trtp.SymIntExprs.from_tuple(tuple(trtp.SymInt32(scalar) for scalar in launch.scalars))
        return launch.kernel, only_kernel(ptx_of(plugin.op), launch.kernel), parameters, scalars

    tensors = [(name, trtp.TensorDesc) for name in plugin.inputs]
    attributes = [(name, ANNOTATIONS[kind]) for name, kind in plugin.fields.items()]
    outputs, text = ("outputs", tuple[trtp.TensorDesc]), str | bytes
    identity = f"{plugin.namespace}::{plugin.name}"
    trtp.register(identity)(_signed(describe, [*tensors, *attributes], trtp.TensorDesc))
    trtp.autotune(identity)(_signed(formats, [*tensors, outputs], list[trtp.AutoTuneCombination]))
    trtp.aot_impl(identity)(
        _signed(
            implement,
            [*tensors, *attributes, outputs, ("tactic", int)],
            tuple[text, text, trtp.KernelLaunchParams, trtp.SymIntExprs],  # type: ignore[valid-type]
        )
    )


def _signed(function: Callable[..., Any], arguments: Sequence[tuple[str, Any]], result: Any) -> Callable[..., Any]:
    """`function`, which takes any arguments, with the signature that TensorRT reads names and types from."""
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [inspect.Parameter(name, kind, annotation=annotation) for name, annotation in arguments]
    function.__signature__ = inspect.Signature(parameters, return_annotation=result)  # type: ignore[attr-defined]
    return function


def _sizes(desc: Any) -> tuple[Any, ...]:
    """A tensor's sizes: whole numbers where they are known, else TensorRT's expressions."""
    return tuple(
        size.constant_value() if not size.is_fake and size.is_constant else size
        for size in (desc.shape_expr[axis] for axis in range(len(desc.shape_expr)))
    )


def _layout(dtype: str, layout: str) -> str:
    return "LINEAR" if layout == LINEAR else "HWC" if dtype == FP32 else "HWC8"


def only_kernel(ptx: str, kernel: str) -> str:
    """PTX with one of its kernels alone, and the functions that it may call: each node of an engine holds its own."""
    kept = re.sub(
        r"^(?:[ \t]*//[^\n]*\n)?\.visible \.entry (\w+)\(.*?^\}\n",
        lambda found: found[0] if found[1] == kernel else "",
        ptx,
        flags=re.MULTILINE | re.DOTALL,
    )
    if not re.search(rf"\.entry {kernel}\(", kept):
        raise ValueError(f"the PTX holds no kernel {kernel!r}")
    return kept
