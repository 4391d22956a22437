"""OpenVINO on the CPU: the dense stages of the staged form."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from regionrt.runtime.errors import BackendError
from regionrt.runtime.machine import usable_cores

from .staged_buckets import usual_shapes

_BF16 = np.dtype(np.uint16)  # NumPy has no bf16: its bits
PRECISIONS = ("fp32", "bf16", "int8")
_MOST_IMAGES = 4  # in a batch whose shape is compiled apart
_LAYERS = ("Convolution", "Deconvolution", "FullyConnected")


class OpenVinoStages:
    """Opens dense stages (`StageEngine`). One compiled model serves all threads; each session is a request of its own.

    Args:
        precision: "fp32", or "bf16": layers compute in bf16, feature maps and RoI features are handed over in it;
            "int8": the layers that a stage's file has quantised.
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
            opened = OpenVinoStage(self, model, stage)
        except BackendError:
            raise
        except Exception as error:  # its exceptions have no common base
            raise BackendError(f"{path}: OpenVINO {ov.__version__} refuses it: {_first_line(error)}") from error
        return opened

    def compile(self, model: Any, quantized: int) -> Any:
        compiled = self._core.compile_model(model, "CPU", self._config)
        _check_precision(compiled, self.precision, quantized)
        return compiled

    def tensor(self, array: np.ndarray, kind: Any) -> Any:
        """A tensor on the memory of a C-contiguous array."""
        return self._ov.Tensor(array, self._ov.Shape(list(array.shape)), kind)


class OpenVinoStage:
    """A dense stage, compiled for each shape of its inputs apart.

    With shapes that are known, layouts fit from layer to layer and nothing is transposed in between (ResNet-50-FPN: a
    tenth less time, MobileNetV3-FPN: a third). Which shapes are compiled apart does not depend on what ran before, so
    that results do not either: all rows of RoIs, and up to `_MOST_IMAGES` images on a fixed canvas.
    """

    def __init__(self, engine: OpenVinoStages, model: Any, stage: Mapping[str, Any]) -> None:
        self.feature_type = _BF16 if engine.precision == "bf16" else np.dtype(np.float32)
        self.inputs = {port.get_any_name(): port.get_element_type() for port in model.inputs}
        self.outputs = [port.get_any_name() for port in model.outputs]
        self._engine = engine
        self._model = model
        self._quantized = len(stage.get("quantized", ()))
        self._rows = stage["slots"] is not None
        self._lock = threading.Lock()
        self._compiled: dict[Any, Any] = {}
        usual = usual_shapes(stage)
        self._fixed = all(None not in shape for shape in usual.values())
        self.compiled_for({name: tuple(usual[name]) for name in self.inputs})

    def session(self) -> OpenVinoSession:
        return OpenVinoSession(self, self._engine)

    def compiled_for(self, shapes: Mapping[str, tuple[int | None, ...]]) -> Any:
        """The compiled model for these shapes of the inputs."""
        few = all(shape[0] is not None and shape[0] <= _MOST_IMAGES for shape in shapes.values())
        apart = self._fixed and (self._rows or few)
        key = tuple(shapes.values()) if apart else None
        with self._lock:
            if key not in self._compiled:
                model = self._model
                if apart:
                    model = model.clone()
                    model.reshape({name: list(shape) for name, shape in shapes.items()})
                self._compiled[key] = self._engine.compile(model, self._quantized)
            return self._compiled[key]


class OpenVinoSession:
    """Inference requests, one for each compiled model: outputs are views of its memory, overwritten by the next run."""

    def __init__(self, stage: OpenVinoStage, engine: OpenVinoStages) -> None:
        self._stage = stage
        self._engine = engine
        self._requests: dict[int, Any] = {}

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        stage = self._stage
        arrays = {name: np.ascontiguousarray(feeds[name]) for name in stage.inputs}
        try:
            compiled = stage.compiled_for({name: array.shape for name, array in arrays.items()})
            request = self._requests.get(id(compiled))
            if request is None:
                request = self._requests[id(compiled)] = compiled.create_infer_request()
            for name, array in arrays.items():
                request.set_tensor(name, self._engine.tensor(array, stage.inputs[name]))
            request.infer()
        except Exception as error:
            shapes = {name: list(array.shape) for name, array in feeds.items()}
            raise BackendError(f"openvino: failed on {shapes}: {_first_line(error)}") from error
        return {name: _array(request.get_tensor(name)) for name in stage.outputs}


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
    if stage["slots"] is not None:
        for port in model.inputs:
            if port.get_element_type() == ov.Type.f32:
                edit.input(port.get_any_name()).tensor().set_element_type(ov.Type.bf16)
    return edit.build()


def _check_precision(compiled: Any, precision: str, quantized: int) -> None:
    """What was asked is what was built: BackendError if a layer computes in another precision than asked for.

    quantized: how many layers are to be integer ones, of a stage in int8; the others are fp32.
    """
    found: dict[str, int] = {}
    for node in compiled.get_runtime_model().get_ops():
        info = node.get_rt_info()
        if "layerType" in info and str(info["layerType"].value) in _LAYERS:
            kind = str(info["runtimePrecision"].value).lower()
            found[kind] = found.get(kind, 0) + 1
    if precision == "int8":
        integers = found.pop("u8", 0) + found.pop("i8", 0)
        if integers < quantized:
            raise BackendError(f"openvino: {quantized} layers in int8 were asked for, {integers} were compiled")
    wanted = "bf16" if precision == "bf16" else "f32"
    others = ", ".join(f"{count} in {kind}" for kind, count in found.items() if kind != wanted)
    if others:
        raise BackendError(f"openvino: layers in {wanted} were asked for, {others} were compiled")


def _array(tensor: Any) -> np.ndarray:
    data = tensor.data
    return data.view(_BF16) if data.dtype == np.float16 else data


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:300]
