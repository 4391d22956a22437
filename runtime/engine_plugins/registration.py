"""Our plugins in TensorRT's registry: before a network with their nodes is parsed, or such an engine is loaded."""

from __future__ import annotations

import ctypes
import hashlib
import threading
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from regionrt.runtime.backends.cuda import Cuda, open_cuda
from regionrt.runtime.errors import BackendError
from regionrt.runtime.gpu.kernels import Kernels, compiled, ptx_of, source_of

from . import nms, python_v3, quick, roi_align
from .declaration import EnginePlugin

PLUGINS: Mapping[str, EnginePlugin] = {plugin.name: plugin for op in (roi_align, nms) for plugin in op.PLUGINS}
"""By the name of their node."""
QUICK, IN_PROCESS = "quickly deployable", "IPluginV3 in Python"
"""Kinds: the kernel travels in the engine, or this process launches it."""
LIBRARY = Path(__file__).resolve().parent.parent / "native" / "libregionrt_tensorrt.so"
"""The same plugins in C++, where `make plugins-so` has built them: an engine cannot tell one from the other."""


class Registration:
    """The plugins of one TensorRT library in this process, and which of them an engine asked for."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._used: dict[str, EnginePlugin] = {}
        self._creators: list[Any] = []  # TensorRT keeps pointers to them

    def note(self, plugin: EnginePlugin) -> None:
        self._used[plugin.name] = plugin

    def keep(self, creator: Any) -> None:
        self._creators.append(creator)

    def used(self) -> list[dict[str, str]]:
        """For the birth certificate: name, namespace, version, kind, op, and a hash of each one's sources."""
        return [
            {
                "name": name,
                "namespace": plugin.namespace,
                "version": plugin.version,
                "kind": self.kind,
                "op": plugin.op,
                "sha256": sources_sha256(plugin.op),
            }
            for name, plugin in sorted(self._used.items())
        ]


def kind_for(trt: Any) -> str:
    """Which kind the library `trt` takes. BackendError for one that takes neither."""
    if hasattr(trt, "IPluginV3QuickAOTBuild") and find_spec(f"{trt.__name__}.plugin") is not None:
        return QUICK
    if hasattr(trt, "IPluginV3OneBuild"):
        return IN_PROCESS
    raise BackendError(
        f"{trt.__name__} {trt.__version__} has no plugins of version 3: use TensorRT 10.0 or newer, or build from the "
        "portable form (--ops portable)"
    )


def register_to_build(trt: Any, hardware_compatibility: str | None = None) -> Registration:
    """Register all plugins, once in a process, so that the parser finds them.

    Full TensorRT of version 10.9 or newer compiles their kernels for this machine's GPU. BackendError: the library
    takes no plugins, or has others of these names.
    """
    registration = Registration(kind_for(trt))
    if registration.kind == QUICK:
        quick.register(trt, tuple(PLUGINS.values()), _PtxForThisGpu(hardware_compatibility), registration.note)
    else:
        for plugin in PLUGINS.values():
            _register(trt, plugin, _Launcher(), registration)
    return registration


class _PtxForThisGpu:
    """The kernels of an op, as PTX for the GPU that the engine is built on, compiled once."""

    def __init__(self, hardware_compatibility: str | None) -> None:
        self._oldest = "8.0" if hardware_compatibility == "ampere_plus" else None
        self._known: dict[str, str] = {}

    def __call__(self, op: str) -> str:
        if op not in self._known:
            cuda = open_cuda()
            self._known[op] = ptx_of(op, self._oldest or cuda.compute_capability, cuda.driver_version)
        return self._known[op]


_loaded: dict[str, Registration] = {}
_lock = threading.Lock()


def register_to_load(trt: Any, needed: Sequence[Mapping[str, Any]], cuda: Cuda) -> None:
    """Register the plugins that an engine's birth certificate names, where this process has to launch them.

    Our C++ library does it where it was built; else they are written in Python and their kernels compiled now, so that
    what is missing for it is said now. Plugins of these names that are registered already serve.
    BackendError: a plugin that is not here, a library that cannot be loaded, no compiler.
    """
    why = why_not_here(needed)
    if why is not None:
        raise BackendError(why)
    names = [entry["name"] for entry in needed if entry.get("kind") == IN_PROCESS]
    with _lock:
        registration = _loaded.setdefault(trt.__name__, Registration(IN_PROCESS))
        missing = _missing(trt, names)
        if missing and LIBRARY.is_file():
            _load_library(trt)
            missing = _missing(trt, names)
        if missing:
            ops = {plugin.op for plugin in missing}
            images = {op: compiled(op, cuda.compute_capability, cuda.driver_version) for op in ops}
            launcher = _Launcher(Kernels(cuda, images.__getitem__))
            for plugin in missing:
                _register(trt, plugin, launcher, registration)


def _missing(trt: Any, names: Sequence[str]) -> list[EnginePlugin]:
    """Those of the plugins that the registry does not have."""
    registry = trt.get_plugin_registry()
    plugins = [PLUGINS[name] for name in names]
    return [each for each in plugins if registry.get_creator(each.name, each.version, each.namespace) is None]


def _load_library(trt: Any) -> None:
    try:
        ctypes.CDLL(str(LIBRARY))  # says why it cannot be loaded; TensorRT does not
        loaded = trt.get_plugin_registry().load_library(str(LIBRARY))
    except (OSError, RuntimeError) as error:
        why = " ".join(str(error).split())[:300]
    else:
        if loaded is not None:
            return
        why = f"{trt.__name__} {trt.__version__} refuses it"
    raise BackendError(
        f"{LIBRARY} cannot be loaded ({why}): build it on this machine with `make plugins-so`, or remove it, and the "
        "plugins are run from Python"
    )


def why_not_here(needed: Sequence[Mapping[str, Any]]) -> str | None:
    """What keeps this version of regionrt from running an engine with these plugins (of a birth certificate)."""
    told = []
    for entry in needed if isinstance(needed, Sequence) else [needed]:
        if not isinstance(entry, Mapping):
            told.append(f"its manifest does not say which plugins it needs: {str(entry)[:80]!r}")
            continue
        name, version = entry.get("name"), entry.get("version")
        if entry.get("kind") == QUICK:
            continue  # it is inside the engine
        mine = PLUGINS.get(str(name))
        if entry.get("kind") != IN_PROCESS or mine is None or entry.get("namespace") != mine.namespace:
            told.append(f"it needs the plugin {entry.get('namespace')}::{name}, which this version of regionrt lacks")
        elif version != mine.version:
            told.append(f"it needs version {version} of the plugin {name}, this regionrt has version {mine.version}")
    return "; ".join(told) or None


def _register(trt: Any, plugin: EnginePlugin, launcher: _Launcher, registration: Registration) -> None:
    creator = python_v3.creator(trt, plugin, launcher, registration.note)
    if not trt.get_plugin_registry().register_creator(creator, plugin.namespace):
        raise BackendError(
            f"{trt.__name__} {trt.__version__} does not take the plugin {plugin.namespace}::{plugin.name} version "
            f"{plugin.version}: is another library with plugins of this name loaded?"
        )
    registration.keep(creator)


class _Launcher:
    """Launches kernels on this process's GPU, which is looked for when the first is: a build may do without."""

    def __init__(self, kernels: Kernels | None = None) -> None:
        self._kernels = kernels

    def _open(self) -> Kernels:
        if self._kernels is None:
            self._kernels = Kernels(open_cuda())
        return self._kernels

    def prepare(self, op: str, kernel: str) -> None:
        self._open().function(op, kernel)

    def launch(self, op: str, kernel: str, grid: Sequence[int], block: int, arguments: list[Any], stream: int) -> None:
        kernels = self._open()
        if all(grid):  # CUDA refuses an empty one
            kernels.cuda.launch(kernels.function(op, kernel), grid, block, arguments, stream)


@cache
def sources_sha256(op: str) -> str:
    """Hash of what a plugin of `op` is made of: its declaration and its kernels' source."""
    source, flags = source_of(op)
    declaration = Path(__file__).with_name(f"{op}.py").read_text(encoding="utf-8")
    return hashlib.sha256(repr((declaration, source, flags)).encode()).hexdigest()
