"""A GPU that is none: the calls of cuda.bindings.driver that the runtime makes, on ordinary memory.

Work on a stream is done when the stream is synchronised and not before, new memory is full of rubbish, copies must lie
inside what was allocated, and a thread without a current context is refused, so that code which forgets one of these
gives wrong results here too. `test_fake_gpu.py` compares the calls with the real library's.

Kernels are the real ones: a module must be machine code that holds the kernel's name, and what is launched is the same
source, compiled by g++. As CUDA does, a launch reads its arguments at once and runs later.
"""

from __future__ import annotations

import ctypes
import enum
import itertools
import threading
from collections.abc import Callable
from typing import Any

import kernels

RUBBISH = 0xCB
GUARD = 512


class CUresult(enum.IntEnum):
    """Those that are needed, with the real values."""

    CUDA_SUCCESS = 0
    CUDA_ERROR_INVALID_VALUE = 1
    CUDA_ERROR_OUT_OF_MEMORY = 2
    CUDA_ERROR_NOT_INITIALIZED = 3
    CUDA_ERROR_INVALID_IMAGE = 200
    CUDA_ERROR_INVALID_CONTEXT = 201
    CUDA_ERROR_INVALID_HANDLE = 400
    CUDA_ERROR_NOT_FOUND = 500
    CUDA_ERROR_ILLEGAL_ADDRESS = 700
    CUDA_ERROR_LAUNCH_FAILED = 719
    CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED = 900
    CUDA_ERROR_STREAM_CAPTURE_INVALIDATED = 901


class CUdevice_attribute(enum.IntEnum):  # noqa: N801 (the library's name)
    CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR = 75
    CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR = 76


class CUpointer_attribute(enum.IntEnum):  # noqa: N801
    CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL = 9


class CUstream_flags(enum.IntEnum):  # noqa: N801
    CU_STREAM_DEFAULT = 0
    CU_STREAM_NON_BLOCKING = 1


class CUstreamCaptureMode(enum.IntEnum):
    CU_STREAM_CAPTURE_MODE_GLOBAL = 0
    CU_STREAM_CAPTURE_MODE_THREAD_LOCAL = 1
    CU_STREAM_CAPTURE_MODE_RELAXED = 2


OK = (CUresult.CUDA_SUCCESS,)
Work = Callable[[], "CUresult | None"]


class Stream:
    """What waits to be done, and what is being captured instead."""

    def __init__(self) -> None:
        self.waiting: list[Work] = []
        self.captured: list[Work] | None = None
        self.invalid = False

    def add(self, work: Work) -> None:
        (self.waiting if self.captured is None else self.captured).append(work)


class FakeDriver:
    """The module `cuda.bindings.driver` of a machine with one GPU."""

    CUresult, CUdevice_attribute = CUresult, CUdevice_attribute
    CUstream_flags, CUstreamCaptureMode = CUstream_flags, CUstreamCaptureMode
    CUpointer_attribute = CUpointer_attribute

    def __init__(self, capability: tuple[int, int] = (8, 6), memory: int = 1 << 28, devices: int = 1) -> None:
        self.capability, self.total, self.devices = capability, memory, devices
        self.version = 13000
        self.memory: dict[int, tuple[Any, int]] = {}
        self.elsewhere: set[int] = set()  # addresses of memory on GPU 1
        self.pinned: dict[int, tuple[Any, int]] = {}
        self.streams: dict[int, Stream] = {}
        self.graphs: dict[int, list[Work]] = {}
        self.modules: dict[int, bytes] = {}
        self.functions: dict[int, tuple[int, kernels.Kernel]] = {}  # (module, kernel)
        self.launched: list[str] = []  # kernels, in the order in which they ran
        self.counts: dict[str, int] = {}
        self.allocated: list[int] = []
        self._handles = itertools.count(0x1000)
        self._thread = threading.local()
        self._lock = threading.RLock()

    def __getattribute__(self, name: str) -> Any:
        value = object.__getattribute__(self, name)
        if not name.startswith("cu"):
            return value

        def counted(*arguments: Any) -> Any:
            with self._lock:
                self.counts[name] = self.counts.get(name, 0) + 1
                homeless = ("cuInit", "cuDevice", "cuDriver", "cuGet", "cuCtxSetCurrent")
                if not name.startswith(homeless) and not getattr(self._thread, "current", False):
                    return (CUresult.CUDA_ERROR_INVALID_CONTEXT,)
                return value(*arguments)

        return counted

    def used(self) -> int:
        return sum(size for _, size in self.memory.values())

    def cuInit(self, flags: int) -> tuple:  # noqa: N802 (the library's names, from here on)
        return OK

    def cuDriverGetVersion(self) -> tuple:  # noqa: N802
        return *OK, self.version

    def cuDeviceGetCount(self) -> tuple:  # noqa: N802
        return *OK, self.devices

    def cuDeviceGet(self, ordinal: int) -> tuple:  # noqa: N802
        return *OK, ordinal

    def cuDevicePrimaryCtxRetain(self, device: int) -> tuple:  # noqa: N802
        return *OK, 77

    def cuCtxSetCurrent(self, context: int) -> tuple:  # noqa: N802
        self._thread.current = context == 77
        return OK

    def cuDeviceGetAttribute(self, attribute: CUdevice_attribute, device: int) -> tuple:  # noqa: N802
        return *OK, self.capability[attribute - 75]

    def cuDeviceGetName(self, length: int, device: int) -> tuple:  # noqa: N802
        return *OK, b"Fake GPU".ljust(length, b"\0")

    def cuGetErrorString(self, error: CUresult) -> tuple:  # noqa: N802
        return *OK, error.name[11:].lower().replace("_", " ").encode()

    def cuMemGetInfo(self) -> tuple:  # noqa: N802
        return *OK, self.total - self.used(), self.total

    def cuMemAlloc(self, size: int) -> tuple:  # noqa: N802
        if self.used() + size > self.total:
            return (CUresult.CUDA_ERROR_OUT_OF_MEMORY,)
        self.allocated.append(size)
        return *OK, _allocate(self.memory, size)

    def cuMemFree(self, address: int) -> tuple:  # noqa: N802
        return _free(self.memory, address)

    def cuPointerGetAttribute(self, attribute: CUpointer_attribute, ptr: int) -> tuple:  # noqa: N802
        known = inside(self.memory, ptr, 1) and attribute == CUpointer_attribute.CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL
        return (*OK, int(ptr in self.elsewhere)) if known else (CUresult.CUDA_ERROR_INVALID_VALUE,)

    def cuMemHostAlloc(self, size: int, flags: int) -> tuple:  # noqa: N802
        return *OK, _allocate(self.pinned, size)

    def cuMemFreeHost(self, address: int) -> tuple:  # noqa: N802
        return _free(self.pinned, address)

    def cuStreamCreate(self, flags: int) -> tuple:  # noqa: N802
        handle = next(self._handles)
        self.streams[handle] = Stream()
        return *OK, handle

    def cuStreamDestroy(self, stream: int) -> tuple:  # noqa: N802
        del self.streams[stream]
        return OK

    def cuStreamSynchronize(self, stream: int) -> tuple:  # noqa: N802
        of = self.streams[stream]
        if of.captured is not None:
            of.invalid = True
            return (CUresult.CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED,)
        waiting, of.waiting = of.waiting, []
        for work in waiting:
            failed = work()
            if failed is not None:
                return (failed,)
        return OK

    def cuMemcpyHtoDAsync(self, device: int, host: int, size: int, stream: int) -> tuple:  # noqa: N802
        return self._copy(device, host, size, stream, self.memory, self.pinned)

    def cuMemcpyDtoHAsync(self, host: int, device: int, size: int, stream: int) -> tuple:  # noqa: N802
        return self._copy(host, device, size, stream, self.pinned, self.memory)

    def _copy(self, to: int, start: int, size: int, stream: int, into: dict, source: dict) -> tuple:
        if not (inside(into, to, size) and inside(source, start, size)):
            return (CUresult.CUDA_ERROR_INVALID_VALUE,)
        self.streams[stream].add(lambda: ctypes.memmove(to, start, size) and None)
        return OK

    def cuMemcpyDtoDAsync(self, to: int, source: int, size: int, stream: int) -> tuple:  # noqa: N802
        return self._copy(to, source, size, stream, self.memory, self.memory)

    def cuMemsetD8Async(self, address: int, value: int, size: int, stream: int) -> tuple:  # noqa: N802
        if not inside(self.memory, address, size):
            return (CUresult.CUDA_ERROR_INVALID_VALUE,)
        self.streams[stream].add(lambda: ctypes.memset(address, value, size) and None)
        return OK

    def cuModuleLoadData(self, image: bytes) -> tuple:  # noqa: N802
        if any(stream.captured is not None for stream in self.streams.values()):
            return (CUresult.CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED,)
        if image[:4] != b"\x7fELF":
            return (CUresult.CUDA_ERROR_INVALID_IMAGE,)
        handle = next(self._handles)
        self.modules[handle] = image
        return *OK, handle

    def cuModuleUnload(self, module: int) -> tuple:  # noqa: N802
        if self.modules.pop(module, None) is None:
            return (CUresult.CUDA_ERROR_INVALID_HANDLE,)
        self.functions = {handle: held for handle, held in self.functions.items() if held[0] != module}
        return OK

    def cuModuleGetFunction(self, module: int, name: bytes) -> tuple:  # noqa: N802
        if b"\0.text." + name + b"\0" not in self.modules[module]:
            return (CUresult.CUDA_ERROR_NOT_FOUND,)
        handle = next(self._handles)
        self.functions[handle] = module, kernels.find(name.decode())
        return *OK, handle

    def cuLaunchKernel(  # noqa: N802
        self,
        function: int,
        grid_x: int,
        grid_y: int,
        grid_z: int,
        block_x: int,
        block_y: int,
        block_z: int,
        shared_bytes: int,
        stream: int,
        parameters: int,
        extra: int,
    ) -> tuple:
        grid, block = (grid_x, grid_y, grid_z), (block_x, block_y, block_z)
        largest = (2**31 - 1, 65535, 65535)
        if not all(1 <= size <= most for size, most in zip(grid, largest, strict=True)) or shared_bytes:
            return (CUresult.CUDA_ERROR_INVALID_VALUE,)
        if function not in self.functions:
            return (CUresult.CUDA_ERROR_INVALID_HANDLE,)
        kernel = self.functions[function][1]
        given = (ctypes.c_void_p * len(kernel.sizes)).from_address(parameters)
        arguments = [ctypes.string_at(at, size) for at, size in zip(given, kernel.sizes, strict=True)]

        def run() -> CUresult | None:
            self.launched.append(kernel.name)
            return CUresult.CUDA_ERROR_LAUNCH_FAILED if kernel.run(grid, block, arguments) else None

        self.streams[stream].add(run)
        return OK

    def cuStreamBeginCapture(self, stream: int, mode: CUstreamCaptureMode) -> tuple:  # noqa: N802
        self.streams[stream].captured = []
        return OK

    def cuStreamEndCapture(self, stream: int) -> tuple:  # noqa: N802
        of = self.streams[stream]
        captured, of.captured = of.captured, None
        if of.invalid:
            of.invalid = False
            return CUresult.CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, None
        handle = next(self._handles)
        self.graphs[handle] = captured or []
        return *OK, handle

    def cuGraphInstantiate(self, graph: int, flags: int) -> tuple:  # noqa: N802
        handle = next(self._handles)
        self.graphs[handle] = list(self.graphs[graph])
        return *OK, handle

    def cuGraphDestroy(self, graph: int) -> tuple:  # noqa: N802
        del self.graphs[graph]
        return OK

    def cuGraphExecDestroy(self, graph: int) -> tuple:  # noqa: N802
        del self.graphs[graph]
        return OK

    def cuGraphLaunch(self, graph: int, stream: int) -> tuple:  # noqa: N802
        for work in self.graphs[graph]:
            self.streams[stream].add(work)
        return OK


def inside(memory: dict[int, tuple[Any, int]], address: int, size: int) -> bool:
    """Whether [address, address + size) lies in one allocation."""
    return any(start <= address and address + size <= start + length for start, (_, length) in memory.items())


def _allocate(memory: dict[int, tuple[Any, int]], size: int) -> int:
    buffer = (ctypes.c_uint8 * (size + GUARD))()
    ctypes.memset(buffer, RUBBISH, size + GUARD)
    address = -(-ctypes.addressof(buffer) // 256) * 256
    memory[address] = (buffer, size)
    return address


def _free(memory: dict[int, tuple[Any, int]], address: int) -> tuple:
    if memory.pop(int(address), None) is None:
        return (CUresult.CUDA_ERROR_INVALID_VALUE,)
    return OK
