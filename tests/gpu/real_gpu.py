"""This machine's GPU, with the same face as the fake one: memory is torch's, launches are the runtime's."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from regionrt.runtime.backends.cuda import open_cuda
from regionrt.runtime.gpu.arrays import SIZES, GpuArray
from regionrt.runtime.gpu.kernels import Kernels, Launch

RUBBISH = 0xCB


class RealGpu:
    """torch's current GPU. What it hands out lives as long as the GPU object."""

    large, torch_device = True, "cuda"

    def __init__(self) -> None:
        torch.cuda.init()
        torch.zeros(1, device="cuda")  # the primary context, which both use
        self.cuda = open_cuda(torch.cuda.current_device())
        self.kernels = Kernels(self.cuda)
        self.stream = self.cuda.stream()
        self._memory: dict[int, torch.Tensor] = {}

    def put(self, array: np.ndarray, dtype: str | None = None) -> GpuArray:
        """A copy on the GPU; `dtype` names what NumPy does not know (bfloat16 as uint16)."""
        found = self.empty(array.shape, dtype or array.dtype.name)
        data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        self._memory[found.address][: data.size] = torch.from_numpy(data.copy()).cuda()
        torch.cuda.synchronize()
        return found

    def empty(self, shape: Sequence[int], dtype: str) -> GpuArray:
        """Memory full of rubbish, with some behind it that must stay as it is."""
        size = math.prod(shape) * SIZES[dtype]
        memory = torch.full((size + 256,), RUBBISH, dtype=torch.uint8, device="cuda")
        torch.cuda.synchronize()
        self._memory[memory.data_ptr()] = memory
        return GpuArray(memory.data_ptr(), tuple(shape), dtype)

    def get(self, array: GpuArray) -> np.ndarray:
        """Back on the host; bfloat16 as uint16."""
        memory = self._memory[array.address].cpu().numpy()
        assert (memory[array.nbytes :] == RUBBISH).all(), "a kernel wrote beyond its output"
        kind = "uint16" if array.dtype == "bfloat16" else array.dtype
        return memory[: array.nbytes].view(kind).reshape(array.shape)

    def run(self, launches: Sequence[Launch]) -> None:
        for launch in launches:
            launch.enqueue(self.stream)
        self.cuda.synchronize(self.stream)
