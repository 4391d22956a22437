"""What this machine offers: CPU cores this process may use, memory it took, whether there is an NVIDIA driver."""

from __future__ import annotations

import ctypes
import functools
import os
import platform
import resource
from pathlib import Path
from typing import Any


@functools.cache
def usable_cores() -> int:
    """Physical cores this process may use: its affinity, one thread per core, within the container's CPU quota; ≥ 1.

    Two hardware threads of one core share their arithmetic units: more threads than cores slow dense layers down.
    """
    cores = {_core_of(cpu) for cpu in os.sched_getaffinity(0)}
    quota = _cpu_quota()
    return max(1, len(cores) if quota is None else min(len(cores), int(quota)))


def _core_of(cpu: int) -> str:
    try:
        return Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").read_text()
    except OSError:  # no topology in some containers: each logical CPU counts
        return str(cpu)


def _cpu_quota() -> float | None:
    try:
        limit, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()  # cgroup v2
    except (OSError, ValueError):
        return None
    return None if limit == "max" else int(limit) / int(period)


def peak_rss_bytes() -> int:
    """The most memory this process has held at once since it started (resident set, bytes)."""
    # getrusage is not the first choice: Linux lets a child start with the peak of the process that made it.
    return status_bytes("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def status_bytes(name: str) -> int | None:
    """A line of Linux's /proc/self/status: VmRSS, what is resident; VmHWM, the most that ever was; None elsewhere."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


def describe_machine() -> dict[str, Any]:
    """What stands beside every measurement: processor, cores, memory, system, Python."""
    return {
        "processor": _processor_name(),
        "architecture": platform.machine(),
        "usable_cores": usable_cores(),
        "logical_cpus": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def _processor_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("model name", "Model")):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def why_no_driver() -> str | None:
    """Why no NVIDIA GPU can be used here, or None if a driver is installed.

    The driver is not initialised (`cuInit` costs GPU memory and forbids CUDA in forked children): that a GPU answers is
    found out by who runs an engine.
    """
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "no NVIDIA GPU driver (libcuda.so.1) on this machine"
    return None
