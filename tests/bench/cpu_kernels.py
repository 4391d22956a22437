"""Our CUDA kernels, compiled for the CPU, behind the faces that launch them on a GPU: torch's CPU tensors go in."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import kernels

from regionrt.bench.torch_kernels import TorchKernels


class CpuKernels:
    """What `Launch` needs of `Kernels` and `Cuda`; a launch runs at once."""

    def __init__(self) -> None:
        self.cuda = self
        self.found: list[kernels.Kernel] = []

    def function(self, op: str, name: str) -> int:
        self.found.append(kernels.find(name))
        return len(self.found) - 1

    def launch(self, function: int, grid: Sequence[int], block: int, arguments: Sequence[Any], stream: int) -> None:
        kernel = self.found[function]
        given = [ctypes.string_at(ctypes.addressof(value), ctypes.sizeof(value)) for value in arguments]
        assert tuple(map(len, given)) == kernel.sizes
        assert kernel.run((*grid, 1, 1)[:3], (block, 1, 1), given) == 0, f"{kernel.name}: the threads wait for ever"


def cpu_kernels() -> TorchKernels:
    return TorchKernels(CpuKernels(), lambda: 0)  # type: ignore[arg-type]
