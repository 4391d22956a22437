"""CUDA behind one interface: cuda-python and pycuda on a fake driver, and what is said where neither is."""

from __future__ import annotations

import ctypes
import struct
import sys
import threading
import types
from typing import Any

import kernels
import numpy as np
import pytest
from fake_cuda import FakeDriver

from regionrt.runtime.backends import cuda as cuda_module
from regionrt.runtime.backends.cuda import Cuda, CudaPython, open_cuda
from regionrt.runtime.backends.pycuda import PyCuda
from regionrt.runtime.errors import BackendError


class PagelockedHostAllocation:
    """Page-locked memory in pycuda: the base of the array, freed by its `free`."""

    def __init__(self, driver: FakeDriver, size: int) -> None:
        self.driver = driver
        (_, self.address) = driver.cuMemHostAlloc(size, 0)
        self.__array_interface__ = {"shape": (size,), "typestr": "|u1", "data": (self.address, False), "version": 3}

    def free(self) -> None:
        self.driver.cuMemFreeHost(self.address)


class FakePyCuda(types.ModuleType):
    """The calls of pycuda.driver that are made, on the fake driver."""

    class Error(Exception):
        pass

    def __init__(self, driver: FakeDriver) -> None:
        super().__init__("pycuda.driver")
        self.driver = driver
        module = self

        class Device:
            def __init__(self, index: int) -> None:
                self.index = index

            @staticmethod
            def count() -> int:
                return driver.devices

            def retain_primary_context(self) -> Any:
                return types.SimpleNamespace(push=lambda: driver.cuCtxSetCurrent(77), synchronize=lambda: None)

            def compute_capability(self) -> tuple[int, int]:
                return driver.capability

            def name(self) -> str:
                return "Fake GPU"

        class Memory:
            def __init__(self, address: int, free: Any) -> None:
                self.address, self.free = address, lambda: module.ok(free(address))

            def __int__(self) -> int:
                return self.address

        class Stream:
            def __init__(self) -> None:
                self.handle = module.ok(driver.cuStreamCreate(0))

            def __del__(self) -> None:
                if hasattr(self, "handle"):
                    driver.cuStreamDestroy(self.handle)

            def synchronize(self) -> None:
                module.ok(driver.cuStreamSynchronize(self.handle))

        class Function:
            def __init__(self, handle: int) -> None:
                self.handle, self.format = handle, ""

            def prepare(self, formats: list[str]) -> Function:
                self.format = "".join(formats)
                return self

            def prepared_async_call(self, grid: tuple, block: tuple, stream: Stream, *values: bytes) -> None:
                """The parameter buffer; the driver takes it apart by what it knows of the kernel."""
                buffer = struct.pack(self.format, *values)
                sizes = driver.functions[self.handle][1].sizes
                parts, at = [], 0
                for size in sizes:
                    at = -(-at // min(size, 8)) * min(size, 8)
                    parts.append(ctypes.create_string_buffer(buffer[at : at + size], size))
                    at += size
                assert at == len(buffer)
                addresses = (ctypes.c_void_p * len(parts))(*map(ctypes.addressof, parts))
                where = ctypes.addressof(addresses)
                module.ok(driver.cuLaunchKernel(self.handle, *grid, *block, 0, stream.handle, where, 0))

        class Module:
            def __init__(self, image: bytes) -> None:
                self.handle = module.ok(driver.cuModuleLoadData(image))

            def get_function(self, name: str) -> Function:
                return Function(module.ok(driver.cuModuleGetFunction(self.handle, name.encode())))

            def __del__(self) -> None:
                if hasattr(self, "handle"):
                    driver.cuModuleUnload(self.handle)

        self.Device, self.Stream, self.module_from_buffer = Device, Stream, Module
        self.mem_alloc = lambda size: Memory(self.ok(driver.cuMemAlloc(size)), driver.cuMemFree)

    def ok(self, answer: tuple) -> Any:
        if answer[0]:
            raise self.Error(answer[0].name)
        return answer[1] if len(answer) == 2 else answer[1:]

    def init(self) -> None:
        self.ok(self.driver.cuInit(0))

    def mem_get_info(self) -> Any:
        return self.ok(self.driver.cuMemGetInfo())

    def get_driver_version(self) -> int:
        return self.ok(self.driver.cuDriverGetVersion())

    def memset_d8_async(self, dest: int, data: int, size: int, stream: Any) -> None:
        self.ok(self.driver.cuMemsetD8Async(dest, data, size, stream.handle))

    def memcpy_dtod_async(self, dest: int, src: int, size: int, stream: Any) -> None:
        self.ok(self.driver.cuMemcpyDtoDAsync(dest, src, size, stream.handle))

    def pagelocked_empty(self, shape: int, dtype: Any) -> np.ndarray:
        return np.asarray(PagelockedHostAllocation(self.driver, shape))

    def memcpy_htod_async(self, dest: int, src: np.ndarray, stream: Any) -> None:
        self.ok(self.driver.cuMemcpyHtoDAsync(dest, src.ctypes.data, src.nbytes, stream.handle))

    def memcpy_dtoh_async(self, dest: np.ndarray, src: int, stream: Any) -> None:
        self.ok(self.driver.cuMemcpyDtoHAsync(dest.ctypes.data, src, dest.nbytes, stream.handle))


@pytest.fixture(params=["cuda-python", "pycuda"])
def gpu(request: pytest.FixtureRequest) -> tuple[Cuda, FakeDriver]:
    driver = FakeDriver(memory=1 << 16)
    return (CudaPython(driver) if request.param == "cuda-python" else PyCuda(FakePyCuda(driver))), driver


def test_there_and_back(gpu: tuple[Cuda, FakeDriver]) -> None:
    cuda, _ = gpu
    stream, address, host = cuda.stream(), cuda.allocate(100), cuda.pinned(100)
    host[:] = np.arange(100)
    cuda.upload(address, host, stream)
    cuda.synchronize(stream)
    host[:] = 0
    cuda.download(host, address, stream)
    assert not host.any()  # the fake does it at the end, as a GPU may
    cuda.synchronize(stream)
    np.testing.assert_array_equal(host, np.arange(100))
    cuda.free_pinned(host)
    cuda.free(address)
    cuda.free_stream(stream)
    assert gpu[1].pinned == gpu[1].memory == gpu[1].streams == {}
    assert cuda.compute_capability == "8.6"
    assert cuda.device_name == "Fake GPU"


def test_kernels_are_loaded_and_launched(gpu: tuple[Cuda, FakeDriver]) -> None:
    """A pointer behind 32-bit numbers, a structure by value, and arguments that change after the launch."""
    cuda, driver = gpu
    assert cuda.driver_version == (13, 0)
    stream, address, host = cuda.stream(), cuda.allocate(64), cuda.pinned(64)
    module = cuda.load_module(kernels.cubin("nms"))
    function = cuda.function(module, "nms")
    boxes = np.array([[0, 0, 4, 4], [0, 0, 4, 3]], np.float32)
    host[:32], host[32:40] = boxes.view(np.uint8).ravel(), 0
    cuda.upload(address, host, stream)
    cuda.fill(address + 40, 9, 2, stream)
    rows = ctypes.c_int32(2)
    threshold = ctypes.c_int32.from_buffer(ctypes.c_float(0.5))
    arguments = [
        *(ctypes.c_void_p(address), ctypes.c_void_p(address + 32)),
        *(rows, ctypes.c_int32(1), threshold),
        ctypes.c_void_p(address + 40),
    ]
    cuda.launch(function, (1, 1), 256, arguments, stream)
    rows.value = 0  # read already
    cuda.copy(address + 48, address + 40, 2, stream)
    cuda.download(host, address, stream)
    cuda.synchronize(stream)
    assert host[40:42].tolist() == host[48:50].tolist() == [1, 0]
    with pytest.raises(BackendError, match=r"CUDA_ERROR_NOT_FOUND"):
        cuda.function(module, "telepathy")
    with pytest.raises(BackendError, match=r"CUDA_ERROR_INVALID_VALUE"):
        cuda.launch(function, (0, 1), 256, arguments, stream)
    with pytest.raises(BackendError, match=r"CUDA_ERROR_INVALID_IMAGE"):
        cuda.load_module(b"no code")
    cuda.unload_module(module)
    del function
    assert driver.modules == driver.functions == {}


def test_too_much_memory_is_an_error(gpu: tuple[Cuda, FakeDriver]) -> None:
    cuda, driver = gpu
    free, total = cuda.memory_bytes()
    assert free == total == driver.total
    address = cuda.allocate(1000)
    assert cuda.memory_bytes()[0] == total - 1000
    with pytest.raises(BackendError, match=r"CUDA: .*CUDA_ERROR_OUT_OF_MEMORY"):
        cuda.allocate(total)
    cuda.free(address)
    assert cuda.memory_bytes()[0] == total


def test_each_thread_needs_the_context(gpu: tuple[Cuda, FakeDriver]) -> None:
    cuda, _ = gpu
    told: list[Any] = []

    def work() -> None:
        with pytest.raises(BackendError, match="CUDA_ERROR_INVALID_CONTEXT"):
            cuda.stream()
        cuda.make_current()
        told.append(cuda.stream())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(30)
    assert told


def test_capture_replays(gpu: tuple[Cuda, FakeDriver]) -> None:
    cuda, driver = gpu
    stream, address, host = cuda.stream(), cuda.allocate(10), cuda.pinned(10)
    graph = cuda.capture(stream, lambda: cuda.upload(address, host, stream))
    if cuda.library == "pycuda":
        assert graph is None
        return
    assert graph is not None
    host[:] = 5
    graph.launch(stream)
    host[:] = 7
    cuda.synchronize(stream)
    cuda.download(host, address, stream)
    cuda.synchronize(stream)
    assert set(host) == {7}
    graph.close()
    assert driver.graphs == {}

    def fail() -> None:
        raise KeyError

    with pytest.raises(KeyError):
        cuda.capture(stream, fail)
    assert driver.streams[stream].captured is None
    assert driver.graphs == {}


def test_no_driver_is_said_before_anything_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_module, "why_no_driver", lambda: "no NVIDIA GPU driver")
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", None)
    with pytest.raises(BackendError, match=r"no NVIDIA GPU driver.*another backend"):
        open_cuda()


def test_neither_library_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_module, "why_no_driver", lambda: None)
    for name in ("cuda", "cuda.bindings", "cuda.bindings.driver", "pycuda", "pycuda.driver"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(
        BackendError, match=r"no CUDA library can be imported: cuda-python .*pycuda .*pip install cuda-python"
    ):
        open_cuda()


@pytest.mark.parametrize("devices", [0, 1])
def test_a_gpu_that_is_not_there(monkeypatch: pytest.MonkeyPatch, devices: int) -> None:
    monkeypatch.setattr(cuda_module, "why_no_driver", lambda: None)
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", FakeDriver(devices=devices))
    with pytest.raises(BackendError, match=rf"GPU {devices}: the driver shows {devices}"):
        open_cuda(devices)


def test_pycuda_is_taken_where_cuda_python_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_module, "why_no_driver", lambda: None)
    for name in ("cuda", "cuda.bindings", "cuda.bindings.driver"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, "pycuda.driver", FakePyCuda(FakeDriver()))
    assert open_cuda().library == "pycuda"
