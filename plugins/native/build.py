"""Builds the library of native CPU ops with the system's C++ compiler; needs nothing but the standard library.

`python plugins/native/build.py [FOLDER]` puts it into FOLDER (default: runtime/native beside plugins/), where
`regionrt.runtime.native` looks for it. setup.py calls `build` at installation, `make native` the command. The compiler
is $CXX, else the first of c++, g++ and clang++ that is there.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
PLUGINS = HERE.parent
TARGET = PLUGINS.parent / "runtime" / "native"
NAME = "libregionrt.so"

# Exactness (NMS, boxes, masks, canvas) needs every product rounded: no contraction, no -ffast-math.
FLAGS = ("-std=c++17", "-O3", "-ffp-contract=off", "-fPIC", "-fvisibility=hidden", "-fno-exceptions", "-fno-rtti",
         "-pthread", "-Wall", "-Wextra")  # fmt: skip
LINK = ("-shared", "-pthread", "-Wl,-O1,--as-needed,--no-undefined")  # nothing of the C++ runtime is used, nor needed

# Best first; the last must run everywhere. library.cpp knows which instructions a CPU must have for each.
VARIANTS: dict[str, dict[str, tuple[str, ...]]] = {
    "x86_64": {
        "avx512": ("-mavx2", "-mfma", "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"),
        "avx2": ("-mavx2", "-mfma"),
        "baseline": (),
    },
    "other": {"baseline": ()},
}


class BuildError(Exception):
    """There is no compiler, or it failed; the message holds its first words."""


def sources() -> list[Path]:
    """Every file that the library is made of; TensorRT's plugins are a library of their own."""
    found = [*PLUGINS.rglob("*.h"), *PLUGINS.rglob("*.cpp")]
    return sorted(path for path in found if not path.name.startswith("tensorrt_"))


def sources_hash() -> str:
    """Twelve hexadecimal digits that change with any source or flag; the library carries those it was built from."""
    digest = hashlib.sha256(repr((FLAGS, VARIANTS)).encode())
    for path in sources():
        digest.update(f"{path.relative_to(PLUGINS).as_posix()}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def find_compiler() -> list[str]:
    """The C++ compiler's command. BuildError if there is none."""
    if os.environ.get("CXX"):
        return shlex.split(os.environ["CXX"])
    for name in ("c++", "g++", "clang++"):
        if shutil.which(name):
            return [name]
    raise BuildError("no C++ compiler (c++, g++, clang++, or $CXX): on Debian and Ubuntu apt-get install g++")


def build(folder: Path, machine: str | None = None) -> Path:
    """Compiles the library into `folder` and returns its path; what was there is replaced when all has succeeded.

    `machine` (platform.machine()) says for which processor $CXX compiles. Raises BuildError.
    """
    compiler = find_compiler()
    variants = VARIANTS.get((machine or platform.machine()).lower().replace("amd64", "x86_64"), VARIANTS["other"])
    listed = " ".join(f"apply({name})" for name in variants)
    with tempfile.TemporaryDirectory(prefix="regionrt-build-") as temporary:
        objects = []
        for source, name, flags in [
            (
                "library.cpp",
                "library",
                (f"-DREGIONRT_VARIANTS(apply)={listed}", f'-DREGIONRT_SOURCES="{sources_hash()}"'),
            ),
            ("parallel.cpp", "parallel", ()),
            *[("variant.cpp", name, (f"-DREGIONRT_VARIANT={name}", *flags)) for name, flags in variants.items()],
        ]:
            objects.append(str(Path(temporary, f"{name}.o")))
            run([*compiler, *FLAGS, *flags, "-c", str(HERE / source), "-o", objects[-1]])
        made = Path(temporary, NAME)
        run([*compiler, *objects, *LINK, "-o", str(made)])
        folder.mkdir(parents=True, exist_ok=True)
        beside = folder / f".{NAME}.new"
        shutil.copy(made, beside)
        os.replace(beside, folder / NAME)
    return folder / NAME


def run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise BuildError(f"{command[0]} cannot be run: {error}") from error
    if done.returncode:
        words = (done.stderr or done.stdout).strip()
        raise BuildError(f"{shlex.join(command)} failed: {words[:2000]}")
    if done.stderr.strip():
        print(done.stderr.strip(), file=sys.stderr)


if __name__ == "__main__":
    try:
        print(build(Path(sys.argv[1]) if len(sys.argv) > 1 else TARGET))
    except BuildError as error:
        sys.exit(f"native ops were not built: {error}")
