"""A net that unpools, through torch's exporter: one node for each pooling and unpooling, right at every size."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from torch import nn

from regionrt.export.passes.lower import lower
from regionrt.export.to_onnx import _translation
from regionrt.plugins.max_unpool.torch_op import max_pool_argmax, max_unpool
from regionrt.plugins.ops import DOMAIN, OPS, OPSET


class ThereAndBack(nn.Module):
    """Two poolings with a convolution between them, and the way back (a SegNet of two levels)."""

    def __init__(self, ceil_mode: bool):
        super().__init__()
        self.ceil_mode = ceil_mode
        self.first, self.second, self.last = (nn.Conv2d(i, o, 3, padding=1) for i, o in ((3, 4), (4, 4), (4, 2)))

    def forward(self, images):
        first = self.first(images).relu()
        x, first_places = max_pool_argmax(first, 2, 2, self.ceil_mode)
        second = self.second(x)
        x, second_places = max_pool_argmax(second, 2, 2, self.ceil_mode)
        x = max_unpool(x * 2, second_places, second, 2, 2)
        return self.last(max_unpool(x, first_places, first, 2, 2))


def exported(module: nn.Module, dynamic: bool) -> ir.Model:
    names = [torch.export.Dim(name, min=2, max=64) for name in ("batch", "rows", "columns")]
    model = torch.onnx.export(
        module,
        (torch.zeros(2, 3, 21, 26),),
        dynamo=True,
        opset_version=OPSET,
        input_names=["images"],
        dynamic_shapes=({0: names[0], 2: names[1], 3: names[2]} if dynamic else {0: names[0]},),
        custom_translation_table={op.torch_op._opoverload: _translation(op) for op in OPS.values()},
        verbose=False,
    ).model
    model.ir_version = 10
    return model


@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize("dynamic", [False, True])
def test_a_net_that_unpools(dynamic, ceil_mode):
    torch.manual_seed(0)
    module = ThereAndBack(ceil_mode).eval()
    model = exported(module, dynamic)
    ours = [node.op_type for node in model.graph if node.domain == DOMAIN]
    assert ours == ["RegionMaxPool"] * 2 + ["RegionMaxUnpool"] * 2
    for form in ("native", "portable"):
        session = onnxruntime.InferenceSession(
            ir.to_proto(lower(model, form)).SerializeToString(), providers=["CPUExecutionProvider"]
        )
        for height, width in [(21, 26), (20, 27), (22, 25), (7, 5)] if dynamic else [(21, 26)]:
            images = torch.randn(3, 3, height, width)
            with torch.no_grad():
                expected = module(images).numpy()
            (found,) = session.run(None, {"images": images.numpy()})
            assert found.shape == (3, 2, height, width)
            np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max(), rtol=0)  # fp32 sums


BUILD = """
import sys
import tensorrt_rtx as trt

log = trt.Logger(trt.Logger.ERROR)
builder = trt.Builder(log)
network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
parser = trt.OnnxParser(network, log)
if not parser.parse_from_file(sys.argv[1]):
    sys.exit("; ".join(parser.get_error(i).desc() for i in range(parser.num_errors)))
config = builder.create_builder_config()
profile = builder.create_optimization_profile()
least, most = ((4, 4), (64, 64)) if network.get_input(0).shape[2] == -1 else ((21, 26), (21, 26))
profile.set_shape("images", (1, 3, *least), (2, 3, 21, 26), (4, 3, *most))
config.add_optimization_profile(profile)
engine = builder.build_serialized_network(network, config)
sys.exit("no engine" if engine is None else 0)
"""


@pytest.mark.slow
@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize("dynamic", [False, True])
def test_an_engine_is_built_of_it(dynamic, ceil_mode, tmp_path):
    """In a process of its own: the library may abort."""
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed: pip install 'regionrt[rtx]'")
    model = lower(exported(ThereAndBack(ceil_mode).eval(), dynamic), "portable")
    ir.save(model, tmp_path / "net.onnx")
    done = subprocess.run(
        [sys.executable, "-c", BUILD, str(tmp_path / "net.onnx")],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
