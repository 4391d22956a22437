"""ONNX Runtime as onnxruntime-gpu has it: its own CPU sessions behind a face that claims NVIDIA's providers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import onnxruntime as ort

from regionrt.runtime.backends.onnxruntime import PROVIDERS

CPU, CUDA, TRT = (PROVIDERS[name] for name in ("cpu", "cuda", "tensorrt"))


class Session:
    """A session on the CPU that says where it computes. `loaded`: the providers whose libraries are there."""

    def __init__(self, library: GpuLibrary, path: str, options: Any, providers: list[Any], **rest: Any) -> None:
        library.asked.append(providers)
        assert rest == {"enable_fallback": 0}, "ONNX Runtime would go on on the CPU"
        self._library = library
        self._real = ort.InferenceSession(path, options, providers=[CPU])
        self._names = [name if isinstance(name, str) else name[0] for name in providers]
        self._names = [name for name in self._names if name in library.loaded]
        if library.tells_nodes:
            self.get_provider_graph_assignment_info = self._nodes

    def get_providers(self) -> list[str]:
        return self._names

    def _nodes(self) -> list[Any]:
        parts = self._real.get_provider_graph_assignment_info()
        share = self._names[0] if self._library.computes is None else self._library.computes
        return [SimpleNamespace(ep_name=share, get_nodes=part.get_nodes) for part in parts]

    def disable_fallback(self) -> None:
        self._library.fallback = False

    def __getattr__(self, name: str) -> Any:
        if name.startswith("get_provider"):
            raise AttributeError(name)
        return getattr(self._real, name)


class GpuLibrary:
    """The module onnxruntime of the wheel onnxruntime-gpu."""

    def __init__(self) -> None:
        self.loaded = [TRT, CUDA, CPU]
        self.available = [TRT, CUDA, CPU]
        self.computes: str | None = None
        self.tells_nodes, self.fallback = True, True
        self.asked: list[list[Any]] = []
        self.preloaded = 0

    def get_available_providers(self) -> list[str]:
        return self.available

    def preload_dlls(self) -> None:
        self.preloaded += 1

    def InferenceSession(self, path: str, options: Any, providers: list[Any], **rest: Any) -> Session:  # noqa: N802
        return Session(self, path, options, providers, **rest)

    def __getattr__(self, name: str) -> Any:
        return getattr(ort, name)
