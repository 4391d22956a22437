"""CUDA for the backends, in the driver API's terms: memory, streams, copies, kernels, graphs. cuda-python, or pycuda.

One `Cuda` per process and GPU works in the GPU's primary context, which TensorRT and torch use too. Addresses and
handles are integers. Nothing here touches the driver before `open_cuda` has found that there is one: initialising
without it, and deserialising an engine without it, end the process.
"""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from regionrt.runtime.errors import BackendError
from regionrt.runtime.machine import why_no_driver

INSTALL = "pip install cuda-python"
_LIBRARIES = ("cuda-python", "pycuda")
Argument = ctypes.c_void_p | ctypes.c_int32 | ctypes.c_float | ctypes.Structure


class Graph(Protocol):
    """Captured work: `launch` puts it on a stream as one piece."""

    def launch(self, stream: int) -> None: ...

    def close(self) -> None: ...


class Cuda(Protocol):
    """What the backends need of CUDA. Every method raises BackendError with the driver's own words."""

    library: str  # "cuda-python" or "pycuda"
    device: int
    """The GPU's number, as the driver and all other libraries count."""
    device_name: str
    compute_capability: str  # "8.6"
    driver_version: tuple[int, int]
    """The newest CUDA that the driver knows: (12, 6)."""

    def make_current(self) -> None:
        """For each thread, before anything else: CUDA's context is a property of the thread."""

    def memory_bytes(self) -> tuple[int, int]:
        """(free, total) of the GPU."""

    def allocate(self, size: int) -> int:
        """Device memory of `size` bytes -> its address."""

    def free(self, address: int) -> None: ...

    def device_of(self, address: int) -> int | None:
        """The number of the GPU that memory lies on; None where the library cannot tell."""

    def pinned(self, size: int) -> np.ndarray:
        """Page-locked host memory, uint8 [size]; copies to and from it run beside the host's work."""

    def free_pinned(self, memory: np.ndarray) -> None: ...

    def stream(self) -> int: ...

    def free_stream(self, stream: int) -> None: ...

    def upload(self, address: int, host: np.ndarray, stream: int) -> None:
        """Pinned memory to the device, on the stream. `host` must not change before `synchronize`."""

    def download(self, host: np.ndarray, address: int, stream: int) -> None:
        """The device to pinned memory, on the stream. `host` is filled after `synchronize`."""

    def fill(self, address: int, value: int, size: int, stream: int) -> None:
        """`size` bytes of the device become `value`, on the stream."""

    def copy(self, to: int, source: int, size: int, stream: int) -> None:
        """From the device to the device, on the stream."""

    def synchronize(self, stream: int) -> None: ...

    def load_module(self, image: bytes) -> int:
        """Kernels compiled for this GPU (a cubin), or PTX."""

    def unload_module(self, module: int) -> None: ...

    def function(self, module: int, name: str) -> int:
        """A kernel by its name; it lives as long as its module."""

    def launch(
        self, function: int, grid: Sequence[int], block: int, arguments: Sequence[Argument], stream: int
    ) -> None:
        """Puts a kernel on the stream: up to three sizes of the grid, threads per block, arguments in their order.

        Arguments are ctypes values (`c_void_p` for an address on the device, `c_int32`, a Structure by value); they
        are read before this returns.
        """

    def capture(self, stream: int, enqueue: Callable[[], None]) -> Graph | None:
        """What `enqueue` puts on the stream, as a graph, not run; None where the library cannot capture."""


def open_cuda(device: int = 0, library: str | None = None) -> Cuda:
    """The GPU number `device` through `library` ("cuda-python", "pycuda"; None: the first that is installed).

    Raises BackendError: no driver, no such GPU, neither library installed.
    """
    if library is not None and library not in _LIBRARIES:
        raise ValueError(f"library {library!r}: expected {' or '.join(_LIBRARIES)}")
    no_driver = why_no_driver()
    if no_driver is not None:
        raise BackendError(f"{no_driver}: engines run on an NVIDIA GPU; install its driver, or load another backend")
    missing = []
    for name in _LIBRARIES if library is None else (library,):
        try:
            binding = importlib.import_module("cuda.bindings.driver" if name == "cuda-python" else "pycuda.driver")
        except (ImportError, OSError) as error:
            missing.append(f"{name} ({' '.join(str(error).split())[:200]})")
            continue
        if name == "cuda-python":
            return CudaPython(binding, device)
        from .pycuda import PyCuda

        return PyCuda(binding, device)
    raise BackendError(f"no CUDA library can be imported: {', '.join(missing)}; {INSTALL}")


class CudaPython:
    """`Cuda` on cuda.bindings.driver."""

    library = "cuda-python"

    def __init__(self, driver: Any, device: int = 0) -> None:
        self._driver = driver
        self._call("cuInit", 0)
        found = self._call("cuDeviceGetCount")
        if not 0 <= device < found:
            raise BackendError(f"GPU {device}: the driver shows {found} (CUDA_VISIBLE_DEVICES hides others)")
        self.device = device
        handle = self._call("cuDeviceGet", device)
        self._context = self._call("cuDevicePrimaryCtxRetain", handle)
        self.make_current()
        attribute = driver.CUdevice_attribute
        major, minor = (
            self._call(
                "cuDeviceGetAttribute",
                getattr(attribute, f"CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_{part}"),
                handle,
            )
            for part in ("MAJOR", "MINOR")
        )
        self.compute_capability = f"{major}.{minor}"
        self.driver_version = version_of(self._call("cuDriverGetVersion"))
        self.device_name = self._call("cuDeviceGetName", 256, handle).split(b"\0")[0].decode()

    def _call(self, function: str, *arguments: Any) -> Any:
        try:
            status, *values = getattr(self._driver, function)(*arguments)
        except RuntimeError as error:  # a driver library that is there and does not load
            raise BackendError(f"CUDA: {function}: {' '.join(str(error).split())[:300]}") from error
        if status != self._driver.CUresult.CUDA_SUCCESS:
            raise BackendError(f"CUDA: {function} failed: {self._say(status)}")
        return values[0] if len(values) == 1 else tuple(values)

    def _say(self, status: Any) -> str:
        name = getattr(status, "name", str(status))
        _, text = self._driver.cuGetErrorString(status)
        return f"{name} ({text.decode()})" if text else name

    def make_current(self) -> None:
        self._call("cuCtxSetCurrent", self._context)

    def memory_bytes(self) -> tuple[int, int]:
        free, total = self._call("cuMemGetInfo")
        return int(free), int(total)

    def allocate(self, size: int) -> int:
        return int(self._call("cuMemAlloc", max(size, 1)))

    def free(self, address: int) -> None:
        self._call("cuMemFree", address)

    def device_of(self, address: int) -> int:
        ordinal = self._driver.CUpointer_attribute.CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL
        return int(self._call("cuPointerGetAttribute", ordinal, address))

    def pinned(self, size: int) -> np.ndarray:
        address = int(self._call("cuMemHostAlloc", max(size, 1), 0))
        return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))

    def free_pinned(self, memory: np.ndarray) -> None:
        self._call("cuMemFreeHost", memory.ctypes.data)

    def stream(self) -> int:
        return int(self._call("cuStreamCreate", int(self._driver.CUstream_flags.CU_STREAM_NON_BLOCKING)))

    def free_stream(self, stream: int) -> None:
        self._call("cuStreamDestroy", stream)

    def upload(self, address: int, host: np.ndarray, stream: int) -> None:
        self._call("cuMemcpyHtoDAsync", address, host.ctypes.data, host.nbytes, stream)

    def download(self, host: np.ndarray, address: int, stream: int) -> None:
        self._call("cuMemcpyDtoHAsync", host.ctypes.data, address, host.nbytes, stream)

    def fill(self, address: int, value: int, size: int, stream: int) -> None:
        self._call("cuMemsetD8Async", address, value, size, stream)

    def copy(self, to: int, source: int, size: int, stream: int) -> None:
        self._call("cuMemcpyDtoDAsync", to, source, size, stream)

    def synchronize(self, stream: int) -> None:
        self._call("cuStreamSynchronize", stream)

    def load_module(self, image: bytes) -> int:
        return int(self._call("cuModuleLoadData", image))

    def unload_module(self, module: int) -> None:
        self._call("cuModuleUnload", module)

    def function(self, module: int, name: str) -> int:
        return int(self._call("cuModuleGetFunction", module, name.encode()))

    def launch(
        self, function: int, grid: Sequence[int], block: int, arguments: Sequence[Argument], stream: int
    ) -> None:
        sizes = (*grid, 1, 1)[:3]
        addresses = (ctypes.c_void_p * len(arguments))(*map(ctypes.addressof, arguments))
        self._call("cuLaunchKernel", function, *sizes, block, 1, 1, 0, stream, ctypes.addressof(addresses), 0)

    def capture(self, stream: int, enqueue: Callable[[], None]) -> Graph | None:
        # Thread-local: another thread's allocations must not break this capture.
        mode = self._driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        self._call("cuStreamBeginCapture", stream, mode)
        try:
            enqueue()
        except BaseException:
            # The stream must leave capture mode; the first error is the one to tell.
            status, graph = self._driver.cuStreamEndCapture(stream)
            if status == self._driver.CUresult.CUDA_SUCCESS:
                self._driver.cuGraphDestroy(graph)
            raise
        graph = self._call("cuStreamEndCapture", stream)
        try:
            return _CudaPythonGraph(self, self._call("cuGraphInstantiate", graph, 0))
        finally:
            self._call("cuGraphDestroy", graph)


class _CudaPythonGraph:
    def __init__(self, cuda: CudaPython, executable: Any) -> None:
        self._cuda, self._executable = cuda, executable

    def launch(self, stream: int) -> None:
        self._cuda._call("cuGraphLaunch", self._executable, stream)

    def close(self) -> None:
        self._cuda._call("cuGraphExecDestroy", self._executable)


def version_of(number: int) -> tuple[int, int]:
    """The driver's 12060 as (12, 6)."""
    return number // 1000, number % 1000 // 10
