"""The compiled library: fresh, chosen for this CPU, safe to share, and replaced by NumPy where it cannot be used."""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from regionrt.runtime import native
from regionrt.runtime.native import library

ROOT = Path(__file__).resolve().parents[2]
COMPILED = library.usable_variants() != (library.NUMPY,)
needs_library = pytest.mark.skipif(not COMPILED, reason="the native ops are not built here: make native")


def load_build():
    spec = importlib.util.spec_from_file_location("native_build", ROOT / "plugins" / "native" / "build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


build = load_build()
needs_compiler = pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A process that has not looked for its library yet, and the file where it will look."""
    before = library.about().variant
    monkeypatch.setattr(library, "_state", library._State())
    monkeypatch.setattr(library, "PATH", tmp_path / "libregionrt.so")
    yield tmp_path / "libregionrt.so"
    monkeypatch.undo()
    library._choose(before)


def one_box() -> np.ndarray:
    return native.nms(
        np.array([[[0, 0, 4, 4], [0, 0, 4, 4]]], np.float32), np.zeros((1, 2), np.int32), iou_threshold=0.5
    )


@needs_compiler
def test_the_library_is_built_from_these_sources() -> None:
    """With a compiler at hand it must be there, or every other test would pass in NumPy alone."""
    assert COMPILED, "the native ops are not built: make native"
    assert native.about().sources == build.sources_hash(), "the library is older than its sources: make native"


@needs_library
def test_about_names_the_best_variant_and_its_file() -> None:
    about = native.about()
    assert about.variant == library.usable_variants()[0]
    assert about.path == str(library.PATH)
    if about.variant == library._state.library.names[0]:
        assert about.why_not_better is None


@needs_library
@pytest.mark.skipif(os.uname().machine != "x86_64", reason="flags of x86")
def test_the_variant_is_the_best_that_the_kernel_says_this_cpu_has() -> None:
    flags = set(Path("/proc/cpuinfo").read_text().split("flags")[1].split("\n")[0].split())
    expected = "baseline"
    if {"avx2", "fma"} <= flags:
        expected = "avx512" if {"avx512f", "avx512bw", "avx512dq", "avx512vl"} <= flags else "avx2"
    assert library.usable_variants()[0] == expected


@needs_library
def test_using_a_variant_ends_with_the_block_and_refuses_others() -> None:
    best = native.about().variant
    with native.using("numpy"):
        about = native.about()
        assert (about.variant, about.path) == ("numpy", None)
        assert "not chosen" in (about.why_not_better or "")
    assert native.about().variant == best
    with pytest.raises(ValueError, match=r"expected one of .*numpy.*, found 'avx1024'"), native.using("avx1024"):
        pass


def falls_back(fresh: Path, *words: str) -> None:
    with pytest.warns(UserWarning, match="NumPy computes instead") as told:
        assert one_box().tolist() == [[True, False]]
    assert len(told) == 1
    for word in words:
        assert word in str(told[0].message)
    about = native.about()
    assert about.variant == "numpy"
    assert about.why_not_better in str(told[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # said once
        assert one_box().tolist() == [[True, False]]


def test_a_missing_library(fresh: Path) -> None:
    falls_back(fresh, "was not built", "make native")


@pytest.mark.parametrize("content", [b"", b"not a library" * 100])
def test_a_file_that_is_no_library(fresh: Path, content: bytes) -> None:
    fresh.write_bytes(content)
    falls_back(fresh, str(fresh), "cannot be used", "install regionrt again")


@needs_library
def test_a_library_for_another_processor(fresh: Path) -> None:
    content = bytearray(Path(library.__file__).with_name("libregionrt.so").read_bytes())
    content[18:20] = (183 if content[18] == 62 else 62).to_bytes(2, sys.byteorder)  # e_machine: AArch64 or x86-64
    fresh.write_bytes(content)
    falls_back(fresh, "cannot be used")


@needs_library
def test_a_library_cut_short(fresh: Path) -> None:
    whole = Path(library.__file__).with_name("libregionrt.so").read_bytes()
    fresh.write_bytes(whole[: len(whole) // 3])
    falls_back(fresh, "cannot be used", "cut short")


def compiled(target: Path, source: str) -> None:
    subprocess.run(["c++", "-x", "c", "-shared", "-fPIC", "-o", str(target), "-"], input=source, text=True, check=True)


@needs_compiler
def test_a_library_of_another_version(fresh: Path) -> None:
    compiled(fresh, "int regionrt_abi(void) { return 99; }")
    falls_back(fresh, "version 99", f"version {library.ABI}")


@needs_compiler
def test_another_library_of_that_name(fresh: Path) -> None:
    compiled(fresh, "int something(void) { return 1; }")
    falls_back(fresh, "cannot be used")


@needs_library
def test_structures_that_do_not_match(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(Path(library.__file__).with_name("libregionrt.so"), fresh)
    monkeypatch.setitem(library.CALLS, "nms", library.CALLS["resize"])
    falls_back(fresh, "function nms", "structure")


@needs_library
def test_a_cpu_that_lacks_instructions(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(Path(library.__file__).with_name("libregionrt.so"), fresh)
    why = library._Library.why_not
    monkeypatch.setattr(library._Library, "why_not", lambda self, v: "AVX2" if v.startswith("avx") else why(self, v))
    about = native.about()
    assert about.variant == "baseline"
    if os.uname().machine == "x86_64":
        assert about.why_not_better == "avx512: this CPU lacks AVX2; avx2: this CPU lacks AVX2"
    assert one_box().tolist() == [[True, False]]


@needs_compiler
def test_the_build_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "/nonexistent/c++")
    with pytest.raises(build.BuildError, match="/nonexistent/c"):
        build.build(tmp_path)
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(build.BuildError, match=r"no C\+\+ compiler"):
        build.build(tmp_path)
    assert list(tmp_path.iterdir()) == []


@needs_library
@pytest.mark.skipif(shutil.which("nm") is None, reason="no nm")
def test_no_code_is_shared_between_variants() -> None:
    """Weak symbols are merged by the linker: code compiled for AVX-512 would run on every CPU. And no C++ runtime."""
    path = library.about().path
    listed = subprocess.run(
        ["nm", "-C", "--defined-only", str(path)], capture_output=True, text=True, check=True
    ).stdout
    assert not [line for line in listed.splitlines() if line[17:18] in "WVuw"]
    needed = subprocess.run(
        ["nm", "-D", "--undefined-only", str(path)], capture_output=True, text=True, check=True
    ).stdout
    assert "GLIBCXX" not in needed
    assert "CXXABI" not in needed


def _in_a_forked_child(queue) -> None:
    image = np.arange(300 * 200 * 3, dtype=np.uint32).astype(np.uint8).reshape(300, 200, 3)
    queue.put(native.resize_bilinear(image, 411, 321, threads=3).tobytes())


@needs_library
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork")
def test_a_forked_child_has_threads_of_its_own() -> None:
    """The pool's threads do not exist in a child: it must not wait for them."""
    image = np.arange(300 * 200 * 3, dtype=np.uint32).astype(np.uint8).reshape(300, 200, 3)
    expected = native.resize_bilinear(image, 411, 321, threads=3).tobytes()
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_in_a_forked_child, args=(queue,))
    child.start()
    try:
        assert queue.get(timeout=30) == expected
    finally:
        child.kill()
        child.join()
