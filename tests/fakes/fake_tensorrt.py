"""TensorRT without a GPU: its Runtime, engines and contexts on a fake driver, and ONNX Runtime to compute.

An engine file is a line of JSON (`plan`) and an ONNX model. Contexts are as strict as the real ones: memory, profile,
shapes and addresses must be set, and an execution takes them as they are when it is enqueued. `flavour` decides which
of the calls that differ between the libraries are there; `test_fake_gpu.py` compares all with the real library's.
"""

from __future__ import annotations

import ctypes
import enum
import json
import threading
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from fake_cuda import CUresult, FakeDriver, inside

MAGIC = "fake engine"


class ExecutionContextAllocationStrategy(enum.IntEnum):
    STATIC = 0
    ON_PROFILE_CHANGE = 1
    USER_MANAGED = 2


class TensorIOMode(enum.IntEnum):
    NONE = 0
    INPUT = 1
    OUTPUT = 2


class EngineValidity(enum.IntEnum):
    VALID = 0
    SUBOPTIMAL = 1
    INVALID = 2


class EngineInvalidityDiagnostics(enum.IntEnum):
    VERSION_MISMATCH = 1
    UNSUPPORTED_CC = 2
    MALFORMED_ENGINE = 32


class ILogger:
    def __init__(self) -> None:
        pass


class FakeTensorRT:
    """The module `tensorrt_rtx` (flavour "tensorrt-rtx"), or `tensorrt`."""

    ExecutionContextAllocationStrategy, TensorIOMode, ILogger = (
        ExecutionContextAllocationStrategy,
        TensorIOMode,
        ILogger,
    )
    EngineValidity, EngineInvalidityDiagnostics = EngineValidity, EngineInvalidityDiagnostics

    def __init__(self, driver: FakeDriver, flavour: str = "tensorrt-rtx", version: str = "1.7.1.116") -> None:
        self.driver, self.flavour, self.__version__ = driver, flavour, version
        self.__name__ = flavour.replace("-", "_")
        self.contexts: list[ExecutionContext] = []
        self.fail_at: str | None = None  # "execute", "gpu", "context", "capture"
        self.capturable = True
        self.running = 0
        self.overlapped = 0  # executions between taking and giving back, at most
        self.lock = threading.Lock()

    def nptype(self, dtype: np.dtype) -> type:
        return dtype.type

    def Runtime(self, logger: ILogger) -> Runtime:  # noqa: N802
        return (RtxRuntime if self.flavour == "tensorrt-rtx" else Runtime)(self, logger)


class Runtime:
    def __init__(self, trt: FakeTensorRT, logger: Any) -> None:
        self.trt, self.logger, self.engine_host_code_allowed = trt, logger, False

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> Any:
        plan = read_plan(serialized_engine)
        if plan is None:
            self.logger.log("Severity.ERROR", "Error Code 1: Serialization (magic tag does not match)")
            return None
        if plan[0]["host_code"] and not self.engine_host_code_allowed:
            self.logger.log("Severity.ERROR", "engine contains host code, but engineHostCodeAllowed is false")
            return None
        return (RtxEngine if self.trt.flavour == "tensorrt-rtx" else CudaEngine)(self.trt, self.logger, *plan)


class RtxRuntime(Runtime):
    def get_engine_validity(self, buffer: bytes) -> tuple:
        good = read_plan(buffer) is not None
        return (EngineValidity.VALID, 0) if good else (EngineValidity.INVALID, 32)


def read_plan(data: bytes) -> tuple[dict[str, Any], bytes] | None:
    try:
        head, _, model = data.partition(b"\n")
        plan = json.loads(head)
        return (plan, model) if plan["magic"] == MAGIC and len(model) == plan["model_bytes"] else None
    except (ValueError, KeyError):
        return None


def write_plan(model: onnx.ModelProto, profiles: list[dict[str, Any]], **more: Any) -> bytes:
    data = model.SerializeToString()
    plan = {"magic": MAGIC, "model_bytes": len(data), "profiles": profiles, "host_code": False, "workspace": 4096}
    return json.dumps(plan | more).encode() + b"\n" + data


class CudaEngine:
    def __init__(self, trt: FakeTensorRT, logger: Any, plan: dict[str, Any], model: bytes) -> None:
        self.trt, self.logger, self.plan = trt, logger, plan
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self.tensors = {node.name: node for node in (*self.session.get_inputs(), *self.session.get_outputs())}
        self.input_names = [node.name for node in self.session.get_inputs()]
        self.num_io_tensors = len(self.tensors)
        self.num_optimization_profiles = len(plan["profiles"])
        self.device_memory_size_v2 = plan["workspace"]
        self._known: dict[Any, dict[str, np.ndarray]] = {}

    def get_tensor_name(self, index: int) -> str:
        return list(self.tensors)[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if name in self.input_names else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> np.dtype:
        kind = self.tensors[name].type.removeprefix("tensor(").removesuffix(")")
        return np.dtype({"float": "float32"}.get(kind, kind))

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list:
        profile = self.plan["profiles"][profile_index][name]
        return [profile["min"], profile["opt"], profile["max"]]

    def create_execution_context(self, strategy: Any = ExecutionContextAllocationStrategy.STATIC) -> Any:
        if self.trt.fail_at == "context":
            self.logger.log("Severity.ERROR", "no context today")
            return None
        assert strategy == ExecutionContextAllocationStrategy.USER_MANAGED
        return (RtxContext if self.trt.flavour == "tensorrt-rtx" else ExecutionContext)(self)

    def outputs_for(self, shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
        """Outputs of these input shapes, for their own shapes."""
        key = tuple(shapes.items())
        if key not in self._known:
            inputs = {name: np.zeros(shape, self.get_tensor_dtype(name)) for name, shape in shapes.items()}
            outputs = [node.name for node in self.session.get_outputs()]
            self._known[key] = dict(zip(outputs, self.session.run(outputs, inputs), strict=True))
        return self._known[key]


class RuntimeConfig:
    def __init__(self) -> None:
        self.strategy, self.cache = ExecutionContextAllocationStrategy.STATIC, None

    def set_execution_context_allocation_strategy(self, strategy: ExecutionContextAllocationStrategy) -> None:
        self.strategy = strategy

    def create_runtime_cache(self) -> object:
        return object()

    def set_runtime_cache(self, cache: object) -> bool:
        self.cache = cache
        return True


class RtxEngine(CudaEngine):
    def create_runtime_config(self) -> RuntimeConfig:
        return RuntimeConfig()

    def create_execution_context(self, runtime_config: Any) -> Any:
        assert runtime_config.cache is not None
        return super().create_execution_context(runtime_config.strategy)


class ExecutionContext:
    def __init__(self, engine: CudaEngine) -> None:
        self.engine, self.trt = engine, engine.trt
        self.profile: int | None = None
        self.memory: tuple[int, int] | None = None
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.made: dict[str, tuple[int, ...]] = {}
        self.fresh_shapes = True
        self.executions = 0
        self.trt.contexts.append(self)

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        if not 0 <= profile_index < self.engine.num_optimization_profiles:
            return False
        self.profile, self.shapes = profile_index, {}
        return True

    def set_device_memory(self, memory: int, size: int) -> None:
        assert size >= self.engine.device_memory_size_v2
        assert inside(self.trt.driver.memory, memory, size)
        self.memory = memory, size

    def set_input_shape(self, name: str, shape: tuple) -> bool:
        if self.profile is None:
            return False
        low, _, high = self.engine.get_tensor_profile_shape(name, self.profile)
        if len(shape) != len(low) or not all(a <= s <= b for a, s, b in zip(low, shape, high, strict=True)):
            return False
        self.shapes[name] = tuple(shape)
        self.made, self.fresh_shapes = {}, True
        return True

    def infer_shapes(self) -> list:
        missing = [name for name in self.engine.input_names if name not in self.shapes]
        if not missing and not self.made:
            self.made = {name: value.shape for name, value in self.engine.outputs_for(self.shapes).items()}
        return missing

    def get_tensor_shape(self, name: str) -> tuple:
        return self.made.get(name) or self.shapes[name]

    def get_max_output_size(self, name: str) -> int:
        assert self.profile is not None
        most = {n: tuple(p["max"]) for n, p in self.engine.plan["profiles"][self.profile].items()}
        return self.engine.outputs_for(most)[name].nbytes

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self.addresses[name] = memory
        return name in self.engine.tensors

    def execute_async_v3(self, stream_handle: int) -> bool:
        trt, driver = self.trt, self.trt.driver
        stream = driver.streams[stream_handle]
        if trt.fail_at == "execute":
            self.engine.logger.log("Severity.ERROR", "Error Code 7: an execution that fails")
            return False
        assert self.memory is not None or not self.engine.device_memory_size_v2
        assert set(self.addresses) == set(self.engine.tensors), "addresses of all tensors"
        if stream.captured is not None and (self.fresh_shapes or trt.fail_at == "capture"):
            stream.invalid = True  # TensorRT must have run once since the shapes changed
        self.fresh_shapes = False
        shapes, addresses = dict(self.shapes), dict(self.addresses)

        def work() -> CUresult | None:
            if trt.fail_at == "gpu":
                return CUresult.CUDA_ERROR_ILLEGAL_ADDRESS
            self.executions += 1
            outputs = [node.name for node in self.engine.session.get_outputs()]
            values = self.engine.session.run(outputs, self._inputs(addresses, shapes))
            for name, value in zip(outputs, values, strict=True):
                assert inside(driver.memory, addresses[name], value.nbytes)
                value = np.ascontiguousarray(value)
                ctypes.memmove(addresses[name], value.ctypes.data, value.nbytes)
            return None

        stream.add(work)
        return True

    def _inputs(self, addresses: dict[str, int], shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
        values = {}
        for name in self.engine.input_names:
            values[name] = np.zeros(shapes[name], self.engine.get_tensor_dtype(name))
            assert inside(self.trt.driver.memory, addresses[name], values[name].nbytes)
            ctypes.memmove(values[name].ctypes.data, addresses[name], values[name].nbytes)
        return values


class RtxContext(ExecutionContext):
    def is_stream_capturable(self, stream: int) -> bool:
        return self.trt.capturable
