"""OpenVINO on the CPU: whole graphs, and the dense stages of the staged form."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from regionrt.runtime.errors import BackendError
from regionrt.runtime.machine import usable_cores

_BF16 = np.dtype(np.uint16)  # NumPy has no bf16: its bits
PRECISIONS = ("fp32", "bf16")
_LAYERS = ("Convolution", "Deconvolution", "FullyConnected")


class OpenVinoStages:
    """Opens dense stages (`StageEngine`). One compiled model serves all threads; each session is a request of its own.

    Args:
        precision: "fp32", or "bf16": layers compute in bf16, feature maps and RoI features are handed over in it.
        threads: for the arithmetic inside one layer; None takes one per usable physical core.

    Raises:
        BackendError: the library is missing, or this CPU does not compute in that precision.
    """

    name = "openvino"

    def __init__(self, precision: str, threads: int | None = None) -> None:
        self._ov = _library()
        if threads is not None and threads < 1:
            raise ValueError(f"threads: expected at least 1, got {threads}")
        self.threads = threads or usable_cores()
        self.precision = precision
        self._core = self._ov.Core()
        self._config = cpu_config(self._core, precision, self.threads)

    def open(self, path: Path, stage: Mapping[str, Any]) -> OpenVinoStage:
        ov = self._ov
        try:
            model = self._core.read_model(str(path))
            if self.precision == "bf16":
                model = _handing_over_bf16(ov, model, stage)
            compiled = self._core.compile_model(model, "CPU", self._config)
        except Exception as error:  # its exceptions have no common base
            raise BackendError(f"{path}: OpenVINO {ov.__version__} refuses it: {_first_line(error)}") from error
        return OpenVinoStage(ov, compiled, self.precision)


class OpenVinoStage:
    """A compiled dense stage."""

    def __init__(self, ov: Any, compiled: Any, precision: str) -> None:
        self.feature_type = _BF16 if precision == "bf16" else np.dtype(np.float32)
        self._ov = ov
        self._compiled = compiled
        _check_precision(compiled, precision)

    def session(self) -> OpenVinoSession:
        return OpenVinoSession(self._ov, self._compiled)


class OpenVinoSession:
    """One inference request: its outputs are views of the request's own memory, overwritten by the next run."""

    def __init__(self, ov: Any, compiled: Any) -> None:
        self._ov = ov
        self._request = compiled.create_infer_request()
        self._inputs = {port.get_any_name(): port.get_element_type() for port in compiled.inputs}
        self._outputs = [port.get_any_name() for port in compiled.outputs]

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        ov, request = self._ov, self._request
        try:
            for name, kind in self._inputs.items():
                array = np.ascontiguousarray(feeds[name])
                request.set_tensor(name, ov.Tensor(array, ov.Shape(list(array.shape)), kind))
            request.infer()
        except Exception as error:
            shapes = {name: list(array.shape) for name, array in feeds.items()}
            raise BackendError(f"openvino: failed on {shapes}: {_first_line(error)}") from error
        return {name: _array(request.get_tensor(name)) for name in self._outputs}


class OpenVinoRunner:
    """Runs an ONNX file without functions by the contract of `Runner`. Arguments as of `OpenVinoStages`."""

    name = "openvino"

    def __init__(self, path: str | Path, precision: str, threads: int | None = None) -> None:
        engine = OpenVinoStages(precision, threads)
        self.threads = engine.threads
        self._stage: OpenVinoStage | None = engine.open(Path(path), {"outputs": [], "inputs": [], "shapes": {}})
        self._idle: list[OpenVinoSession] = []
        self._lock = threading.Lock()

    def run(self, images: np.ndarray, image_sizes: np.ndarray) -> dict[str, np.ndarray]:
        with self._lock:
            stage = self._stage
            session = self._idle.pop() if self._idle else None
        if stage is None:
            raise BackendError("openvino: this predictor is closed; load the bundle again")
        session = session or stage.session()
        found = session.run({"images": images, "image_sizes": image_sizes})
        outputs = {name: value.copy() for name, value in found.items()}
        with self._lock:
            self._idle.append(session)
        return outputs

    def close(self) -> None:
        with self._lock:
            self._stage = None
            self._idle.clear()


def cpu_config(core: Any, precision: str, threads: int) -> dict[str, Any]:
    """Options of the CPU plugin: this precision and no other. BackendError where the CPU does not have it."""
    if precision not in PRECISIONS:
        raise BackendError(f"openvino: expected a precision of {', '.join(PRECISIONS)}, found {precision!r}")
    if precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise BackendError("this CPU does not compute in bf16 (it needs AVX-512 BF16 or AMX): export with fp32")
    return {
        "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": "1",
        "PERFORMANCE_HINT": "LATENCY",
        "ENABLE_CPU_PINNING": False,  # the threads of our own ops and other requests share these cores
    }


def _library() -> Any:
    try:
        import openvino
    except ImportError as error:
        raise BackendError(f"openvino cannot be imported ({error}): pip install 'regionrt[openvino]'") from error
    return openvino


def _handing_over_bf16(ov: Any, model: Any, stage: Mapping[str, Any]) -> Any:
    """Feature maps that leave the stage and RoI features that enter it are bf16; logits and boxes stay float32."""
    edit = ov.preprocess.PrePostProcessor(model)
    for name in stage["channels_last"]:
        if name in stage["outputs"]:
            edit.output(name).tensor().set_element_type(ov.Type.bf16)
    if stage["rows"]:
        for port in model.inputs:
            if port.get_element_type() == ov.Type.f32:
                edit.input(port.get_any_name()).tensor().set_element_type(ov.Type.bf16)
    return edit.build()


def _check_precision(compiled: Any, precision: str) -> None:
    """What was asked is what was built: BackendError if no layer, or another one than asked for, computes in it."""
    wanted = {"fp32": "f32", "bf16": "bf16"}[precision]
    found: dict[str, int] = {}
    for node in compiled.get_runtime_model().get_ops():
        info = node.get_rt_info()
        if "layerType" in info and str(info["layerType"].value) in _LAYERS:
            kind = str(info["runtimePrecision"].value).lower()
            found[kind] = found.get(kind, 0) + 1
    others = ", ".join(f"{count} in {kind}" for kind, count in found.items() if kind != wanted)
    if others:
        raise BackendError(f"openvino: layers in {wanted} were asked for, {others} were compiled")


def _array(tensor: Any) -> np.ndarray:
    data = tensor.data
    return data.view(_BF16) if data.dtype == np.float16 else data


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:300]
