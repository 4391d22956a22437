"""Builds the library of native CPU ops into the package, and puts the CUDA kernels' sources there, which the runtime
compiles for the GPU that it finds; everything else about the package stands in pyproject.toml.

Without a C++ compiler regionrt installs all the same, and its CPU ops run in NumPy. `REGIONRT_NATIVE=required` makes a
failed build an error instead (for wheels), `REGIONRT_NATIVE=off` leaves it out.
"""

import importlib.util
import os
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext


def _load(name):
    """plugins/native/<name>.py; plugins/ itself cannot be imported here: it needs torch and onnx."""
    path = Path(__file__).with_name("plugins") / "native" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"native_{name}", path)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # its dataclasses look it up there
    spec.loader.exec_module(module)
    return module


native_build, native_cuda = _load("build"), _load("cuda")

SOURCES = [path.relative_to(Path(__file__).parent.resolve()).as_posix() for path in native_build.sources()]


class BuildNative(build_ext):
    """Runs plugins/native/build.py in place of Python's compiler flags: the library is plain C, not a Python module."""

    def run(self):
        for extension in self.extensions:
            runtime = Path(self.get_ext_fullpath(extension.name)).parent.parent
            native_cuda.write_sources(runtime / "gpu" / "sources")
        super().run()

    def build_extension(self, extension):
        wanted = os.environ.get("REGIONRT_NATIVE", "optional")
        if wanted not in ("optional", "required", "off"):
            raise SystemExit(f"REGIONRT_NATIVE: expected optional, required or off, found {wanted!r}")
        if wanted == "off":
            return
        try:
            native_build.build(Path(self.get_ext_fullpath(extension.name)).parent)
        except (native_build.BuildError, OSError) as error:
            if wanted == "required":
                raise
            print(f"warning: the native CPU ops were not built, NumPy will compute instead (slower): {error}")

    def get_ext_filename(self, fullname):
        return os.path.join(*fullname.split(".")[:-1], native_build.NAME)


class AnyPythonWheel(bdist_wheel):
    """The library depends on the platform, not on the version of Python."""

    def get_tag(self):
        return ("py3", "none", super().get_tag()[2])


setup(
    ext_modules=[Extension("regionrt.runtime.native.libregionrt", SOURCES, optional=True)],
    cmdclass={"build_ext": BuildNative, "bdist_wheel": AnyPythonWheel},
)
