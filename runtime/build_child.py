"""What runs in the child process of a build: one ONNX file through TensorRT's parser and builder to one engine file.

It reads one line of JSON (a job, see `build.py`) from its standard input and answers on its standard output with lines
of JSON, each an object with one key: `progress` [phase, fraction], `log` [severity, text], and last either `done`
{facts} or `error` text. Standard input stays open as long as the parent lives; when it ends, so does this process.
Both flavours of TensorRT go through the same calls: that for RTX builds without a GPU, full TensorRT needs the GPU.
"""

import contextlib
import importlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from .atomic import replace_file
from .build_settings import (
    Built,
    check_profiles,
    hardware_level,
    known_capabilities,
    one_line,
    parse,
    set_capabilities,
    strong_typing,
    take_channels_last,
)
from .cuda_devices import cuda_devices
from .engine_layers import count_by_kind, parse_layers, prove_precision, work_by_dtype
from .errors import BackendError
from .polygraphy_build import build_through_polygraphy, polygraphy_version

Answer = Callable[..., None]


def main() -> None:
    """Build the job on standard input; the exit status says nothing, the last line of the answer does."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a native library prints must not get between the answers
    lock = threading.Lock()

    def answer(**message: Any) -> None:
        with lock:
            answers.write(json.dumps(message) + "\n")
            answers.flush()

    job = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, args=(Path(job["engine"]),), daemon=True).start()
    try:
        answer(done=build(job, answer))
    except BackendError as error:
        answer(error=str(error))
    except MemoryError:
        answer(error="the build ran out of memory; close other programs or build on a larger machine")
    except OSError as error:
        answer(error=f"the engine could not be written: {error}")
    except Exception as error:  # the bindings raise what they like; here is the border where it becomes one line
        answer(error=f"TensorRT failed: {type(error).__name__}: {one_line(str(error))}")
    os._exit(0)  # native libraries have crashed while they tidied up; the answer is out


def build(job: dict[str, Any], answer: Answer) -> dict[str, Any]:
    """Parse, build, prove the precision, write the engine file; returns the facts for the birth certificate."""
    trt = _load(job)
    log = _logger(trt, answer, job["verbose"])
    started = time.monotonic()
    answer(progress=["parsing the ONNX file", 0.0])
    if job["target"] == "tensorrt":
        trt.init_libnvinfer_plugins(log, "")  # its parser makes RoiAlign a plugin of TensorRT's own
    plugins = _plugins(trt, job)
    way = build_through_polygraphy if job["loader"] == "polygraphy" else _build
    built = way(trt, job, log, _monitor(trt, answer))
    network, engine = built.network, built.engine
    if engine is None:
        raise BackendError(f"TensorRT could not build the engine{_blame(trt, network)}: {log.last_errors()}")
    convolutions = _convolutions(trt, network)
    layers = parse_layers(log.layers or _inspect(trt, log, engine))
    proof = prove_precision(layers, convolutions, job["precision"], job.get("quantized", ()))
    capabilities, devices = _built_for(trt, job["compute_capability"])
    with open(job["engine"], "wb") as file:
        file.write(engine)
        file.flush()
        os.fsync(file.fileno())
    return {
        "version": trt.__version__,
        "loader": f"polygraphy {polygraphy_version()}" if job["loader"] == "polygraphy" else "api",
        "compute_capabilities": capabilities,
        "devices": devices,
        "layer_types": count_by_kind(layers),
        "proof": proof,
        "flops": work_by_dtype(layers, _work(trt, network)),
        "data_dependent_shapes": _data_dependent(trt, network),
        "plugins": [] if plugins is None else plugins.used(),
        "tf32": built.config.get_flag(trt.BuilderFlag.TF32),
        "build_seconds": round(time.monotonic() - started, 2),
        "engine_bytes": len(engine),
    }


def _load(job: dict[str, Any]) -> ModuleType:
    try:
        trt = importlib.import_module(job["module"])
        _ = trt.Builder, trt.OnnxParser, trt.__version__  # a wheel that is a stub imports, and has nothing in it
    except (ImportError, OSError, AttributeError, RuntimeError) as error:
        raise BackendError(
            f"{job['target']} cannot be loaded ({one_line(str(error))}): install it with `{job['get']}`"
        ) from error
    return trt


def _build(trt: ModuleType, job: dict[str, Any], log: Any, monitor: Any) -> Built:
    """By TensorRT's own calls."""
    builder = trt.Builder(log)
    typing = strong_typing(trt)
    network = builder.create_network(0 if typing is None else 1 << int(typing))
    parser = trt.OnnxParser(network, log)  # must outlive the build: it owns the weights
    parse(parser, network, job["onnx"])
    take_channels_last(trt, network, job)
    config = _config(trt, builder, network, job)
    _load_timing_cache(config, job["timing_cache"])
    config.progress_monitor = monitor
    serialized = builder.build_serialized_network(network, config)
    if serialized is not None:
        _keep_timing_cache(config, job["timing_cache"])
    return Built(network, config, None if serialized is None else bytes(serialized), (builder, parser))


def _plugins(trt: ModuleType, job: dict[str, Any]) -> Any:
    """Our plugins, registered, for an ONNX file with their nodes; else None."""
    if job["form"] != "plugin":
        return None
    from .engine_plugins.registration import register_to_build

    return register_to_build(trt, job["hardware_compatibility"])


def _convolutions(trt: ModuleType, network: Any) -> list[str]:
    """ONNX node names of the network's convolutions, as the list of compiled layers will name them."""
    kinds = (trt.LayerType.CONVOLUTION, trt.LayerType.DECONVOLUTION)
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    return [
        layer.metadata.removeprefix("[ONNX Layer: ").removesuffix("]") or layer.name
        for layer in layers
        if layer.type in kinds
    ]


def _work(trt: ModuleType, network: Any) -> dict[str, float]:
    """Multiplications and additions of each convolution and fully connected layer for one image, by its ONNX name.

    Layers whose sizes are not known before the data are left out, but for the first dimension.
    """
    found: dict[str, float] = {}
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type not in (trt.LayerType.CONVOLUTION, trt.LayerType.MATRIX_MULTIPLY):
            continue
        output = [*layer.get_output(0).shape]
        source = [*layer.get_input(0).shape]
        if not output or not source or min([*output[1:], *source[1:]], default=0) < 0:
            continue
        each = source[1] if layer.type == trt.LayerType.CONVOLUTION else source[-1]
        if layer.type == trt.LayerType.CONVOLUTION:
            layer.__class__ = trt.IConvolutionLayer  # the bindings hand out the base class
            for size in layer.kernel_size_nd:
                each *= size
            each /= layer.num_groups
        elements = abs(output[0])
        for size in output[1:]:
            elements *= size
        name = layer.metadata.removeprefix("[ONNX Layer: ").removesuffix("]") or layer.name
        found[name] = found.get(name, 0.0) + 2.0 * elements * each
    return found


def _config(trt: ModuleType, builder: Any, network: Any, job: dict[str, Any]) -> Any:
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.clear_flag(trt.BuilderFlag.TF32)  # on by default; fp32 that multiplies with 10 bits is not what was asked
    if job["optimization_level"] is not None:
        config.builder_optimization_level = job["optimization_level"]
    if job["workspace_mib"] is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, job["workspace_mib"] << 20)
    set_capabilities(trt, config, job)
    _set_flags(trt, config, job)
    check_profiles(network, job)
    for shapes in job["profiles"]:
        profile = builder.create_optimization_profile()
        for name, shape in shapes.items():
            profile.set_shape(name, shape["min"], shape["opt"], shape["max"])
        if config.add_optimization_profile(profile) < 0:
            raise BackendError(f"TensorRT refuses the profile {shapes}: do its sizes fit the ONNX file's inputs?")
    return config


def _set_flags(trt: ModuleType, config: Any, job: dict[str, Any]) -> None:
    flags = {
        "version_compatible": "VERSION_COMPATIBLE",
        "exclude_lean_runtime": "EXCLUDE_LEAN_RUNTIME",
        "refittable": "REFIT",
    }
    for option, flag in flags.items():
        if job[option]:
            config.set_flag(getattr(trt.BuilderFlag, flag))
    level = hardware_level(trt, job)
    if level is not None:
        config.hardware_compatibility_level = level


def _load_timing_cache(config: Any, path: str | None) -> None:
    """What was measured before; a cache of another GPU or version is refused by TensorRT, and begun anew."""
    if path is None:
        return
    known = Path(path).read_bytes() if Path(path).exists() else b""
    for data in (known, b"") if known else (b"",):
        cache = config.create_timing_cache(data)
        if cache is not None and config.set_timing_cache(cache, False):
            return
    raise BackendError(f"{path}: TensorRT takes no timing cache here; leave --timing-cache out")


def _keep_timing_cache(config: Any, path: str | None) -> None:
    if path is not None:
        with replace_file(Path(path)) as temporary:
            temporary.write_bytes(bytes(config.get_timing_cache().serialize()))


def _data_dependent(trt: ModuleType, network: Any) -> bool:
    """Whether sizes or the number of steps inside depend on the data: such an engine is no CUDA graph."""
    kinds = {getattr(trt.LayerType, name, None) for name in ("NMS", "NON_ZERO", "TRIP_LIMIT", "CONDITION")}
    return any(network.get_layer(index).type in kinds for index in range(network.num_layers))


def _built_for(trt: ModuleType, asked: list[str]) -> tuple[list[str], list[str]]:
    """(compute capabilities, names of this machine's GPUs). Without a choice RTX builds for 8.0 and all newer."""
    try:
        devices = cuda_devices()
    except OSError:
        devices = []
    known = known_capabilities(trt)
    default = [name for name in known if float(name) >= 8.0] if known else [d.compute_capability for d in devices[:1]]
    return asked or default, [device.name for device in devices]


def _blame(trt: ModuleType, network: Any) -> str:
    """Names ops that TensorRT parses but may have no implementation for: its own message names a layer only."""
    suspects = {"NMS": "NonMaxSuppression", "NON_ZERO": "NonZero"}
    kinds = {getattr(trt.LayerType, name): op for name, op in suspects.items() if hasattr(trt.LayerType, name)}
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    blamed = [f"{kinds[layer.type]} (layer {layer.name!r})" for layer in layers if layer.type in kinds]
    return f"; the graph holds {', '.join(blamed[:3])}, which it may not implement" if blamed else ""


def _inspect(trt: ModuleType, log: Any, engine: bytes) -> str:
    """The list of layers from a deserialised engine, where the builder's log did not hold it; needs the GPU."""
    loaded = trt.Runtime(log).deserialize_cuda_engine(engine)
    if loaded is None:
        raise BackendError(
            f"no proof of the precision built: the engine cannot be read back on this machine: {log.last_errors()}"
        )
    return loaded.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.ONELINE)


def _logger(trt: ModuleType, answer: Answer, verbose: bool) -> Any:
    class Log(trt.ILogger):  # type: ignore[name-defined]
        """Keeps the list of layers and the last errors; passes errors on at once, so that they outlive an abort."""

        def __init__(self) -> None:
            super().__init__()
            self.layers = ""
            self.errors: list[str] = []

        def log(self, severity: Any, text: str) -> None:
            if text.startswith("Layers:"):
                self.layers = text
                return
            level = str(severity).rpartition(".")[2]
            if level in ("ERROR", "INTERNAL_ERROR") and "Thread context has not been set" not in text:
                self.errors.append(one_line(text))
                answer(log=[level, one_line(text)])
            elif verbose and level != "VERBOSE":
                answer(log=[level, text])

        def last_errors(self) -> str:
            return "; ".join(self.errors[-3:]) or "it gave no reason"

    return Log()


def _monitor(trt: ModuleType, answer: Answer) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[name-defined]
        """Turns TensorRT's nested phases into one fraction that never falls."""

        def __init__(self) -> None:
            super().__init__()
            self.open: list[list[Any]] = []  # [name, steps, done], outermost first
            self.told = ("", 0.0)

        def phase_start(self, name: str, parent: str | None, steps: int) -> None:
            self.open.append([name, max(steps, 1), 0])
            self.tell(name)

        def step_complete(self, name: str, step: int) -> bool:
            for phase in self.open:
                if phase[0] == name:
                    phase[2] = step + 1
            self.tell(name)
            return True

        def phase_finish(self, name: str) -> None:
            self.open = [phase for phase in self.open if phase[0] != name]

        def tell(self, name: str) -> None:
            fraction, width = 0.0, 1.0
            for _, steps, done in self.open:
                width /= steps
                fraction += min(done, steps) * width
            fraction = max(self.told[1], round(min(fraction, 1.0), 2))
            if self.told != (name, fraction):
                self.told = (name, fraction)
                answer(progress=[name, fraction])

    return Monitor()


def _end_with_parent(engine: Path) -> None:
    while sys.stdin.read(1):
        pass
    with contextlib.suppress(OSError):
        engine.unlink()
    os._exit(1)


if __name__ == "__main__":
    main()
