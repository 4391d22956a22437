"""The kernels compile: by NVRTC to PTX without a GPU, by nvcc where it is installed; and what may not be is told."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest

from regionrt.plugins.native import cuda
from regionrt.plugins.native.build import PLUGINS
from regionrt.runtime.gpu.regions import BLOCK, slices

TEXT = """ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'one' for 'sm_86'
ptxas info    : Function properties for one
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 21256 bytes smem, 380 bytes cmem[0]
ptxas info    : Compiling entry function 'two' for 'sm_86'
ptxas info    : Function properties for two
    16 bytes stack frame, 12 bytes spill stores, 16 bytes spill loads
ptxas info    : Used 65 registers, 380 bytes cmem[0]
"""


def test_ptxas_is_read() -> None:
    one, two = cuda.parse_ptxas(TEXT, "nms", "86")
    assert one == cuda.KernelUse("nms", "one", "86", 40, 0, 21256)
    assert two == cuda.KernelUse("nms", "two", "86", 65, 28, 0)
    with pytest.raises(cuda.KernelError, match="says nothing of nms"):
        cuda.parse_ptxas("", "nms", "86")
    with pytest.raises(cuda.KernelError, match="not understood"):
        cuda.parse_ptxas("Compiling entry function 'one' for 'sm_86'", "nms", "86")


def test_what_may_not_be_is_told() -> None:
    assert cuda.violations(cuda.parse_ptxas(TEXT, "nms", "86")) == ["two spills 28 bytes for sm_86"]
    assert cuda.violations(cuda.parse_ptxas(TEXT, "nms", "120")) == []
    assert cuda.violations(cuda.parse_ptxas(TEXT, "roi_align", "75")) == ["two takes 65 registers for sm_75"]


@pytest.mark.parametrize("op", list(cuda.FLAGS))
def test_nvrtc_makes_ptx(op: str) -> None:
    pytest.importorskip("cuda.bindings.nvrtc")
    text = cuda.ptx(op)
    assert ".target sm_75" in text
    assert f".entry {op}" in text


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed")
@pytest.mark.parametrize("op", list(cuda.FLAGS))
def test_nothing_spills(op: str) -> None:
    assert cuda.violations(cuda.compile_with_nvcc(op, "90")) == []


def test_rois_are_cut_into_as_many_blocks_in_cpp_as_in_python(tmp_path: Path) -> None:
    """slices.h, which the C++ plugin launches by, and the rule of all other launches."""
    library = tmp_path / "slices.so"
    source = f'''#include "{PLUGINS / "native" / "slices.h"}"
extern "C" int32_t block() {{ return regionrt::kRegionBlock; }}
extern "C" int32_t of(int64_t rois, int64_t values) {{ return regionrt::slices(rois, values); }}
'''
    subprocess.run(["g++", "-shared", "-fPIC", "-xc++", "-", "-o", str(library)], input=source, text=True, check=True)
    there = ctypes.CDLL(str(library))
    there.of.argtypes = [ctypes.c_int64, ctypes.c_int64]
    assert there.block() == BLOCK
    for rois in (0, 1, 2, 7, 300, 1000, 1023, 1024, 1025, 8000, 2**33):
        for values in (0, 1, 255, 256, 511, 512, 49 * 256, 196 * 256, 2**31 - 1):
            assert there.of(rois, values) == slices(rois, values), (rois, values)
