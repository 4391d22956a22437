"""What `doctor` is told about the engine libraries of a machine, whole, missing or broken."""

import importlib.metadata
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from regionrt.runtime import devices
from regionrt.runtime.cuda_devices import cuda_devices
from regionrt.runtime.devices import BackendInfo, backends
from regionrt.runtime.machine import why_no_driver


@pytest.fixture(scope="module")
def found() -> dict[str, BackendInfo]:
    """The backends of this machine."""
    return {info.name: info for info in backends()}


@pytest.fixture
def only_tensorrt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a test puts the file that answers to `import tensorrt`; no other library is asked."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(devices, "_LIBRARIES", {"tensorrt": devices._LIBRARIES["tensorrt"]})
    return tmp_path / "tensorrt.py"


def test_every_backend_is_told_once_with_its_version_and_devices(found: dict[str, BackendInfo]) -> None:
    assert list(found) == ["onnxruntime", "openvino", "ncnn", "tensorrt", "tensorrt-rtx", "torch"]
    for info in found.values():
        assert info.usable == (info.why_not is None)
        assert info.usable <= bool(info.devices)
        assert info.get.startswith('pip install "regionrt[')
    modules = {"onnxruntime": "onnxruntime", "openvino": "openvino", "ncnn": "ncnn", "tensorrt-rtx": "tensorrt_rtx"}
    for name, module in modules.items():
        if find_spec(module) is None:
            assert (found[name].version, found[name].why_not) == (None, "not installed")
        else:
            assert found[name].version is not None
    if find_spec("onnxruntime") is not None:
        assert "CPUExecutionProvider" in found["onnxruntime"].devices
    if find_spec("torch") is not None:
        assert found["torch"].version == importlib.metadata.version("torch")


def test_without_a_gpu_tensorrt_for_rtx_builds_and_does_not_run(found: dict[str, BackendInfo]) -> None:
    if find_spec("tensorrt_rtx") is None or why_no_driver() is None:
        pytest.skip("needs tensorrt-rtx on a machine without an NVIDIA driver")
    rtx = found["tensorrt-rtx"]
    assert rtx.builds
    assert not rtx.usable
    assert "no NVIDIA GPU driver" in str(rtx.why_not)


def test_no_driver_is_an_error_and_not_an_empty_machine() -> None:
    if why_no_driver() is None:
        pytest.skip("this machine has an NVIDIA driver")
    with pytest.raises(OSError, match="libcuda"):
        cuda_devices()


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("raise ImportError('libfoo.so.3:\\n cannot open')", "cannot be loaded: ImportError: libfoo.so.3: cannot open"),
        ("__version__ = '11.0'", "has no attribute 'Builder'"),
        ("import os; os.abort()", "ended its process (status -6)"),
        ("import os; print('hello'); os._exit(3)", "ended its process (status 3)"),
    ],
    ids=["raises", "stub", "aborts", "exits"],
)
def test_a_broken_library_is_told_and_not_fatal(only_tensorrt: Path, source: str, why: str) -> None:
    only_tensorrt.write_text(source)
    broken = backends()[0]
    assert not broken.usable
    assert not broken.builds
    assert why in str(broken.why_not)


def test_a_library_that_hangs_is_left_out(only_tensorrt: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    only_tensorrt.write_text("import time; time.sleep(60)")
    monkeypatch.setattr(devices, "_TIMEOUT_S", 0.5)
    assert "took longer than 0.5 s" in str(backends()[0].why_not)


def test_asking_loads_no_engine_library_into_this_process() -> None:
    asked = (
        "import sys; from regionrt.runtime.devices import backends; backends();"
        "print(sorted({'torch', 'onnxruntime', 'openvino', 'ncnn', 'tensorrt', 'tensorrt_rtx'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
