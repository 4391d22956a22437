"""Engine libraries on the GPU's machine: which can be imported, and why none of them is measured by this command."""

from __future__ import annotations

import importlib
from collections.abc import Iterator

from .gpu_schema import EngineRow

LIBRARIES = {"TensorRT": "tensorrt", "TensorRT for RTX": "tensorrt_rtx", "ONNX Runtime, CUDA": "onnxruntime"}


def run_engines() -> Iterator[EngineRow]:
    """A row per library; importing one that is broken is a reason too."""
    for name, module in LIBRARIES.items():
        try:
            library = importlib.import_module(module)
        except Exception as error:
            yield EngineRow(name, "", failed=f"cannot be imported: {error}")
            continue
        version = str(getattr(library, "__version__", "unknown"))
        yield EngineRow(name, version, failed=_why_not(module, library))


def _why_not(module: str, library: object) -> str:
    if module == "onnxruntime":
        providers = library.get_available_providers()  # type: ignore[attr-defined]
        if "CUDAExecutionProvider" not in providers:
            return f"this build has no CUDA ({', '.join(providers)}); onnxruntime-gpu has"
    try:
        importlib.import_module("onnx")
    except Exception as error:
        return f"no engine can be built: onnx cannot be imported ({error})"
    return "not measured by this command yet: export a bundle, build it, and use `regionrt bench`"
