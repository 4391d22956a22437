"""CUDA kernels on the CPU: compiled by g++ through plugins/native/cuda_on_cpu.cuh, launched as cuLaunchKernel would."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from regionrt.runtime.errors import BackendError
from regionrt.runtime.gpu.kernels import source_of
from regionrt.runtime.gpu.nvrtc import open_nvrtc

PLUGINS = Path(__file__).resolve().parents[2] / "plugins"
OPS = sorted(path.parent.name for path in PLUGINS.glob("*/kernel.cu"))
MOST_PARAMETERS = 64
FLAGS = ["-std=c++17", "-O1", "-ffp-contract=off", "-fno-strict-aliasing", "-fPIC", "-shared", "-x", "c++"]


@dataclass(frozen=True)
class Kernel:
    """One kernel, and how many bytes each of its parameters takes."""

    name: str
    library: ctypes.CDLL
    sizes: tuple[int, ...]

    def run(self, grid: Sequence[int], block: Sequence[int], arguments: Sequence[bytes]) -> int:
        """0, or not where the threads wait for each other for ever. One at a time: the harness has one GPU."""
        held = [ctypes.create_string_buffer(value, len(value)) for value in arguments]
        addresses = (ctypes.c_void_p * len(held))(*map(ctypes.addressof, held))
        with _one_at_a_time:
            return getattr(self.library, f"launch_{self.name}")(_three(grid), _three(block), addresses)


_one_at_a_time = threading.Lock()


def find(name: str) -> Kernel:
    """The kernel of this name, of whichever op."""
    named = sorted(OPS, key=lambda op: (not name.startswith(op), -len(op)))  # most are named after their op
    loaded = next(found for found in map(library, named) if hasattr(found, f"launch_{name}"))
    sizes = (ctypes.c_int32 * MOST_PARAMETERS)()
    count = getattr(loaded, f"parameters_{name}")(sizes)
    return Kernel(name, loaded, tuple(sizes[:count]))


@cache
def cubin(op: str, compute_capability: str = "8.6") -> bytes:
    """The op's machine code by NVRTC; skips the test without it."""
    try:
        nvrtc = open_nvrtc((13, 0))
    except BackendError as error:
        pytest.skip(str(error))
    source, flags = source_of(op)
    return nvrtc.cubin(source, f"{op}.cu", flags, int(compute_capability.replace(".", "")))


def _three(sizes: Sequence[int]) -> ctypes.Array:
    return (ctypes.c_int32 * 3)(*sizes, *[1] * (3 - len(sizes)))


@cache
def library(op: str) -> ctypes.CDLL:
    """plugins/<op>/kernel.cu as a library of this process; skips the test without a compiler."""
    if shutil.which("g++") is None:
        pytest.skip("no g++: the kernels cannot be compiled for the CPU")
    folder = tempfile.mkdtemp(prefix="regionrt-kernels-")
    target = Path(folder, f"{op}.so")
    subprocess.run(["g++", *FLAGS, str(PLUGINS / op / "kernel.cu"), "-o", str(target)], check=True)
    loaded = ctypes.CDLL(str(target))
    shutil.rmtree(folder)
    return loaded


def bits(value: float) -> np.int32:
    """A float as the int32 that carries it to a kernel."""
    return np.float32(value).view(np.int32)


def launch(op: str, kernel: str, grid: Sequence[int], block: int, arguments: Sequence[Any]) -> None:
    """Arrays go as their addresses, numbers as int32, structures as they are."""
    loaded = library(op)
    values = [
        ctypes.c_void_p(a.ctypes.data)
        if isinstance(a, np.ndarray)
        else (a if isinstance(a, ctypes.Structure) else ctypes.c_int32(int(a)))
        for a in arguments
    ]
    addresses = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
    failed = getattr(loaded, f"launch_{kernel}")(_three(grid), _three([block]), addresses)
    assert failed == 0, f"{kernel}: the threads wait for each other for ever"


@pytest.fixture(params=["ascending", "descending"])
def thread_order(request: pytest.FixtureRequest) -> str:
    """Runs a test with the threads in both orders: a missing barrier shows in one of them."""
    for op in OPS:
        library(op).regionrt_thread_order(request.param == "descending")
    return request.param
