"""CUDA kernels on the CPU: compiled by g++ through plugins/native/cuda_on_cpu.cuh, launched as cuLaunchKernel would."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

PLUGINS = Path(__file__).resolve().parents[2] / "plugins"
FLAGS = ["-std=c++17", "-O1", "-ffp-contract=off", "-fno-strict-aliasing", "-fPIC", "-shared", "-x", "c++"]


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
    sizes = (ctypes.c_int32 * 3)(*grid, *[1] * (3 - len(grid)))
    failed = getattr(loaded, f"launch_{kernel}")(sizes, (ctypes.c_int32 * 3)(block, 1, 1), addresses)
    assert failed == 0, f"{kernel}: the threads wait for each other for ever"


@pytest.fixture(params=["ascending", "descending"])
def thread_order(request: pytest.FixtureRequest) -> str:
    """Runs a test with the threads in both orders: a missing barrier shows in one of them."""
    for op in ("roi_align", "roi_pool", "pyramid_pool", "warp", "nms", "proposals", "detections", "mask_paste"):
        if (PLUGINS / op / "kernel.cu").exists():
            library(op).regionrt_thread_order(request.param == "descending")
    return request.param
