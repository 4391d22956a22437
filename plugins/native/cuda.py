"""Compiles the CUDA kernels: PTX with NVRTC for who will run them, and with nvcc a table of what they take.

`python plugins/native/cuda.py` compiles every kernel for every architecture with nvcc and writes docs/kernels.md; it
fails when a kernel spills where it must not, or RoIAlign takes more than 64 registers. PTX of CUDA 13 is refused by
drivers of CUDA 12, so it is made by the NVRTC of the target's own CUDA (wheel `nvidia-cuda-nvrtc`; needs no GPU).
`python plugins/native/cuda.py --sources [FOLDER]` puts the kernels' sources where the runtime compiles them from
(default: runtime/gpu/sources beside plugins/); needs nothing but the standard library.
"""

from __future__ import annotations

import itertools
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

PLUGINS = Path(__file__).resolve().parent.parent
REPORT = PLUGINS.parent / "docs" / "kernels.md"
SOURCES = PLUGINS.parent / "runtime" / "gpu" / "sources"
FLAGS_LINE = "// nvrtc:"  # what the runtime reads the flags from
ARCHITECTURES = ("75", "80", "86", "87", "89", "90", "100", "110", "120")
WITHOUT_SPILLS = ("80", "86", "87", "89", "90")
MOST_REGISTERS = {"roi_align": 64}
# What NMS keeps must not depend on fused multiply-add; RoIAlign only gains by it.
FLAGS = {
    "roi_align": (),
    "roi_pool": ("--fmad=false",),
    "pyramid_pool": ("--fmad=false",),
    "warp": (),
    "nms": ("--fmad=false",),
    "proposals": ("--fmad=false",),
    "detections": ("--fmad=false",),
    "mask_paste": ("--fmad=false",),
    "max_unpool": (),
    "resize": ("--fmad=false",),
}


class KernelError(Exception):
    """The compiler is missing, refuses a kernel, or a kernel takes more than it may."""


@dataclass(frozen=True)
class KernelUse:
    """What ptxas says of one kernel for one architecture."""

    op: str
    kernel: str
    architecture: str
    registers: int
    spill_bytes: int
    shared_bytes: int


def source(op: str) -> str:
    """plugins/<op>/kernel.cu with everything that it includes, as one text: NVRTC has no file system."""
    return _inlined(PLUGINS / op / "kernel.cu", set())


def _inlined(path: Path, seen: set[Path]) -> str:
    path = path.resolve()
    if path in seen:
        return ""
    seen.add(path)
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        included = re.match(r'#include "(.+)"', line)
        if included and included[1] != "cuda_on_cpu.cuh":  # that one is for other compilers
            inner = path.parent / included[1]
            lines.append(_inlined(inner if inner.exists() else PLUGINS / included[1], seen))
        elif line != "#pragma once":
            lines.append(line)
    return "\n".join(lines) + "\n"


def write_sources(folder: Path = SOURCES) -> None:
    """`<op>.cu` for each op in `folder`: its flags in the first line, then its kernels as one text."""
    folder.mkdir(parents=True, exist_ok=True)
    for op, flags in FLAGS.items():
        text = f"{FLAGS_LINE} {' '.join(('--std=c++17', *flags))}\n{source(op)}"
        target = folder / f"{op}.cu"
        if target.is_file() and target.read_text(encoding="utf-8") == text:
            continue
        beside = folder / f".{op}.cu.{os.getpid()}"
        beside.write_text(text, encoding="utf-8")
        os.replace(beside, target)


@cache
def ptx(op: str, architecture: str = "75") -> str:
    """The op's kernels as PTX for compute capability `architecture` ("86") and all newer, by NVRTC. KernelError."""
    try:
        from cuda.bindings import nvrtc
    except ImportError as error:
        raise KernelError(
            f"cuda-python is not installed ({error}): pip install cuda-python nvidia-cuda-nvrtc"
        ) from error

    def call(function: Any, *arguments: Any) -> Any:
        try:
            status, *values = function(*arguments)
        except RuntimeError as error:  # the library itself is missing
            raise KernelError(f"NVRTC cannot be loaded ({error}): pip install nvidia-cuda-nvrtc") from error
        if status != nvrtc.nvrtcResult.NVRTC_SUCCESS and function is not nvrtc.nvrtcCompileProgram:
            raise KernelError(f"NVRTC: {nvrtc.nvrtcGetErrorString(status)[1].decode()}")
        return status if function is nvrtc.nvrtcCompileProgram else (values[0] if values else None)

    program = call(nvrtc.nvrtcCreateProgram, source(op).encode(), f"{op}.cu".encode(), 0, [], [])
    options = [b"--std=c++17", f"--gpu-architecture=compute_{architecture}".encode(), *(f.encode() for f in FLAGS[op])]
    status = call(nvrtc.nvrtcCompileProgram, program, len(options), options)
    if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        log = bytearray(call(nvrtc.nvrtcGetProgramLogSize, program))
        call(nvrtc.nvrtcGetProgramLog, program, log)
        raise KernelError(f"NVRTC refuses {op}: {log.decode(errors='replace').strip()[:2000]}")
    text = bytearray(call(nvrtc.nvrtcGetPTXSize, program))
    call(nvrtc.nvrtcGetPTX, program, text)
    return text.rstrip(b"\0").decode()


def compile_with_nvcc(op: str, architecture: str) -> list[KernelUse]:
    """Compiles one op for one architecture and reads what ptxas says. KernelError."""
    compiler = shutil.which("nvcc")
    if compiler is None:
        raise KernelError("nvcc is not installed: it comes with the CUDA toolkit")
    with tempfile.TemporaryDirectory() as folder:
        command = [compiler, "-std=c++17", "-O3", f"-arch=sm_{architecture}", "-cubin", "-Xptxas", "-v", *FLAGS[op]]
        command += [str(PLUGINS / op / "kernel.cu"), "-o", str(Path(folder, "out.cubin"))]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise KernelError(f"nvcc refuses {op} for sm_{architecture}: {done.stderr.strip()[:2000]}")
    return parse_ptxas(done.stderr, op, architecture)


def parse_ptxas(text: str, op: str, architecture: str) -> list[KernelUse]:
    """`ptxas -v`'s words for each kernel. KernelError for a text that does not read so."""
    uses = []
    for part in re.split(r"Compiling entry function ", text)[1:]:
        name, registers = re.match(r"'(\w+)'", part), re.search(r"Used (\d+) registers", part)
        spills = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", part)
        shared = re.search(r"(\d+) bytes smem", part)
        if not (name and registers and spills):
            raise KernelError(f"ptxas says of {op} for sm_{architecture} what is not understood: {part[:300]}")
        spilled = int(spills[1]) + int(spills[2])
        uses.append(KernelUse(op, name[1], architecture, int(registers[1]), spilled, int(shared[1]) if shared else 0))
    if not uses:
        raise KernelError(f"ptxas says nothing of {op} for sm_{architecture}")
    return uses


def violations(uses: list[KernelUse]) -> list[str]:
    """Kernels that take more than they may."""
    told = []
    for use in uses:
        if use.architecture in WITHOUT_SPILLS and use.spill_bytes:
            told.append(f"{use.kernel} spills {use.spill_bytes} bytes for sm_{use.architecture}")
        if use.registers > MOST_REGISTERS.get(use.op, 255):
            told.append(f"{use.kernel} takes {use.registers} registers for sm_{use.architecture}")
    return told


def report(uses: list[KernelUse], compiler: str) -> str:
    """docs/kernels.md: one row per kernel, registers by architecture, and what spills."""
    kernels = list(dict.fromkeys((use.op, use.kernel) for use in uses))
    by = {(use.kernel, use.architecture): use for use in uses}
    lines = [
        "# What the CUDA kernels take",
        "",
        f"Written by `python plugins/native/cuda.py` with {compiler}. Registers per thread by",
        "architecture; `+n`: bytes spilled.",
        "None may spill for sm_80 to sm_90, and RoIAlign may take 64 registers at most: the build fails otherwise.",
        "They are tested on the CPU, thread by thread (`tests/plugins/test_*kernel*.py`), and on a GPU where one is",
        "(`python3 -m pytest tests/gpu -m gpu`, `make gpu`).",
        "",
        "| kernel | shared bytes | " + " | ".join(f"sm_{a}" for a in ARCHITECTURES) + " |",
        "|---|---|" + "---|" * len(ARCHITECTURES),
    ]
    for _, kernel in kernels:
        cells = [by[kernel, a] for a in ARCHITECTURES]
        shared = max(use.shared_bytes for use in cells)
        shown = [f"{use.registers}" + (f" +{use.spill_bytes}" if use.spill_bytes else "") for use in cells]
        lines.append(f"| `{kernel}` | {shared} | " + " | ".join(shown) + " |")
    return "\n".join(lines) + "\n"


def main(arguments: list[str]) -> None:
    if arguments[:1] == ["--sources"]:
        folder = Path(arguments[1]) if len(arguments) > 1 else SOURCES
        write_sources(folder)
        print(folder)
        return
    pairs = list(itertools.product(FLAGS, ARCHITECTURES))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        uses = [use for found in pool.map(compile_with_nvcc, *zip(*pairs, strict=True)) for use in found]
    said = subprocess.run(["nvcc", "--version"], capture_output=True, text=True, check=False).stdout
    release = re.search(r"release [\d.]+, V[\d.]+", said)
    REPORT.write_text(report(uses, f"nvcc {release[0] if release else ''}".strip()), encoding="utf-8")
    wrong = violations(uses)
    if wrong:
        raise KernelError("; ".join(wrong))
    print(f"{REPORT}: {len(uses)} kernels")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except KernelError as error:
        sys.exit(f"error: {error}")
