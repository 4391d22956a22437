"""Builds the library of our TensorRT plugins, for TensorRT 10.0 and newer: JetPack 6, trtexec, C++ programs.

`python -m regionrt.plugins.native.tensorrt_build --include DIR` needs the standard library, TensorRT's headers, a C++
compiler and nvcc; `make plugins-so TENSORRT_INCLUDE=DIR` calls it. The library holds the kernels for every architecture
that this nvcc knows of ours, and CUDA's runtime; it needs neither TensorRT's library to link nor CUDA's to run.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from .build import PLUGINS, TARGET, BuildError, find_compiler, run
from .cuda import ARCHITECTURES, FLAGS

NAME = "libregionrt_tensorrt.so"
OPS = ("roi_align", "nms")
"""Ops with a plugin: plugins/<op>/tensorrt_plugin.cpp."""
ENTRIES = ("getCreators", "setLoggerFinder")
"""What TensorRT looks for; everything else stays inside, C++'s own symbols too."""
OLDEST = (10, 0)
HEADERS = Path(f"/usr/include/{platform.machine()}-linux-gnu")
"""Where JetPack and NVIDIA's Debian packages put TensorRT's headers."""
CPP = ("-std=c++17", "-O2", "-fPIC", "-fvisibility=hidden", "-pthread", "-Wall", "-Wextra")


def sources() -> list[Path]:
    """The C++ files; the kernels are compiled apart."""
    return [PLUGINS / "native" / "tensorrt_library.cpp", *(PLUGINS / op / "tensorrt_plugin.cpp" for op in OPS)]


def tensorrt_version(include: Path) -> tuple[int, int]:
    """(major, minor) of the headers in `include`. BuildError if they are none of TensorRT 10.0 or newer."""
    header = include / "NvInferVersion.h"
    try:
        text = header.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise BuildError(
            f"{header}: {error.strerror}: expected TensorRT's headers there; JetPack and Debian packages put them into "
            f"{HEADERS} (apt-get install libnvinfer-headers-dev)"
        ) from error
    numbers = [
        re.search(rf"#define (?:NV_TENSORRT|TRT)_{part}(?:_ENTERPRISE|_RTX)? (\d+)", text)
        for part in ("MAJOR", "MINOR")
    ]
    if None in numbers:
        raise BuildError(f"{header}: expected NV_TENSORRT_MAJOR and NV_TENSORRT_MINOR, found neither")
    major, minor = (int(number[1]) for number in numbers if number)
    if (major, minor) < OLDEST and "_RTX" not in text:
        raise BuildError(f"{header}: expected TensorRT 10.0 or newer (IPluginV3), found {major}.{minor}")
    return major, minor


def find_nvcc(cuda: Path | None) -> str:
    """nvcc of the toolkit in `cuda`, else of PATH, else where toolkits are installed. BuildError."""
    if cuda is not None:
        nvcc = cuda / "bin" / "nvcc"
        if not nvcc.is_file():
            raise BuildError(f"{nvcc} is not there: expected --cuda to be the folder of a CUDA toolkit")
        return str(nvcc)
    found = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
    if found is None:
        raise BuildError(
            "nvcc is not installed: it comes with the CUDA toolkit (JetPack: apt-get install cuda-nvcc-12-6)"
        )
    return found


def known_architectures(nvcc: str) -> list[str]:
    """Those of our architectures that this nvcc compiles for, oldest first."""
    listed = re.findall(r"compute_(\d+)$", _said([nvcc, "--list-gpu-arch"]), re.MULTILINE)
    return [architecture for architecture in ARCHITECTURES if architecture in listed]


def gencode(architectures: Sequence[str]) -> list[str]:
    """nvcc's options: machine code for each architecture, and PTX of the newest for what comes after it."""
    newest = max(architectures, key=int)
    codes = [f"arch=compute_{a},code=sm_{a}" for a in architectures] + [f"arch=compute_{newest},code=compute_{newest}"]
    return [word for code in codes for word in ("-gencode", code)]


def build(include: Path, folder: Path = TARGET, cuda: Path | None = None, architectures: Sequence[str] = ()) -> Path:
    """Compiles the library into `folder` and returns its path; what was there is replaced when all has succeeded.

    include: the folder with NvInferRuntime.h. architectures: such as ("87",); (): all that nvcc knows of ours.
    Raises BuildError.
    """
    tensorrt_version(include)
    nvcc, compiler = find_nvcc(cuda), find_compiler()
    known = known_architectures(nvcc)
    unknown = [architecture for architecture in architectures if architecture not in known]
    if unknown or not known:
        raise BuildError(
            f"{nvcc} does not compile for {', '.join(unknown) or 'any of our architectures'}; "
            f"it knows {', '.join(known)}"
        )
    toolkit = Path(nvcc).resolve().parent.parent
    headers = next(
        (
            path
            for path in (toolkit / "include", Path("/usr/local/cuda/include"))
            if (path / "cuda_runtime_api.h").exists()
        ),
        None,
    )
    if headers is None:
        raise BuildError(f"cuda_runtime_api.h is not in {toolkit / 'include'}: the CUDA toolkit is not complete")
    with tempfile.TemporaryDirectory(prefix="regionrt-plugins-") as temporary:
        objects = []
        for source in sources():
            objects.append(str(Path(temporary, f"{source.parent.name}-{source.stem}.o")))
            system = ("-isystem", str(include), "-isystem", str(headers))  # warnings of theirs are not ours to mend
            run([*compiler, *CPP, *system, "-c", str(source), "-o", objects[-1]])
        for op in OPS:
            objects.append(str(Path(temporary, f"{op}-kernel.o")))
            options = ["-std=c++17", "-O3", "-Xcompiler", "-fPIC,-fvisibility=hidden", "-ccbin", compiler[0]]
            options += [*gencode(architectures or known), *FLAGS[op]]
            run([nvcc, *options, "-c", str(PLUGINS / op / "kernel.cu"), "-o", objects[-1]])
        made, exported = Path(temporary, NAME), Path(temporary, "exported")
        exported.write_text(f"{{ global: {' '.join(f'{entry};' for entry in ENTRIES)} local: *; }};\n")
        link = ["-shared", "-cudart", "static", "-ccbin", compiler[0]]
        link += ["-Xlinker", f"--as-needed,--no-undefined,--version-script={exported}"]
        run([nvcc, *link, *objects, "-o", str(made)])
        folder.mkdir(parents=True, exist_ok=True)
        beside = folder / f".{NAME}.new"
        shutil.copy(made, beside)
        os.replace(beside, folder / NAME)
    return folder / NAME


def _said(command: list[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise BuildError(f"{command[0]} cannot be run: {error}") from error


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Build the library of TensorRT plugins.")
    parser.add_argument(
        "--include",
        type=Path,
        default=HEADERS,
        metavar="DIR",
        help="folder with NvInferRuntime.h; default: %(default)s",
    )
    parser.add_argument("--cuda", type=Path, metavar="DIR", help="CUDA toolkit; default: of the nvcc on PATH")
    parser.add_argument("--architectures", default="", metavar="87,90", help="default: all that nvcc knows of ours")
    parser.add_argument("--out", type=Path, default=TARGET, metavar="DIR", help="default: %(default)s")
    asked = parser.parse_args(argv)
    architectures = tuple(filter(None, asked.architectures.split(",")))
    try:
        print(build(asked.include, asked.out, asked.cuda, architectures))
    except (BuildError, OSError) as error:
        sys.exit(f"the TensorRT plugins were not built: {error}")


if __name__ == "__main__":
    main()
