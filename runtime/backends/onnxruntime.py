"""ONNX Runtime: on the CPU, and on an NVIDIA GPU by its providers for CUDA and TensorRT, where they are asked for.

ONNX Runtime itself goes on on the CPU where a provider cannot be loaded, or fails. Here that is an error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from regionrt.runtime.errors import BackendError
from regionrt.runtime.inputs import known_inputs, request_of
from regionrt.runtime.machine import usable_cores, why_no_driver

_DTYPES = {f"tensor({name})": np.dtype(kind) for name, kind in (("uint8", "u1"), ("int32", "i4"), ("float", "f4"))}
PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}
_OPTIONS = {"cuda": {"use_tf32": "0"}}  # fp32 is fp32
_RECORD = "session.record_ep_graph_assignment_info"


class OnnxRuntimeRunner:
    """Runs an ONNX file that follows the contract of `Runner`. One session serves all threads.

    Args:
        path: the .onnx file; its external data stands beside it.
        threads: for the arithmetic inside one node; None takes one per usable physical core.
        spin: threads wait busily between the nodes of one run, which saves a wake-up per node; between runs they rest
            in any case. False: they rest always, for machines that share their cores with other work.
        arena: keep freed memory for the next run. False gives it back, and is slower.
        provider: a name of PROVIDERS, or "auto": CUDA where the library has it and there is a driver, else the CPU.
            Nodes that the GPU's provider has no kernel for run on the CPU; `about` counts them.

    Raises:
        BackendError: the library is missing, refuses the file, or does not compute with the provider.
    """

    name = "onnxruntime"

    def __init__(
        self, path: str | Path, threads: int | None = None, spin: bool = True, arena: bool = True,
        provider: str = "cpu",
    ) -> None:  # fmt: skip
        self.threads, session, self.about = _open(path, threads, spin, arena, provider)
        found = {node.name: _DTYPES.get(node.type, node.type) for node in session.get_inputs()}
        self.inputs = known_inputs(found, str(path))
        self._outputs = [node.name for node in session.get_outputs()]
        self._session: Any = session

    def run(self, images: np.ndarray, image_sizes: np.ndarray, **proposals: np.ndarray) -> dict[str, np.ndarray]:
        session = self._session  # our own reference: `close` in another thread cannot take it away in the middle
        if session is None:
            raise BackendError("onnxruntime: this predictor is closed; load the bundle again")
        try:
            values = session.run(self._outputs, request_of(self.inputs, images, image_sizes, proposals))
        except BackendError as error:
            raise BackendError(f"onnxruntime: {error}") from error
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

    def __init__(self, threads: int | None = None, provider: str = "cpu") -> None:
        self.threads = threads or usable_cores()
        self.about: dict[str, Any] = {}
        self._provider = provider

    def open(self, path: Path, stage: Mapping[str, Any]) -> OnnxRuntimeStage:
        _, session, about = _open(path, self.threads, True, True, self._provider)
        nodes = self.about.get("nodes", {})
        for name, count in about.pop("nodes", {}).items():
            nodes[name] = nodes.get(name, 0) + count
        self.about = about | ({"nodes": nodes} if nodes else {})
        return OnnxRuntimeStage(session, stage["outputs"])


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


def _open(
    path: str | Path, threads: int | None, spin: bool, arena: bool, provider: str
) -> tuple[int, Any, dict[str, Any]]:
    """Number of threads, session, what it computes with. BackendError where the library is missing or refuses."""
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
    chosen = _chosen(ort, provider)
    wanted: list[Any] = [PROVIDERS["cpu"]]
    if chosen != "cpu":
        if hasattr(ort, "preload_dlls"):
            ort.preload_dlls()  # CUDA and cuDNN from their wheels, where those are installed
        options.add_session_config_entry(_RECORD, "1")
        higher = ("tensorrt", "cuda") if chosen == "tensorrt" else ("cuda",)
        wanted = [(PROVIDERS[name], _OPTIONS.get(name, {})) for name in higher] + wanted
    try:
        session = ort.InferenceSession(str(path), options, providers=wanted, enable_fallback=0)
        session.disable_fallback()  # versions that do not know the argument
    except Exception as error:  # its exceptions have no common base
        raise BackendError(f"{path}: ONNX Runtime {ort.__version__} refuses it: {_first_line(error)}") from error
    return options.intra_op_num_threads, session, {"provider": chosen, **_computes_with(path, session, chosen)}


def _chosen(ort: Any, provider: str) -> str:
    """A name of PROVIDERS. BackendError where the library or the machine has not what is asked for."""
    if provider not in (*PROVIDERS, "auto"):
        raise BackendError(f"provider {provider!r}: expected {', '.join(PROVIDERS)} or auto")
    has = ort.get_available_providers()
    if provider == "auto":
        return "cuda" if PROVIDERS["cuda"] in has and why_no_driver() is None else "cpu"
    if PROVIDERS[provider] not in has:
        raise BackendError(
            f"ONNX Runtime {ort.__version__} has no {PROVIDERS[provider]}, it has {', '.join(has)}: pip uninstall "
            "onnxruntime, then pip install 'regionrt[ort-gpu]'"
        )
    no_driver = None if provider == "cpu" else why_no_driver()
    if no_driver is not None:
        raise BackendError(f"{PROVIDERS[provider]}: {no_driver}")
    return provider


def _computes_with(path: str | Path, session: Any, chosen: str) -> dict[str, Any]:
    """How many nodes run where, as far as the library tells. BackendError where what was chosen runs none."""
    if chosen == "cpu":
        return {}
    name = PROVIDERS[chosen]
    nodes: dict[str, int] = {}
    if hasattr(session, "get_provider_graph_assignment_info"):  # from 1.24 on
        for part in session.get_provider_graph_assignment_info():
            nodes[part.ep_name] = nodes.get(part.ep_name, 0) + len(part.get_nodes())
    if name not in session.get_providers() or (nodes and not nodes.get(name)):
        instead = ", ".join(nodes or session.get_providers())
        raise BackendError(
            f"{path}: asked for {name}, and ONNX Runtime would compute with {instead} alone: its message above says "
            "what it could not load (CUDA, cuDNN or TensorRT of the version that it was built with, such as "
            "pip install 'onnxruntime-gpu[cuda,cudnn]' brings); or ask for provider cpu"
        )
    return {"nodes": nodes} if nodes else {}


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
