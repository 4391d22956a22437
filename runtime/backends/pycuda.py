"""`Cuda` on pycuda, where that is what the device has."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from regionrt.runtime.errors import BackendError

from .cuda import Argument, Graph, version_of


class PyCuda:
    """`Cuda` on pycuda.driver, which keeps objects where CUDA has handles, and has no stream capture."""

    library = "pycuda"

    def __init__(self, driver: Any, device: int = 0) -> None:
        self._driver = driver
        self._call(driver.init)
        found = self._call(driver.Device.count)
        if not 0 <= device < found:
            raise BackendError(f"GPU {device}: the driver shows {found} (CUDA_VISIBLE_DEVICES hides others)")
        self.device = device
        gpu = driver.Device(device)
        self._context = self._call(gpu.retain_primary_context)
        self._threads = threading.local()
        self._held: dict[int, Any] = {}  # by address or handle
        self._functions: dict[int, list[int]] = {}  # of each module
        self.make_current()
        self.compute_capability = "{}.{}".format(*gpu.compute_capability())
        self.driver_version = version_of(self._call(driver.get_driver_version))
        self.device_name = gpu.name()

    def _call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return function(*arguments)
        except self._driver.Error as error:
            raise BackendError(f"CUDA: {' '.join(str(error).split())[:300]}") from error

    def make_current(self) -> None:
        if not getattr(self._threads, "current", False):
            self._call(self._context.push)
            self._threads.current = True

    def memory_bytes(self) -> tuple[int, int]:
        free, total = self._call(self._driver.mem_get_info)
        return int(free), int(total)

    def allocate(self, size: int) -> int:
        memory = self._call(self._driver.mem_alloc, max(size, 1))
        self._held[int(memory)] = memory
        return int(memory)

    def free(self, address: int) -> None:
        self._call(self._held.pop(address).free)

    def device_of(self, address: int) -> None:
        """pycuda does not ask the driver that."""

    def pinned(self, size: int) -> np.ndarray:
        memory = self._call(self._driver.pagelocked_empty, max(size, 1), np.uint8)
        self._held[memory.ctypes.data] = memory
        return memory[:size]

    def free_pinned(self, memory: np.ndarray) -> None:
        self._call(self._held.pop(memory.ctypes.data).base.free)

    def stream(self) -> int:
        stream = self._call(self._driver.Stream)
        self._held[stream.handle] = stream
        return stream.handle

    def free_stream(self, stream: int) -> None:
        del self._held[stream]  # pycuda destroys a stream with its object

    def upload(self, address: int, host: np.ndarray, stream: int) -> None:
        self._call(self._driver.memcpy_htod_async, address, host, self._held[stream])

    def download(self, host: np.ndarray, address: int, stream: int) -> None:
        self._call(self._driver.memcpy_dtoh_async, host, address, self._held[stream])

    def fill(self, address: int, value: int, size: int, stream: int) -> None:
        self._call(self._driver.memset_d8_async, address, value, size, self._held[stream])

    def copy(self, to: int, source: int, size: int, stream: int) -> None:
        self._call(self._driver.memcpy_dtod_async, to, source, size, self._held[stream])

    def synchronize(self, stream: int) -> None:
        # A stream that was not made here (of an array on the GPU) has no object: wait for the whole context.
        held = self._held.get(stream)
        self._call(self._context.synchronize if held is None else held.synchronize)

    def load_module(self, image: bytes) -> int:
        module = self._call(self._driver.module_from_buffer, image)
        self._held[id(module)] = module
        self._functions[id(module)] = []
        return id(module)

    def unload_module(self, module: int) -> None:
        for function in self._functions.pop(module):
            del self._held[function]
        del self._held[module]  # pycuda unloads a module with its last object

    def function(self, module: int, name: str) -> int:
        function = self._call(self._held[module].get_function, name)
        self._held[id(function)] = function
        self._functions[module].append(id(function))
        return id(function)

    def launch(
        self, function: int, grid: Sequence[int], block: int, arguments: Sequence[Argument], stream: int
    ) -> None:
        packed = _packed(arguments)
        kernel = self._held[function].prepare([f"{len(packed)}s"])
        sizes = (*grid, 1, 1)[:3]
        self._call(kernel.prepared_async_call, sizes, (block, 1, 1), self._held[stream], packed)

    def capture(self, stream: int, enqueue: Callable[[], None]) -> Graph | None:
        return None


def _packed(arguments: Sequence[Argument]) -> bytes:
    """Arguments as they lie in a kernel's parameter buffer: each at a multiple of its alignment."""
    packed = bytearray()
    for argument in arguments:
        packed += bytes(-len(packed) % ctypes.alignment(argument)) + bytes(argument)
    return bytes(packed)
