"""What the native ops ask of their arrays: types, shapes, memory order; and bf16, which NumPy does not know."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from ..machine import usable_cores

T = TypeVar("T")
FLOAT32, BFLOAT16 = 0, 1  # REGIONRT_FLOAT32, REGIONRT_BFLOAT16


def is_bfloat16(dtype: np.dtype) -> bool:
    """bf16 comes as ml_dtypes' type where somebody has imported it, else as uint16 that holds the bits."""
    return dtype == np.uint16 or (dtype.name == "bfloat16" and dtype.itemsize == 2)


def kind_of(name: str, array: np.ndarray) -> int:
    """FLOAT32 or BFLOAT16. ValueError for any other type."""
    if array.dtype == np.float32:
        return FLOAT32
    if is_bfloat16(array.dtype):
        return BFLOAT16
    raise ValueError(
        f"{name}: expected float32, or bf16 (ml_dtypes' bfloat16, or its bits as uint16), got {array.dtype}"
    )


def widened(array: np.ndarray) -> np.ndarray:
    """float32 of float32 or bf16."""
    if array.dtype == np.float32:
        return array
    return (array.view(np.uint16).astype(np.uint32) << 16).view(np.float32)


def narrowed(array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """float32 as `dtype`: float32 or bf16, rounded to the nearest, ties to even."""
    if dtype == np.float32:
        return array
    bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(array), (bits >> 16) | 0x40, rounded).astype(np.uint16).view(dtype)


def checked(name: str, array: np.ndarray, dtype: type | np.dtype | None, shape: Sequence[int | None]) -> np.ndarray:
    """`array` in C order (copied where it is not). ValueError for another type or shape; None leaves either open."""
    if not isinstance(array, np.ndarray):
        raise ValueError(f"{name}: expected a NumPy array, got {type(array).__name__}")
    if dtype is not None and array.dtype != dtype:
        raise ValueError(f"{name}: expected {np.dtype(dtype).name}, got {array.dtype}")
    if array.ndim != len(shape) or any(want not in (None, side) for want, side in zip(shape, array.shape, strict=True)):
        wanted = ", ".join("any" if side is None else str(side) for side in shape)
        raise ValueError(f"{name}: expected the shape [{wanted}], got {list(array.shape)}")
    if not array.dtype.isnative:
        raise ValueError(f"{name}: expected this machine's byte order, got {array.dtype.str}")
    return np.ascontiguousarray(array)


def counts_in_range(counts: np.ndarray, images: int, rows: int) -> np.ndarray:
    """Numbers of valid rows per image: int32 [N], 0…rows."""
    counts = checked("counts", counts, np.int32, (images,))
    if images and not (counts.min() >= 0 and counts.max() <= rows):
        raise ValueError(f"counts: expected 0 to {rows} rows of each image, got {counts.min()} to {counts.max()}")
    return counts


def output(name: str, out: np.ndarray | None, dtype: np.dtype | type, shape: tuple[int, ...]) -> np.ndarray:
    """`out`, which must be of this type and shape, C-contiguous and writable; None: a new, unset array."""
    if out is None:
        return np.empty(shape, dtype)
    if not isinstance(out, np.ndarray) or out.dtype != dtype or out.shape != shape:
        found = f"{out.dtype} {list(out.shape)}" if isinstance(out, np.ndarray) else type(out).__name__
        raise ValueError(f"{name}: expected {np.dtype(dtype).name} {list(shape)} to write to, got {found}")
    if not (out.flags.c_contiguous and out.flags.writeable):
        raise ValueError(f"{name}: expected a writable array in C order to write to")
    return out


def outputs(kind: type[T], out: T | None, shapes: Sequence[tuple[int, ...]], dtypes: Sequence[np.dtype | type]) -> T:
    """`output` of each field of a NamedTuple of arrays."""
    fields = kind._fields  # type: ignore[attr-defined]
    given = tuple(out) if out is not None else (None,) * len(fields)  # type: ignore[arg-type]
    return kind(
        *(
            output(f"out.{name}", array, dtype, shape)
            for name, array, dtype, shape in zip(fields, given, dtypes, shapes, strict=True)
        )
    )


def pointers(arrays: Sequence[np.ndarray]) -> ctypes.Array:
    """The addresses of `arrays`, as the library takes lists. The caller keeps the arrays alive."""
    return (ctypes.c_void_p * len(arrays))(*[array.ctypes.data for array in arrays])


def thread_count(threads: int | None) -> int:
    """`threads`, or by default one per usable core. ValueError below 1."""
    if threads is None:
        return usable_cores()
    if not isinstance(threads, int) or threads < 1:
        raise ValueError(f"threads: expected a whole number ≥ 1, got {threads!r}")
    return threads
