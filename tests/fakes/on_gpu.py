"""Arrays on the fake GPU, for tests of what runs there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import kernels
import numpy as np
from fake_cuda import FakeDriver

from regionrt.runtime.backends.cuda import CudaPython
from regionrt.runtime.gpu.arrays import GpuArray
from regionrt.runtime.gpu.kernels import Kernels, Launch


class FakeGpu:
    """A driver, CUDA on it, and the kernels."""

    def __init__(self, **options: Any) -> None:
        self.driver = FakeDriver(**options)
        self.cuda = CudaPython(self.driver)
        self.kernels = Kernels(self.cuda, kernels.cubin)
        self.stream = self.cuda.stream()

    def put(self, array: np.ndarray, dtype: str | None = None) -> GpuArray:
        """A copy on the GPU; `dtype` names what NumPy does not know (bfloat16 as uint16)."""
        found = self.empty(array.shape, dtype or array.dtype.name)
        host = self.cuda.pinned(array.nbytes)
        host[:] = np.ascontiguousarray(array).view(np.uint8).ravel()
        self.cuda.upload(found.address, host, self.stream)
        self.cuda.synchronize(self.stream)
        self.cuda.free_pinned(host)
        return found

    def empty(self, shape: Sequence[int], dtype: str) -> GpuArray:
        """Memory full of rubbish."""
        array = GpuArray(0, tuple(shape), dtype)
        return GpuArray(self.cuda.allocate(array.nbytes), array.shape, dtype)

    def get(self, array: GpuArray) -> np.ndarray:
        """Back on the host; bfloat16 as uint16."""
        host = self.cuda.pinned(array.nbytes)
        self.cuda.download(host, array.address, self.stream)
        self.cuda.synchronize(self.stream)
        found = host.view("uint16" if array.dtype == "bfloat16" else array.dtype).reshape(array.shape).copy()
        self.cuda.free_pinned(host)
        return found

    def run(self, launches: Sequence[Launch]) -> None:
        for launch in launches:
            launch.enqueue(self.stream)
        self.cuda.synchronize(self.stream)
