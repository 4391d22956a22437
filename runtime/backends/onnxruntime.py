"""ONNX Runtime on the CPU."""

from __future__ import annotations

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
        try:
            import onnxruntime as ort
        except ImportError as error:
            raise BackendError(f"onnxruntime cannot be imported ({error}): pip install 'regionrt[ort]'") from error
        if threads is not None and threads < 1:
            raise ValueError(f"threads: expected at least 1, got {threads}")
        self.threads = threads or usable_cores()
        options = ort.SessionOptions()
        options.intra_op_num_threads = self.threads
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


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
