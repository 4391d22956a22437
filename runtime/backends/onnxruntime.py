"""ONNX Runtime on the CPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from regionrt.runtime.errors import BackendError
from regionrt.runtime.machine import usable_cores

INPUTS = {"images": "tensor(uint8)", "image_sizes": "tensor(int32)"}


class OnnxRuntimeRunner:
    """Runs an ONNX file that follows the contract of `Runner`. One session serves all threads.

    Args:
        path: the .onnx file; its external data stands beside it.
        threads: for the arithmetic inside one node; None takes one per usable physical core.
        spin: threads wait busily between the nodes of one run, which saves a wake-up per node; between runs they rest
            in any case. False: they rest always, for machines that share their cores with other work.
        arena: keep freed memory for the next run. False gives it back, and is slower.

    Raises:
        BackendError: the library is missing, or refuses the file.
    """

    name = "onnxruntime"

    def __init__(self, path: str | Path, threads: int | None = None, spin: bool = True, arena: bool = True) -> None:
        self.threads, session = _open(path, threads, spin, arena)
        found = {node.name: node.type for node in session.get_inputs()}
        if found != INPUTS:
            raise BackendError(f"{path}: expected the inputs {INPUTS}, found {found}; this is no detector of ours")
        self._outputs = [node.name for node in session.get_outputs()]
        self._session: Any = session

    def run(self, images: np.ndarray, image_sizes: np.ndarray) -> dict[str, np.ndarray]:
        session = self._session  # our own reference: `close` in another thread cannot take it away in the middle
        if session is None:
            raise BackendError("onnxruntime: this predictor is closed; load the bundle again")
        try:
            values = session.run(self._outputs, {"images": images, "image_sizes": image_sizes})
        except Exception as error:
            raise BackendError(
                f"onnxruntime: failed on images {list(images.shape)} {images.dtype}: {_first_line(error)}"
            ) from error
        return dict(zip(self._outputs, values, strict=True))

    def close(self) -> None:
        self._session = None


class OnnxRuntimeStages:
    """Opens dense stages (`StageEngine`), in float32. Arguments as of `OnnxRuntimeRunner`."""

    name = "onnxruntime"

    def __init__(self, threads: int | None = None) -> None:
        self.threads = threads or usable_cores()

    def open(self, path: Path, stage: Mapping[str, Any]) -> OnnxRuntimeStage:
        return OnnxRuntimeStage(_open(path, self.threads, spin=True, arena=True)[1], stage["outputs"])


class OnnxRuntimeStage:
    """A dense stage: a session, which all threads share. Outputs are new arrays at every run."""

    feature_type = np.dtype(np.float32)

    def __init__(self, session: Any, outputs: Sequence[str]) -> None:
        self._session = session
        self._outputs = list(outputs)

    def session(self) -> OnnxRuntimeStage:
        return self

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        try:
            return dict(zip(self._outputs, self._session.run(self._outputs, dict(feeds)), strict=True))
        except Exception as error:
            shapes = {name: list(array.shape) for name, array in feeds.items()}
            raise BackendError(f"onnxruntime: failed on {shapes}: {_first_line(error)}") from error


def _open(path: str | Path, threads: int | None, spin: bool, arena: bool) -> tuple[int, Any]:
    """Number of threads and session. BackendError where the library is missing or refuses the file."""
    try:
        import onnxruntime as ort
    except ImportError as error:
        raise BackendError(f"onnxruntime cannot be imported ({error}): pip install 'regionrt[ort]'") from error
    if threads is not None and threads < 1:
        raise ValueError(f"threads: expected at least 1, got {threads}")
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or usable_cores()
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.enable_cpu_mem_arena = arena
    options.log_severity_level = 3  # errors only: warnings about our functions' shapes say nothing to a user
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spin else "0")
    options.add_session_config_entry("session.force_spinning_stop", "1")
    try:
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions have no common base
        raise BackendError(f"{path}: ONNX Runtime {ort.__version__} refuses it: {_first_line(error)}") from error
    return options.intra_op_num_threads, session


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
