"""The NVIDIA GPUs of this machine, asked of the CUDA driver through ctypes: no CUDA toolkit and no torch needed.

Initialising the driver is for child processes: it costs memory on the GPU and does not survive a fork.
"""

import ctypes
import sys
from dataclasses import dataclass

_COMPUTE_CAPABILITY_MAJOR, _COMPUTE_CAPABILITY_MINOR = 75, 76  # CUdevice_attribute in cuda.h


@dataclass(frozen=True)
class CudaDevice:
    """One GPU: its name, its compute capability ("8.6") and its memory in MiB."""

    name: str
    compute_capability: str
    memory_mib: int


def cuda_devices() -> list[CudaDevice]:
    """All GPUs the driver shows, in its order. Raises OSError where there is no driver, or it reports an error."""
    cuda = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")

    def call(function: str, *arguments: object) -> None:
        status = getattr(cuda, function)(*arguments)
        if status != 0:
            raise OSError(f"the CUDA driver answers {function} with error {status}")

    call("cuInit", 0)
    count = ctypes.c_int()
    call("cuDeviceGetCount", ctypes.byref(count))
    devices = []
    for index in range(count.value):
        device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
        name, memory = ctypes.create_string_buffer(256), ctypes.c_size_t()
        call("cuDeviceGet", ctypes.byref(device), index)
        call("cuDeviceGetName", name, len(name), device)
        call("cuDeviceTotalMem_v2", ctypes.byref(memory), device)
        call("cuDeviceGetAttribute", ctypes.byref(major), _COMPUTE_CAPABILITY_MAJOR, device)
        call("cuDeviceGetAttribute", ctypes.byref(minor), _COMPUTE_CAPABILITY_MINOR, device)
        devices.append(CudaDevice(name.value.decode(), f"{major.value}.{minor.value}", memory.value >> 20))
    return devices
