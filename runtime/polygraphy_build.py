"""An engine through Polygraphy's loaders: network from ONNX, profiles, configuration, timing cache, engine bytes.

What is built is the same as by TensorRT's own calls (`build_child.py`); what differs between TensorRT's versions is
Polygraphy's to know. It is imported here only, and needs neither onnx nor torch.
"""

from __future__ import annotations

import importlib.metadata
import os
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

from .atomic import replace_file
from .build_settings import (
    Built,
    check_profiles,
    hardware_level,
    one_line,
    parse,
    set_capabilities,
    strong_typing,
    take_channels_last,
)
from .errors import BackendError


def polygraphy_version() -> str | None:
    """Of the Polygraphy that is installed; None: none is."""
    try:
        return importlib.metadata.version("polygraphy")
    except importlib.metadata.PackageNotFoundError:
        return None


def build_through_polygraphy(trt: ModuleType, job: dict[str, Any], log: Any, monitor: Any) -> Built:
    """As `build_child` does it with TensorRT's own calls.

    Raises BackendError where the parser refuses the graph, or Polygraphy anything else.
    """
    if job["target"] == "tensorrt-rtx":
        os.environ["POLYGRAPHY_USE_TENSORRT_RTX"] = "1"  # it reads that when it is imported
    try:
        from polygraphy.backend.trt import CreateConfig, EngineBytesFromNetwork, NetworkFromOnnxPath, Profile
        from polygraphy.backend.trt import util as polygraphy_trt
        from polygraphy.exception import PolygraphyException
        from polygraphy.logger import G_LOGGER
    except ImportError as error:
        raise BackendError(
            f"Polygraphy cannot be imported ({one_line(str(error))}): pip install polygraphy, or build "
            "without it (--loader api)"
        ) from error
    G_LOGGER.module_severity = G_LOGGER.CRITICAL  # what it repeats of TensorRT's words, the log has already
    polygraphy_trt.TRT_LOGGER = log  # the one that all of its loaders use

    try:
        builder, network, parser = NetworkFromOnnxPath(job["onnx"], strongly_typed=strong_typing(trt) is not None)()
    except PolygraphyException as error:
        _parse_again(trt, log, job["onnx"])
        raise BackendError(f"Polygraphy refuses {Path(job['onnx']).name}: {one_line(str(error))}") from error
    if network.num_outputs == 0:
        raise BackendError(f"TensorRT's parser refuses {Path(job['onnx']).name}: no network in it")
    take_channels_last(trt, network, job)
    check_profiles(network, job)
    profiles = []
    for shapes in job["profiles"]:
        profile = Profile()
        for name, shape in shapes.items():
            profile.add(name, min=shape["min"], opt=shape["opt"], max=shape["max"])
        profiles.append(profile)
    kept = None if job["timing_cache"] is None else Path(job["timing_cache"])
    measured = Path(job["engine"]).with_name("measured")  # Polygraphy leaves a lock beside it: not beside the user's
    if kept is not None and kept.exists():
        shutil.copyfile(kept, measured)
    limits = None if job["workspace_mib"] is None else {trt.MemoryPoolType.WORKSPACE: job["workspace_mib"] << 20}
    create = CreateConfig(
        profiles=profiles,
        tf32=False,
        profiling_verbosity=trt.ProfilingVerbosity.DETAILED,
        builder_optimization_level=job["optimization_level"],
        memory_pool_limits=limits,
        version_compatible=job["version_compatible"],
        exclude_lean_runtime=job["exclude_lean_runtime"],
        hardware_compatibility_level=hardware_level(trt, job),
        refittable=job["refittable"],
        load_timing_cache=str(measured) if kept is not None and measured.exists() else None,
        progress_monitor=monitor,
    )
    try:
        config = create(builder, network)
    except PolygraphyException as error:
        raise BackendError(
            f"Polygraphy refuses the configuration: {one_line(str(error))}; TensorRT says: {log.last_errors()}"
        ) from error
    set_capabilities(trt, config, job)
    try:
        engine = EngineBytesFromNetwork(
            (builder, network, parser),
            lambda builder, network: config,
            save_timing_cache=None if kept is None else str(measured),
        )()
    except PolygraphyException:
        return Built(network, config, None, (builder, parser))
    if kept is not None:
        with replace_file(kept) as temporary:
            shutil.copyfile(measured, temporary)
    return Built(network, config, bytes(engine), (builder, parser))


def _parse_again(trt: ModuleType, log: Any, path: str) -> None:
    """The parser knows which node it refuses, and Polygraphy keeps the parser to itself."""
    network = trt.Builder(log).create_network()
    parse(trt.OnnxParser(network, log), network, path)
