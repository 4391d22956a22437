"""Which engine libraries this machine has, and on which devices they work: what `regionrt doctor` shows.

A broken installation can take down the process that imports it, so each library is asked in a process of its own;
torch, which `runtime` never imports, is only looked up among the installed distributions.
"""

import importlib
import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from .build_settings import known_capabilities
from .child import module_command
from .cuda_devices import cuda_devices
from .machine import why_no_driver

_TIMEOUT_S = 120.0  # seconds on a machine that has better things to do


@dataclass(frozen=True)
class BackendInfo:
    """What one engine library can do here. Whether it runs a given artefact is `Manifest.preflight`'s to say."""

    name: str
    version: str | None
    """None: not installed, or not loadable."""
    devices: tuple[str, ...]
    """Execution providers of ONNX Runtime, devices of OpenVINO, ncnn's CPU, else GPUs with their compute capability."""
    usable: bool
    """The library loads and finds a device that it can execute on."""
    why_not: str | None
    get: str
    """The command that installs it."""
    builds: bool = False
    """Engines can be built here (TensorRT for RTX needs no GPU for that)."""


def backends() -> list[BackendInfo]:
    """All backends of RegionRT, in a fixed order. Takes about two seconds: the libraries are loaded side by side."""
    running = {name: _start(name) for name, (module, _, _) in _LIBRARIES.items() if find_spec(module) is not None}
    return [_listen(name, running.get(name)) for name in _LIBRARIES] + [_torch()]


def _start(name: str) -> subprocess.Popen[bytes]:
    command, environment = module_command("devices")
    return subprocess.Popen(
        [*command, name],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=tempfile.gettempdir(),
        env=environment,
    )


def _listen(name: str, child: "subprocess.Popen[bytes] | None") -> BackendInfo:
    get = _LIBRARIES[name][2]
    if child is None:
        return BackendInfo(name, None, (), False, "not installed", get)
    try:
        output, _ = child.communicate(timeout=_TIMEOUT_S)
        answer = json.loads(output.decode(errors="replace").strip().rpartition("\n")[2])
        return BackendInfo(
            name,
            answer["version"],
            tuple(answer["devices"]),
            answer["why_not"] is None,
            answer["why_not"],
            get,
            answer["builds"],
        )
    except subprocess.TimeoutExpired:
        child.kill()
        child.communicate()
        return BackendInfo(name, None, (), False, f"loading it took longer than {_TIMEOUT_S:g} s", get)
    except (ValueError, KeyError, TypeError):
        return BackendInfo(name, None, (), False, f"loading it ended its process (status {child.returncode})", get)


def _torch() -> BackendInfo:
    get = 'pip install "regionrt[train]"'
    try:
        version = importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        return BackendInfo("torch", None, (), False, "not installed", get)
    return BackendInfo("torch", version, ("CPU",), True, None, get)


def _ask(name: str) -> dict[str, Any]:
    """In the child: load the library, look for devices."""
    module, look, _ = _LIBRARIES[name]
    answer: dict[str, Any] = {"version": None, "devices": [], "why_not": None, "builds": False}
    try:
        library = importlib.import_module(module)
        answer |= {"version": library.__version__} | look(library)
    except Exception as error:  # anything that a broken installation raises is the answer
        answer["why_not"] = f"cannot be loaded: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return answer


def _onnxruntime(library: Any) -> dict[str, Any]:
    providers = [name for name in library.get_available_providers() if not name.startswith("Azure")]  # a remote service
    no_driver = why_no_driver()
    if no_driver is not None:  # the library names what it was built with
        nvidias = ("CUDA", "Tensorrt", "NvTensorRTRTX")
        providers = [f"{name} ({no_driver})" if name.startswith(nvidias) else name for name in providers]
    return {"devices": providers, "why_not": None if providers else "it has no execution provider"}


def _openvino(library: Any) -> dict[str, Any]:
    core = library.Core()
    devices = [
        f"{device} (computes in bf16)" if "BF16" in core.get_property(device, "OPTIMIZATION_CAPABILITIES") else device
        for device in core.available_devices
    ]
    return {"devices": devices, "why_not": None if devices else "it finds no device"}


def _ncnn(library: Any) -> dict[str, Any]:
    _ = library.Net, library.DataReader
    return {"devices": ["CPU"], "why_not": None}


def _tensorrt(library: Any) -> dict[str, Any]:
    _ = library.Builder, library.Runtime  # a wheel that is a stub imports, and has nothing in it
    known = known_capabilities(library)
    answer: dict[str, Any] = {"devices": [], "why_not": why_no_driver()}
    if answer["why_not"] is None:
        try:
            devices = cuda_devices()
        except OSError as error:
            answer["why_not"] = str(error)
        else:
            answer["devices"] = [
                f"{device.name} (compute capability {device.compute_capability})" for device in devices
            ]
            if not any(not known or device.compute_capability in known for device in devices):
                answer["why_not"] = (
                    f"no GPU that it knows; it knows compute capability {', '.join(known) or 'of any GPU'}"
                )
    answer["builds"] = bool(known) or answer["why_not"] is None
    return answer


_LIBRARIES: dict[str, tuple[str, Callable[[Any], dict[str, Any]], str]] = {
    "onnxruntime": ("onnxruntime", _onnxruntime, 'pip install "regionrt[ort]"'),
    "openvino": ("openvino", _openvino, 'pip install "regionrt[openvino]"'),
    "ncnn": ("ncnn", _ncnn, 'pip install "regionrt[ncnn]"'),
    "tensorrt": ("tensorrt", _tensorrt, 'pip install "regionrt[tensorrt]"'),
    "tensorrt-rtx": ("tensorrt_rtx", _tensorrt, 'pip install "regionrt[rtx]"'),
}


if __name__ == "__main__":
    print("\n" + json.dumps(_ask(sys.argv[1])), flush=True)
    os._exit(0)  # what a library does while it tidies up is not asked
