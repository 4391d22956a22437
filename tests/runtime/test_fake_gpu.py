"""The fakes have the calls of the real libraries: the same names, and as many arguments."""

from __future__ import annotations

import inspect
import re
from typing import Any

import fake_tensorrt
import pytest
from fake_cuda import (
    CUdevice_attribute,
    CUpointer_attribute,
    CUresult,
    CUstream_flags,
    CUstreamCaptureMode,
    FakeDriver,
)


def arguments(function: Any) -> int:
    return sum(p.default is inspect.Parameter.empty for p in inspect.signature(function).parameters.values()) - 1


@pytest.mark.parametrize("name", [name for name in vars(FakeDriver) if name.startswith("cu")])
def test_the_drivers_calls(name: str) -> None:
    driver = pytest.importorskip("cuda.bindings.driver")
    assert len(inspect.signature(getattr(driver, name)).parameters) == arguments(vars(FakeDriver)[name])


@pytest.mark.parametrize(
    "fake", [CUresult, CUdevice_attribute, CUpointer_attribute, CUstream_flags, CUstreamCaptureMode]
)
def test_the_drivers_constants(fake: Any) -> None:
    real = getattr(pytest.importorskip("cuda.bindings.driver"), fake.__name__)
    for name, member in fake.__members__.items():
        assert int(getattr(real, name)) == int(member)


CLASSES = {
    "Runtime": fake_tensorrt.RtxRuntime,
    "ICudaEngine": fake_tensorrt.RtxEngine,
    "IExecutionContext": fake_tensorrt.RtxContext,
    "IRuntimeConfig": fake_tensorrt.RuntimeConfig,
}
METHODS = [
    (real, name)
    for real, fake in CLASSES.items()
    for name in dir(fake)
    if not name.startswith("_") and callable(getattr(fake, name)) and name != "outputs_for"
]


@pytest.mark.parametrize(("real", "name"), METHODS, ids=[f"{real}.{name}" for real, name in METHODS])
def test_tensorrts_calls(real: str, name: str) -> None:
    trt = pytest.importorskip("tensorrt_rtx")
    text = getattr(getattr(trt, real), name).__doc__
    lists = re.findall(rf"\b{name}\(self: [\w.]+,? ?(.*)\) -> ", text)
    assert lists, text
    required = [len([a for a in re.split(r", (?=\w+: )", each) if a and " = " not in a]) for each in lists]
    assert min(required) <= arguments(getattr(CLASSES[real], name)) <= max(len(each.split(", ")) for each in lists)


@pytest.mark.parametrize(
    "name",
    ["ExecutionContextAllocationStrategy", "TensorIOMode", "EngineValidity", "EngineInvalidityDiagnostics"],
)
def test_tensorrts_constants(name: str) -> None:
    real = getattr(pytest.importorskip("tensorrt_rtx"), name)
    for member, value in getattr(fake_tensorrt, name).__members__.items():
        assert int(real.__members__[member].value) == int(value)


def test_tensorrts_properties() -> None:
    trt = pytest.importorskip("tensorrt_rtx")
    for owner, name in (
        (trt.Runtime, "engine_host_code_allowed"),
        (trt.ICudaEngine, "device_memory_size_v2"),
        (trt.ICudaEngine, "num_io_tensors"),
        (trt.ICudaEngine, "num_optimization_profiles"),
    ):
        assert isinstance(getattr(owner, name), property)
