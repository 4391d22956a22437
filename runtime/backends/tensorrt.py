"""TensorRT, its lean runtime, and TensorRT for RTX: one runner behind the calls that all three have.

The GPU's driver is looked for before the library is: without one, deserialising an engine ends the process (lean) or
fails with words that help nobody (RTX).
"""

from __future__ import annotations

import importlib
import threading
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from regionrt.runtime.errors import BackendError
from regionrt.runtime.inputs import known_inputs
from regionrt.runtime.preflight import LIBRARIES

from .cuda import Cuda, open_cuda
from .engine_worker import Engine, EngineSessions, Profile
from .gpu_runner import DEFAULT_WORKERS, PooledRunner
from .gpu_worker import require_memory


class TensorRTRunner(PooledRunner):
    """Executes an engine that follows the contract of `Runner`; inputs may also lie on the GPU already.

    A shape that comes again is replayed as a CUDA graph, where nothing in the engine has a size that depends on data.

    Args:
        path: the engine file.
        flavour: "tensorrt" or "tensorrt-rtx".
        certificate: what the manifest says about the engine (`Artifact.engine`).
        workers: most requests at once; each has its own GPU memory.
        allow_host_code: load an engine that brings code for the host (a version-compatible one carries its own lean
            runtime): it then runs with the rights of this process.
        cuda, trt: in the place of the libraries that are installed.

    Raises:
        BackendError: no driver, no library, a plugin that is not here, an engine that they refuse, too little GPU
            memory.
    """

    def __init__(
        self,
        path: str | Path,
        flavour: str,
        certificate: Mapping[str, Any] | None = None,
        *,
        workers: int = DEFAULT_WORKERS,
        allow_host_code: bool = False,
        cuda: Cuda | None = None,
        trt: Any = None,
    ) -> None:
        if flavour not in LIBRARIES:
            raise ValueError(f"flavour {flavour!r}: expected {' or '.join(LIBRARIES)}")
        super().__init__(flavour, workers)
        certificate = certificate or {}
        self.cuda = open_cuda() if cuda is None else cuda
        self.cuda.make_current()
        trt = import_library(flavour) if trt is None else trt
        if certificate.get("plugins"):
            from regionrt.runtime.engine_plugins.registration import register_to_load

            register_to_load(trt, certificate["plugins"], self.cuda)
        self._engine = open_engine(Path(path), trt, self.cuda, allow_host_code)
        self.inputs = known_inputs(self._engine.inputs, str(path))
        if certificate.get("data_dependent_shapes"):
            self._never_a_graph = "its shapes depend on the data"
        try:
            self._pool.give(self._pool.take())  # what cannot run says so now
        except BaseException:
            self._pool.close()
            raise
        self.max_batch = max(profile.most["images"][0] for profile in self._engine.profiles)
        self.about = {
            "library": f"{trt.__name__} {trt.__version__}",
            "device": f"{self.cuda.device_name} (compute capability {self.cuda.compute_capability})",
            "cuda": self.cuda.library,
            "workers": workers,
        }

    def _sessions(self) -> EngineSessions:
        return EngineSessions(self._engine, self.cuda)


def import_library(flavour: str) -> ModuleType:
    """The first module of this flavour that can be imported. BackendError if none can."""
    reasons = []
    for name in LIBRARIES[flavour]:
        try:
            module = importlib.import_module(name)
            _ = module.Runtime, module.__version__  # a wheel that is a stub imports, and has nothing in it
        except (ImportError, OSError, AttributeError, RuntimeError) as error:
            reasons.append(f"{name}: {' '.join(str(error).split())[:200]}")
        else:
            return module
    extra = {"tensorrt": "tensorrt", "tensorrt-rtx": "rtx"}[flavour]
    raise BackendError(f"{flavour} cannot be imported ({'; '.join(reasons)}): pip install 'regionrt[{extra}]'")


def open_engine(path: Path, trt: Any, cuda: Cuda, allow_host_code: bool = False) -> Engine:
    """An engine file, deserialised. BackendError: it cannot be read, too little GPU memory, the library refuses it."""
    log = _logger(trt)
    label = f"{trt.__name__} {path.name}"
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BackendError(f"{path}: cannot be read: {error.strerror or error}") from error
    require_memory(cuda, len(data), f"{label}: its weights")
    runtime = trt.Runtime(log)
    if hasattr(runtime, "engine_host_code_allowed"):
        runtime.engine_host_code_allowed = allow_host_code
    why_not = _why_invalid(trt, runtime, data)
    handle = None if why_not else runtime.deserialize_cuda_engine(data)
    if handle is None:
        told = why_not or log.last_errors()
        hint = "" if allow_host_code else _host_code_hint(told)
        raise BackendError(
            f"{path}: {trt.__name__} {trt.__version__} on {cuda.device_name} (compute capability "
            f"{cuda.compute_capability}) refuses the engine: {told}{hint}"
        )
    names = [handle.get_tensor_name(index) for index in range(handle.num_io_tensors)]
    modes = {name: handle.get_tensor_mode(name) for name in names}
    dtypes = {name: np.dtype(trt.nptype(handle.get_tensor_dtype(name))) for name in names}
    inputs = {name: dtypes[name] for name in names if modes[name] == trt.TensorIOMode.INPUT}
    outputs = {name: dtypes[name] for name in names if modes[name] == trt.TensorIOMode.OUTPUT}
    profiles = []
    for index in range(handle.num_optimization_profiles):
        ranges = {name: [tuple(shape) for shape in handle.get_tensor_profile_shape(name, index)] for name in inputs}
        profiles.append(Profile(index, *({name: of[place] for name, of in ranges.items()} for place in range(3))))
    size = getattr(handle, "device_memory_size_v2", None)  # TensorRT 10.0 has the older name only
    config = None
    if hasattr(handle, "create_runtime_config"):
        config = handle.create_runtime_config()
        config.set_execution_context_allocation_strategy(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        config.set_runtime_cache(config.create_runtime_cache())
    return Engine(
        trt,
        _Kept(handle, runtime),
        log,
        label,
        inputs,
        outputs,
        tuple(profiles),
        int(handle.device_memory_size if size is None else size),
        config,
    )


class _Kept:
    """The engine, with its runtime, which must live as long."""

    def __init__(self, engine: Any, runtime: Any) -> None:
        self._engine, self._runtime = engine, runtime

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)


def _why_invalid(trt: Any, runtime: Any, data: bytes) -> str | None:
    """TensorRT for RTX says beforehand what is wrong with an engine for this machine."""
    if not hasattr(runtime, "get_engine_validity"):
        return None
    validity, bits = runtime.get_engine_validity(data)
    if validity != trt.EngineValidity.INVALID:
        return None
    members = trt.EngineInvalidityDiagnostics.__members__
    told = [name.lower().replace("_", " ") for name, member in members.items() if bits & int(member.value)]
    return ", ".join(told) or "invalid, without a reason"


def _host_code_hint(told: str) -> str:
    if "host code" not in told.lower() and "hostcode" not in told.lower():
        return ""
    return (
        "; it brings code for the host, which runs with the rights of this process: load(…, allow_host_code=True) if "
        "you trust it, or build it without (`regionrt build … --exclude-lean-runtime`)"
    )


def _logger(trt: Any) -> Any:
    class Log(trt.ILogger):
        """Keeps the last errors, which TensorRT reports nowhere else."""

        def __init__(self) -> None:
            super().__init__()
            self._lock = threading.Lock()
            self._errors: list[str] = []

        def log(self, severity: Any, text: str) -> None:
            if str(severity).rpartition(".")[2] in ("ERROR", "INTERNAL_ERROR"):
                with self._lock:
                    self._errors = [*self._errors[-2:], " ".join(text.split())[:300]]

        def last_errors(self) -> str:
            with self._lock:
                return "; ".join(self._errors) or "it gave no reason"

    return Log()
