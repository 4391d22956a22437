"""Arrays that lie on the GPU already: their address, by DLPack or `__cuda_array_interface__`, without a copy.

Data may still be in the making. DLPack (dmlc, v0.8) lets the producer order that before our stream, so it comes first.
`__cuda_array_interface__` says from version 3 on (Numba's documentation) which stream to wait for; torch's, of version
2, does not.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from regionrt.runtime.errors import BackendError

from .cuda import Cuda

_DEVICE_CUDA, _DEVICE_CUDA_MANAGED = 2, 13  # DLDeviceType
_DLPACK_KINDS = {0: "int", 1: "uint", 2: "float"}


@dataclass(frozen=True)
class DeviceArray:
    """C-contiguous data on the GPU. `owner` keeps it alive; `release` gives it back and may be called once."""

    address: int
    shape: tuple[int, ...]
    dtype: np.dtype
    owner: Any
    release: Callable[[], None]


def on_device(value: Any) -> bool:
    """Whether `value` offers its data on a GPU; False for NumPy arrays, which DLPack shows on the CPU."""
    if isinstance(value, np.ndarray):
        return False
    return _by_dlpack(value) or hasattr(value, "__cuda_array_interface__")


def _by_dlpack(value: Any) -> bool:
    return hasattr(value, "__dlpack__") and value.__dlpack_device__()[0] in (_DEVICE_CUDA, _DEVICE_CUDA_MANAGED)


def device_array(value: Any, stream: int, cuda: Cuda) -> DeviceArray:
    """The data of `value`, ready to be read on `stream`. BackendError if it is not C-contiguous, or on another GPU."""
    if not _by_dlpack(value):
        return _from_interface(value, cuda)
    kind, device = value.__dlpack_device__()
    if kind == _DEVICE_CUDA:  # managed memory is every GPU's
        _check_device(device, cuda)
    return _from_dlpack(value, stream)


def _check_device(found: int | None, cuda: Cuda) -> None:
    if found not in (None, cuda.device):
        raise BackendError(
            f"an array on GPU {found}: expected one on GPU {cuda.device} ({cuda.device_name}), where this runs; copy "
            f"it there first (.to('cuda:{cuda.device}') in torch), or show this process GPU {found} alone "
            f"(CUDA_VISIBLE_DEVICES={found})"
        )


def _from_interface(value: Any, cuda: Cuda) -> DeviceArray:
    face = value.__cuda_array_interface__
    shape, dtype = tuple(face["shape"]), np.dtype(face["typestr"])
    strides = face.get("strides")
    if strides is not None and not _in_c_order(shape, tuple(strides), dtype.itemsize):
        raise BackendError(_not_contiguous(shape, strides))
    address = face["data"][0]
    if address:  # it has none where there are no values
        _check_device(cuda.device_of(address), cuda)
    made_on = face.get("stream")
    if made_on is not None:
        cuda.synchronize(made_on)
    return DeviceArray(address, shape, dtype, value, lambda: None)


def _in_c_order(shape: tuple[int, ...], strides: tuple[int, ...], step: int) -> bool:
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size > 1 and stride != step:  # along an axis of one the stride says nothing
            return False
        step *= size
    return True


class _Tensor(ctypes.Structure):
    """DLTensor of dlpack.h."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class _Managed(ctypes.Structure):
    """DLManagedTensor of dlpack.h."""


_Deleter = ctypes.CFUNCTYPE(None, ctypes.POINTER(_Managed))
_Managed._fields_ = (("tensor", _Tensor), ("context", ctypes.c_void_p), ("deleter", _Deleter))

_pointer_of = ctypes.pythonapi.PyCapsule_GetPointer
_pointer_of.restype, _pointer_of.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)


def _from_dlpack(value: Any, stream: int) -> DeviceArray:
    # The capsule stays unconsumed: it calls the deleter itself when it goes, at `release` or with the array.
    try:
        held = [value.__dlpack__(stream=stream)]
    except (BufferError, RuntimeError) as error:  # torch: of a tensor that requires a gradient
        raise BackendError(f"an array on the GPU that its library does not hand over: {error}") from error
    tensor = ctypes.cast(_pointer_of(held[0], b"dltensor"), ctypes.POINTER(_Managed)).contents.tensor
    shape = tuple(tensor.shape[i] for i in range(tensor.ndim))
    if tensor.strides:
        strides = tuple(tensor.strides[i] for i in range(tensor.ndim))
        if not _in_c_order(shape, strides, 1):
            raise BackendError(_not_contiguous(shape, strides))
    kind = _DLPACK_KINDS.get(tensor.code)
    if kind is None or tensor.lanes != 1:
        raise BackendError(f"an array on the GPU of DLPack type {tensor.code} ({tensor.bits} bit): expected numbers")
    return DeviceArray(
        (tensor.data or 0) + tensor.byte_offset, shape, np.dtype(f"{kind}{tensor.bits}"), held, held.clear
    )


def _not_contiguous(shape: tuple[int, ...], strides: Any) -> str:
    return (
        f"an array on the GPU of shape {list(shape)} with strides {list(strides)}: expected C order without gaps; "
        "copy it first (.contiguous() in torch)"
    )
