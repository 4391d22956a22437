"""What a TensorRT plugin of ours is, said once for all kinds that TensorRT knows: name, fields, formats, launch.

`plugins/<op>/tensorrt_plugin.py` declares; `quick.py` and `python_v3.py` make TensorRT's classes of it. Sizes are whole
numbers where a kernel is launched by us, and TensorRT's symbolic expressions where it launches: an
output's shape and a launch may multiply and pass on those, and compare none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

NAMESPACE = "regionrt"
VERSION = "1"
"""Of every plugin of ours: raised when what a node or an engine says of a plugin changes its meaning."""

INT, FLOAT, FLOATS = "int", "float", "floats"
FP32, FP16, BF16, INT32, BOOL = "fp32", "fp16", "bf16", "int32", "bool"
LINEAR, CHANNELS_LAST = "linear", "channels last"

Size = Any
"""An int, or TensorRT's expression of one."""
Shape = Sequence[Size]
Format = tuple[str, str]
"""Data type and layout of one tensor."""
Combination = tuple[Format, ...]
"""The formats of all inputs and then the output that one kernel takes together."""


@dataclass(frozen=True)
class Tensor:
    """An input, or the output, as a launch sees it. `shape` is in the order of the graph, whatever the layout."""

    shape: Shape
    dtype: str
    layout: str = LINEAR


@dataclass(frozen=True)
class Launch:
    """One kernel: its arguments are the inputs, `scalars` (int32; floats as their bits) and the output."""

    kernel: str
    grid: tuple[Size, Size, Size]
    block: int
    scalars: tuple[Size, ...]


@dataclass(frozen=True)
class EnginePlugin:
    """One plugin with one output. Field values: int, float, or a list of floats, by the field's kind.

    op: its kernels are those of `plugins/<op>/kernel.cu`.
    inputs: names, in order.
    fields: kind by name; all of them stand in the ONNX node, and travel in the engine.
    output_dtype: of the inputs' data types.
    output_shape: of the inputs' shapes and the fields.
    combinations: what formats it takes, from the shapes of the inputs and the output; linear first.
    launch: from inputs, output and fields.
    """

    name: str
    op: str
    inputs: tuple[str, ...]
    fields: Mapping[str, str]
    output_dtype: Callable[[Sequence[str]], str]
    output_shape: Callable[[Sequence[Shape], Mapping[str, Any]], Shape]
    combinations: Callable[[Sequence[Shape]], Sequence[Combination]]
    launch: Callable[[Sequence[Tensor], Tensor, Mapping[str, Any]], Launch]
    namespace: str = field(default=NAMESPACE, init=False)
    version: str = field(default=VERSION, init=False)

    def checked(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The fields' values in the order and the types of `fields`. ValueError unless they are exactly those."""
        if values.keys() != self.fields.keys():
            raise ValueError(f"{self.name}: expected the fields {', '.join(self.fields)}, found {', '.join(values)}")
        return {name: _typed(self.name, name, kind, values[name]) for name, kind in self.fields.items()}


def _typed(plugin: str, name: str, kind: str, value: Any) -> Any:
    numbers = np.asarray(value).reshape(-1)
    expected = {INT: "a whole number", FLOAT: "a number", FLOATS: "a list of numbers"}[kind]
    if not numbers.size or (kind != FLOATS and numbers.size != 1) or numbers.dtype.kind not in "iuf":
        raise ValueError(f"{plugin}: {name}: expected {expected}, found {value!r}")
    if kind == FLOATS:
        return [float(number) for number in numbers]
    if kind == FLOAT:
        return float(numbers[0])
    if int(numbers[0]) != numbers[0]:
        raise ValueError(f"{plugin}: {name}: expected {expected}, found {value!r}")
    return int(numbers[0])


def bits(value: float) -> int:
    """A float as the int32 that carries it to a kernel."""
    return int(np.float32(value).view(np.int32))


NAN_BITS = bits(math.nan)
