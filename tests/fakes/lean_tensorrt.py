"""TensorRT's own Python code for quickly deployable plugins, without TensorRT: on the lean runtime's plugin registry.

`tensorrt-lean` has the registry, the plugin classes and the package `plugin`, and lacks the tensor formats and the
builder. `library()` adds what is lacking; `drive` takes a plugin through the calls of a build, with sizes that are
numbers or, as for a dynamic batch, expressions whose value only this file knows.
"""

from __future__ import annotations

import enum
import importlib
import importlib.util
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

NAME = "lean_tensorrt"


class Expression:
    """IDimensionExpr: `known` is what a builder can see."""

    def __init__(self, value: int, known: bool) -> None:
        self.value, self.known = int(value), known

    def is_constant(self) -> bool:
        return self.known

    def get_constant_value(self) -> int:
        assert self.known, "the value of an expression that is not constant was asked for"
        return self.value

    def is_size_tensor(self) -> bool:
        return False


class Expressions(list):
    """DimsExprs."""

    def __init__(self, sizes: int | Sequence[Expression]) -> None:
        super().__init__([None] * sizes if isinstance(sizes, int) else sizes)


class ExpressionBuilder:
    """IExprBuilder, of what our plugins may compute."""

    def constant(self, value: int) -> Expression:
        return Expression(value, True)

    def operation(self, operation: Any, first: Expression, second: Expression) -> Expression:
        computed = {
            "PROD": first.value * second.value,
            "SUM": first.value + second.value,
            "SUB": first.value - second.value,
        }
        return Expression(computed[operation.name], first.known and second.known)


class TensorFormat(enum.IntEnum):
    """As TensorRT numbers them."""

    LINEAR, CHW2, HWC8, CHW4, CHW16, CHW32, DHWC8, CDHW32, HWC = range(9)


class TensorDesc(SimpleNamespace):
    """PluginTensorDesc: dims, type, format, scale."""


class DynamicTensorDesc(SimpleNamespace):
    """DynamicPluginTensorDesc: desc, min, max, opt."""


@cache
def registry_library() -> Any:
    """A library with a plugin registry, without the package `plugin`: the lean runtime, or TensorRT for RTX."""
    for name in ("tensorrt_lean", "tensorrt_rtx"):
        if importlib.util.find_spec(name) is not None:
            return _completed(importlib.import_module(name))
    pytest.skip("neither tensorrt-lean nor tensorrt-rtx is installed: pip install tensorrt-lean")


def _completed(library: Any) -> Any:
    whole = ModuleType(NAME)
    whole.__dict__.update({name: value for name, value in vars(library).items() if not name.startswith("__")})
    whole.__dict__.update(
        __version__=library.__version__,
        TensorFormat=TensorFormat,
        ITensor=type("ITensor", (), {}),
        IDimensionExpr=Expression,
        DimsExprs=Expressions,
        ISymExpr=type("ISymExpr", (), {}),
        PluginTensorDesc=TensorDesc,
        DynamicPluginTensorDesc=DynamicTensorDesc,
    )
    return whole


@cache
def library() -> Any:
    """Skips the test where tensorrt-lean is not installed (pip install tensorrt-lean; it needs no GPU)."""
    lean = pytest.importorskip("tensorrt_lean", reason="tensorrt-lean is not installed: pip install tensorrt-lean")
    whole = _completed(lean)
    found = importlib.util.find_spec("tensorrt_lean_bindings.plugin")
    assert found is not None
    assert found.submodule_search_locations
    folder = found.submodule_search_locations[0]
    spec = importlib.util.spec_from_file_location(
        "tensorrt.plugin", f"{folder}/__init__.py", submodule_search_locations=[folder]
    )
    assert spec is not None
    assert spec.loader is not None
    plugin = importlib.util.module_from_spec(spec)
    others = {name: module for name, module in sys.modules.items() if name.split(".")[0] == "tensorrt"}
    sys.modules.update({"tensorrt": whole, "tensorrt.plugin": plugin})
    try:
        spec.loader.exec_module(plugin)
    finally:  # to everybody else there is no TensorRT here
        for name in [name for name in sys.modules if name.split(".")[0] == "tensorrt"]:
            del sys.modules[name]
        sys.modules.update(others)
    whole.plugin = plugin
    sys.modules[NAME], sys.modules[f"{NAME}.plugin"] = whole, plugin
    whole.__spec__ = importlib.util.spec_from_loader(NAME, None, is_package=True)
    return whole


@dataclass(frozen=True)
class Driven:
    """What an engine would hold of one plugin node: kernel, PTX, launch, scalars, and the output's shape and type."""

    kernel: str
    ptx: str
    grid: tuple[int, ...]
    block: tuple[int, ...]
    shared_bytes: int
    scalars: tuple[int, ...]
    shape: tuple[int, ...]
    dtype: Any
    combinations: tuple[tuple[tuple[Any, Any], ...], ...]
    """Types and formats of inputs and output together that it offers to be measured."""


def drive(
    name: str,
    namespace: str,
    fields: Mapping[str, Any],
    inputs: Sequence[tuple[Sequence[int], Any]],
    formats: Sequence[TensorFormat],
    dynamic_batch: bool = True,
) -> Driven:
    """A build's calls in their order. inputs: (shape, data type) each; formats: chosen for the inputs and the output.

    fields: handed over as the ONNX parser does: in the creator's order, INT as int32, FLOAT and FLOATS as float32.
    """
    trt = library()
    kinds = trt.PluginFieldType
    arrays = {
        key: np.asarray(value, np.int32 if isinstance(value, int) else np.float32).reshape(-1)
        for key, value in fields.items()
    }
    types = {np.dtype(np.float32): kinds.FLOAT32, np.dtype(np.int32): kinds.INT32}
    creator = trt.get_plugin_registry().get_creator(name, "1", namespace)
    collection = trt.PluginFieldCollection(
        [trt.PluginField(f.name, arrays[f.name], types[arrays[f.name].dtype]) for f in creator.field_names]
    )
    plugin = creator.create_plugin(
        name, namespace, collection, trt.TensorRTPhase.BUILD, trt.QuickPluginCreationRequest.STRICT_AOT
    )
    dtypes = [dtype for _, dtype in inputs]
    (dtype,) = plugin.get_output_data_types(dtypes, [len(shape) for shape, _ in inputs])
    sizes = [
        Expressions([Expression(size, not (dynamic_batch and axis == 0)) for axis, size in enumerate(shape)])
        for shape, _ in inputs
    ]
    builder = ExpressionBuilder()
    (result,) = plugin.get_output_shapes(sizes, [], builder)
    shape = tuple(size.value for size in result)

    def desc(dims: Sequence[int], dtype: Any, layout: TensorFormat) -> DynamicTensorDesc:
        dims = tuple(dims)
        inner = TensorDesc(dims=dims, type=dtype, format=layout, scale=1.0)
        return DynamicTensorDesc(desc=inner, min=dims, max=dims, opt=dims)

    linear = [desc(*tensor, TensorFormat.LINEAR) for tensor in [*inputs, (shape, dtype)]]
    offered = plugin.get_supported_format_combinations(linear, len(inputs))
    width = len(inputs) + 1
    combinations = tuple(
        tuple((offer.type, offer.format) for offer in offered[start : start + width])
        for start in range(0, len(offered), width)
    )
    chosen = [desc(*tensor, layout) for tensor, layout in zip([*inputs, (shape, dtype)], formats, strict=True)]
    plugin.configure_plugin(chosen[:-1], chosen[-1:])
    (tactic,) = plugin.get_valid_tactics() or (0,)
    plugin.set_tactic(tactic)
    launch, scalars = SimpleNamespace(), _Scalars()
    plugin.get_launch_params(sizes, chosen, len(inputs), launch, scalars, builder)
    kernel, ptx = plugin.get_kernel([one.desc for one in chosen[:-1]], [chosen[-1].desc])
    assert scalars.nbSymExprs == len(scalars.given)
    return Driven(
        kernel=kernel,
        ptx=ptx.decode(),
        grid=tuple(getattr(launch, f"grid_{axis}").expr.value for axis in "xyz"),
        block=tuple(getattr(launch, f"block_{axis}").expr.value for axis in "xyz"),
        shared_bytes=launch.shared_mem.expr.value,
        scalars=tuple(scalars.given[index].expr.value for index in range(len(scalars.given))),
        shape=shape,
        dtype=dtype,
        combinations=combinations,
    )


class _Scalars:
    """ISymExprs."""

    def __init__(self) -> None:
        self.nbSymExprs = 0
        self.given: dict[int, Any] = {}

    def __setitem__(self, index: int, value: Any) -> None:
        self.given[index] = value
