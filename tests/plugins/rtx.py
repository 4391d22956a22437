"""A model built by TensorRT for RTX in a process of its own: without a GPU it can build engines, and only that."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import onnx
import pytest

_CHILD = """
import json, sys
import tensorrt_rtx as trt

class Log(trt.ILogger):
    def __init__(self):
        trt.ILogger.__init__(self)
        self.errors = []
    def log(self, severity, message):
        if severity <= trt.ILogger.Severity.ERROR:
            self.errors.append(message)

log = Log()
builder = trt.Builder(log)
network = builder.create_network(0)
parser = trt.OnnxParser(network, log)
if not parser.parse_from_file(sys.argv[1]):
    sys.exit(f"refused: {[parser.get_error(i).desc() for i in range(parser.num_errors)]}")
config = builder.create_builder_config()
config.num_compute_capabilities = 1
config.set_compute_capability(trt.ComputeCapability.SM89, 0)
profiles = json.loads(sys.argv[2])
if profiles:
    profile = builder.create_optimization_profile()
    for name, shapes in profiles.items():
        profile.set_shape(name, *shapes)
    config.add_optimization_profile(profile)
engine = builder.build_serialized_network(network, config)
print(len(bytes(engine)) if engine else f"not built: {log.errors[-3:]}")
"""


def build(model: onnx.ModelProto, folder: Path, profiles: dict[str, list[list[int]]]) -> int:
    """Bytes of the engine. `profiles`: by input that varies its smallest, usual and largest shape."""
    import json

    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed: pip install 'regionrt[rtx]'")
    path = folder / "model.onnx"
    onnx.save(model, path)
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, str(path), json.dumps(profiles)],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0 and done.stdout.strip().isdigit(), (done.stdout[-600:], done.stderr[-1200:])  # noqa: PT018
    return int(done.stdout)
