"""Kernels at run time: compiled by the real NVRTC for a GPU that is not here, kept in the cache, and checked."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from regionrt.plugins.native import cuda as kernel_sources
from regionrt.runtime.errors import BackendError
from regionrt.runtime.gpu import kernels as kernels_module
from regionrt.runtime.gpu import nvrtc as nvrtc_module
from regionrt.runtime.gpu.kernels import compiled, source_of
from regionrt.runtime.gpu.nvrtc import Nvrtc, open_nvrtc

NEWEST = (13, 0)
OPS = sorted(kernel_sources.FLAGS)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "regionrt" / "kernels"


@pytest.fixture
def nvrtc() -> Nvrtc:
    try:
        return open_nvrtc(NEWEST)
    except BackendError as error:
        pytest.skip(str(error))


@pytest.fixture
def compilations(nvrtc: Nvrtc, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """What NVRTC is asked for from now on: (file, architecture)."""
    asked: list[tuple[str, int]] = []
    real = nvrtc.cubin

    def cubin(source: str, name: str, flags: tuple[str, ...], architecture: int) -> bytes:
        asked.append((name, architecture))
        return real(source, name, flags, architecture)

    monkeypatch.setattr(nvrtc, "cubin", cubin)
    return asked


def files(cache: Path) -> list[Path]:
    return sorted(cache.iterdir())


@pytest.mark.parametrize("op", OPS)
def test_every_op_compiles_at_run_time(op: str, nvrtc: Nvrtc) -> None:
    """From the package's data, for an edge GPU; a kernel's name stands in the code."""
    code = compiled(op, "8.7", NEWEST)
    assert code[:4] == b"\x7fELF"
    assert f".text.{op}".encode() in code


def test_the_sources_are_those_of_the_plugins_and_their_flags() -> None:
    for op, flags in kernel_sources.FLAGS.items():
        assert source_of(op) == (kernel_sources.source(op), ("--std=c++17", *flags)), "make native"


def test_what_was_compiled_is_kept(cache: Path, compilations: list[tuple[str, int]]) -> None:
    first = compiled("nms", "8.6", NEWEST)
    assert compiled("nms", "8.6", NEWEST) == first
    assert compilations == [("nms.cu", 86)]
    assert compiled("nms", "8.7", NEWEST) != first
    assert compilations == [("nms.cu", 86), ("nms.cu", 87)]
    assert len(files(cache)) == 2


@pytest.mark.parametrize("damage", ["flipped", "short", "empty", "of another GPU"])
def test_a_file_that_is_not_what_it_says_is_compiled_again(
    cache: Path, compilations: list[tuple[str, int]], damage: str
) -> None:
    first = compiled("nms", "8.6", NEWEST)
    (path,) = files(cache)
    data = bytearray(path.read_bytes())
    if damage == "flipped":
        data[len(data) // 2] ^= 1
    elif damage == "short":
        del data[-10:]
    elif damage == "empty":
        data.clear()
    else:
        compiled("nms", "8.7", NEWEST)
        (other,) = [file for file in files(cache) if file != path]
        data[:] = other.read_bytes()
    path.write_bytes(data)
    compilations.clear()
    assert compiled("nms", "8.6", NEWEST) == first
    assert compilations == [("nms.cu", 86)]
    compilations.clear()
    assert compiled("nms", "8.6", NEWEST) == first
    assert compilations == []


def test_another_source_or_flag_is_another_file(
    cache: Path, compilations: list[tuple[str, int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled("mask_paste", "8.6", NEWEST)
    text = (kernels_module.SOURCES / "mask_paste.cu").read_text()
    monkeypatch.setattr(kernels_module, "SOURCES", tmp_path)
    for changed in (text + "// more\n", text.replace("--fmad=false", "--fmad=true", 1)):
        (tmp_path / "mask_paste.cu").write_text(changed)
        compiled("mask_paste", "8.6", NEWEST)
    assert len(compilations) == len(files(cache)) == 3


def test_many_writers_at_once(cache: Path, nvrtc: Nvrtc) -> None:
    """Each finds a whole file or none; what remains is whole."""
    found: list[bytes] = []
    threads = [threading.Thread(target=lambda: found.append(compiled("nms", "8.6", NEWEST))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(found)) == 1
    (path,) = files(cache)
    assert path.read_bytes().endswith(found[0])


def test_the_cache_does_not_grow_for_ever(cache: Path, nvrtc: Nvrtc, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels_module, "MOST_CACHED", 2)
    for number, capability in enumerate(("7.5", "8.0", "8.6", "8.7")):
        compiled("nms", capability, NEWEST)
        for file in cache.glob("*sm" + capability.replace(".", "") + "*"):
            os.utime(file, (number, number))
    assert [file.name.split("-")[1] for file in files(cache)] == ["sm86", "sm87"]


def test_a_cache_that_cannot_be_written_costs_time_and_nothing_else(
    tmp_path: Path, nvrtc: Nvrtc, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="is not kept, the next start compiles it again"):
        assert compiled("nms", "8.6", NEWEST)[:4] == b"\x7fELF"


def test_sources_that_are_not_installed(tmp_path: Path, nvrtc: Nvrtc, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels_module, "SOURCES", tmp_path)
    with pytest.raises(BackendError, match=r"nms\.cu: the CUDA kernels of nms are missing .*make native"):
        compiled("nms", "8.6", NEWEST)
    (tmp_path / "nms.cu").write_text("__global__ void nms() {}")
    with pytest.raises(BackendError, match="expected a first line '// nvrtc:'"):
        compiled("nms", "8.6", NEWEST)


def test_what_nvrtc_refuses_is_told(nvrtc: Nvrtc) -> None:
    with pytest.raises(BackendError, match=r"NVRTC 1\d\.\d+ refuses x\.cu: .*error: .*nonsense"):
        nvrtc.cubin("nonsense", "x.cu", (), 86)
    with pytest.raises(BackendError, match=r"knows no compute capability 3\.5 .*pip install -U nvidia-cuda-nvrtc"):
        nvrtc.cubin("", "x.cu", (), 35)


@pytest.mark.parametrize(
    ("newest", "majors", "wheel"),
    [((12, 6), [12], "nvidia-cuda-nvrtc-cu12"), ((13, 1), [13, 12], "nvidia-cuda-nvrtc"), ((14, 0), [13, 12], "nvrtc")],
)
def test_a_driver_is_given_no_code_of_a_newer_cuda(
    newest: tuple[int, int], majors: list[int], wheel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nowhere an NVRTC: which ones were looked for, newest first, and what to install."""
    looked: list[int] = []

    def places(major: int) -> list[str]:
        looked.append(major)
        return [f"/nowhere/libnvrtc.so.{major}"]

    monkeypatch.setattr(nvrtc_module, "_places", places)
    open_nvrtc.cache_clear()
    try:
        with pytest.raises(BackendError, match=rf"driver takes CUDA {newest[0]}\.{newest[1]} .*pip install .*{wheel}$"):
            open_nvrtc(newest)
    finally:
        open_nvrtc.cache_clear()
    assert looked == majors


LINUX = ["nvidia/cu12/lib", "nvidia/cuda_nvrtc/lib", None, "home/lib64", "home/targets/x86_64-linux/lib", "path/lib64"]
WINDOWS = ["nvidia/cu12/bin/x86_64", "nvidia/cuda_nvrtc/bin", None, "home/bin/x64", "home/bin", "path/bin"]


@pytest.mark.parametrize(
    ("platform", "folders", "name"),
    [("linux", LINUX, "libnvrtc.so.12"), ("win32", WINDOWS, "nvrtc64_120_0.dll")],
)
def test_where_the_compiler_is_looked_for(platform: str, folders: list[str | None], name: str, tmp_path, monkeypatch):
    """The wheels', the system's (None), CUDA_HOME's, CUDA_PATH's, in this order; another major is passed by."""
    for folder in filter(None, folders):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        for other in (name, name.replace("12", "13")):
            (tmp_path / folder / other).touch()
    wheels = SimpleNamespace(submodule_search_locations=[str(tmp_path / "nvidia")])
    monkeypatch.setattr(nvrtc_module, "find_spec", lambda package: wheels if package == "nvidia" else None)
    monkeypatch.setattr(nvrtc_module.sys, "platform", platform)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("CUDA_PATH", str(tmp_path / "path"))
    expected = [name if folder is None else str(tmp_path / folder / name) for folder in folders]
    assert [place for place in nvrtc_module._places(12) if place.startswith((str(tmp_path), name))] == expected
    monkeypatch.setattr(nvrtc_module, "find_spec", lambda package: None)
    assert next(iter(nvrtc_module._places(12))) == name
