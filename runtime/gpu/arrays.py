"""Arrays on the GPU as the ops take them: an address, a shape and a type; nothing here owns memory."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from regionrt.runtime.errors import BackendError

SIZES = {"float32": 4, "float16": 2, "bfloat16": 2, "int32": 4, "uint8": 1}
KINDS = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}
"""Types that the kernels compute with, as they stand in a kernel's name."""
ALIGNMENT = 256


@dataclass(frozen=True)
class GpuArray:
    """C-contiguous data on the GPU. Of torch: `GpuArray(t.data_ptr(), tuple(t.shape), "float16")`."""

    address: int
    shape: tuple[int, ...]
    dtype: str

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * SIZES[self.dtype]


def checked(name: str, array: GpuArray, dtype: str | Sequence[str], shape: Sequence[int | None]) -> GpuArray:
    """`array`, if it has one of these types and this shape; None leaves a side open. BackendError else."""
    types = (dtype,) if isinstance(dtype, str) else tuple(dtype)
    if array.dtype not in types:
        raise BackendError(f"{name}: expected {' or '.join(types)} on the GPU, found {array.dtype}")
    if len(array.shape) != len(shape) or any(
        want not in (None, side) for want, side in zip(shape, array.shape, strict=True)
    ):
        wanted = ", ".join("any" if side is None else str(side) for side in shape)
        raise BackendError(f"{name}: expected the shape [{wanted}] on the GPU, found {list(array.shape)}")
    return array


def within(name: str, value: int, least: int, most: int) -> int:
    """`value`, if it is a whole number from `least` to `most`. BackendError else."""
    if not least <= value <= most:
        raise BackendError(f"{name}: the CUDA kernels take {least} to {most}, found {value}; export with another limit")
    return int(value)


def packed(sizes: Mapping[str, int], at: int = 0) -> tuple[dict[str, int], int]:
    """(offsets by name, bytes in all) of parts of these sizes one behind the other, each at a multiple of 256."""
    offsets = {}
    for name, size in sizes.items():
        offsets[name] = at
        at += -(-size // ALIGNMENT) * ALIGNMENT
    return offsets, at
