"""Lean inference: a bundle, and NumPy, Pillow and one engine library to run it. `load` is the way in."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .bundle import Artifact, Manifest
    from .errors import BackendError, BundleError, ImageError, OutputError, ProposalError, RegionRTError
    from .image import Canvas, read_image
    from .loading import load
    from .predictor import Predictor
    from .results import Detections
    from .selective_search import SelectiveSearch
    from .semantic import SemanticMap
    from .tuning import autotune

__all__ = [
    "Artifact",
    "BackendError",
    "BundleError",
    "Canvas",
    "Detections",
    "ImageError",
    "Manifest",
    "OutputError",
    "Predictor",
    "ProposalError",
    "RegionRTError",
    "SelectiveSearch",
    "SemanticMap",
    "autotune",
    "load",
    "read_image",
]

_HOMES = {
    "Artifact": "bundle",
    "BackendError": "errors",
    "BundleError": "errors",
    "Canvas": "image",
    "Detections": "results",
    "ImageError": "errors",
    "Manifest": "bundle",
    "OutputError": "errors",
    "Predictor": "predictor",
    "ProposalError": "errors",
    "RegionRTError": "errors",
    "SelectiveSearch": "selective_search",
    "SemanticMap": "semantic",
    "autotune": "tuning",
    "load": "loading",
    "read_image": "image",
}


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used: `import regionrt.runtime` itself costs no NumPy and no Pillow."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
