"""What figures hold for: processor, clocks, threads, load, software. No names of hosts, users or folders."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from regionrt.runtime.machine import describe_machine

from . import figures

LIBRARIES = (
    "regionrt",
    "torch",
    "torchvision",
    "onnx",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "ncnn",
    "tensorrt",
    "tensorrt-rtx",
    "numpy",
    "Pillow",
    "pycocotools",
)
_FLAGS = {"avx2": "AVX2", "avx512f": "AVX-512", "avx512_vnni": "VNNI", "avx512_bf16": "AVX-512 bf16"}
_FLAGS |= {"amx_bf16": "AMX bf16", "amx_int8": "AMX int8", "asimd": "NEON", "sve": "SVE", "bf16": "bf16"}


def environment(threads: int) -> dict[str, dict[str, str]]:
    """Groups of facts, each name → text: machine, setting, software. What cannot be read says so."""
    machine = describe_machine()
    cores = f"{machine['usable_cores']} usable of {machine['logical_cpus']} logical"
    return {
        "machine": {
            "CPU": str(machine["processor"]),
            "architecture": str(machine["architecture"]),
            "cores": cores,
            "instruction sets": ", ".join(_instruction_sets()) or "not readable",
            "memory": figures.size(int(machine["memory_bytes"])),
            "GPU": _gpu(),
        },
        "setting": {
            "threads": f"{threads} for every candidate",
            "clock": _clock(),
            "governor": _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor") or "not readable",
            "load before": f"{os.getloadavg()[0]:.2f} (average of the last minute)",
            "system": str(machine["system"]),
        },
        "software": {"Python": platform.python_version(), **_versions()},
    }


def without_folders(text: str) -> str:
    """Absolute paths shortened to their last part: an error's text goes into a report that others read."""
    return re.sub(r"(?<![\w.])(?:/[^\s/:'\"]+)+/", "…/", text)


def _versions() -> dict[str, str]:
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def _instruction_sets() -> list[str]:
    found = re.search(r"^(?:flags|Features)\s*:\s*(.*)$", _read("/proc/cpuinfo"), re.MULTILINE)
    flags = set(found[1].split()) if found else set()
    return [name for flag, name in _FLAGS.items() if flag in flags]


def _clock() -> str:
    """The range that the kernel allows, or what /proc/cpuinfo shows now."""
    low, high = (_read(f"/sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_{end}_freq") for end in ("min", "max"))
    if low.isdigit() and high.isdigit():
        return f"{int(low) / 1e6:.2g} to {int(high) / 1e6:.2g} GHz"
    now = re.search(r"^cpu MHz\s*:\s*([\d.]+)", _read("/proc/cpuinfo"), re.MULTILINE)
    return f"{float(now[1]) / 1e3:.2f} GHz as /proc/cpuinfo shows it, not fixed by us" if now else "not readable"


def _gpu() -> str:
    """Name, driver and clocks by nvidia-smi; "none" where there is no such tool or no GPU."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version,clocks.sm,clocks.max.sm", "--format=csv,noheader"]
    try:
        lines = (
            subprocess.run(query, capture_output=True, text=True, timeout=10, check=True).stdout.strip().splitlines()
        )
    except (OSError, subprocess.SubprocessError):
        return "none"
    told = []
    for line in lines:
        name, driver, now, most = (part.strip() for part in line.split(","))
        told.append(f"{name}, driver {driver}, {now} now, {most} at most")
    return "; ".join(told) or "none"
