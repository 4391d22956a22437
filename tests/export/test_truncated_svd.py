"""Truncated SVD: the best pair of a rank, what it refuses, and the checkpoint that comes of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from regionrt.export import ExportError
from regionrt.export.compress.checkpoint import compress_checkpoint
from regionrt.export.compress.truncated_svd import TruncatedSVD, compress_
from regionrt.train.checkpoint import Checkpoint, module_from_checkpoint
from regionrt.train.models import build_model

LABELS = ("__background__", "disc", "square")
CONFIG = {"backbone": "squeezenet1_1", "size": [64, 64], "channels": 16, "representation": 48}


@pytest.mark.parametrize("shape", [(12, 30), (30, 12), (20, 20)])
def test_the_pair_is_the_nearest_of_its_rank(shape):
    """Eckart-Young: the squared error is the sum of the squared singular values left out."""
    torch.manual_seed(0)
    layer = nn.Linear(*shape)
    pair = TruncatedSVD(5)(layer)
    product = pair[1].weight.detach().double() @ pair[0].weight.detach().double()
    left_out = np.linalg.svd(layer.weight.detach().double().numpy(), compute_uv=False)[5:]
    error = (product - layer.weight.detach().double()).square().sum().item()
    assert error == pytest.approx((left_out**2).sum(), rel=1e-5)
    assert pair[0].bias is None
    torch.testing.assert_close(pair[1].bias, layer.bias)


def test_a_layer_of_low_rank_is_kept_exactly():
    torch.manual_seed(0)
    layer = nn.Linear(40, 30)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(30, 4) @ torch.randn(4, 40))
    x = torch.randn(7, 40)
    torch.testing.assert_close(TruncatedSVD(4)(layer)(x), layer(x), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("rank", [0, -3, 12, 1000])
def test_ranks_that_save_nothing_are_refused(rank):
    with pytest.raises(ExportError, match=r"give 1\.\.11, beyond which SVD adds weights"):
        TruncatedSVD(rank)(nn.Linear(40, 17))


def test_a_layer_without_bias_and_of_another_type():
    pair = TruncatedSVD(2)(nn.Linear(8, 8, bias=False).double())
    assert pair[1].bias is None
    assert pair[0].weight.dtype == pair[1].weight.dtype == torch.float64


def named(**layers: nn.Module) -> nn.Module:
    module = nn.Module()
    for name, layer in layers.items():
        module.add_module(name, layer)
    return module


def test_names_that_fit_no_layer_or_several():
    module = named(a=named(fc=nn.Linear(9, 9)), b=named(fc=nn.Linear(9, 9)), conv=nn.Conv2d(3, 3, 1))
    with pytest.raises(ExportError, match=r"fc=2 is ambiguous: a\.fc, b\.fc"):
        compress_(module, {"fc": 2})
    with pytest.raises(ExportError, match=r"conv=2 names no fully connected layer; the model has a\.fc \(9→9\)"):
        compress_(module, {"conv": 2})


def test_nothing_is_changed_where_one_rank_does_not_fit():
    module = named(a=named(fc=nn.Linear(9, 9)), b=named(fc=nn.Linear(9, 9)))
    with pytest.raises(ExportError):
        compress_(module, {"a.fc": 2, "b.fc": 400})
    assert isinstance(module.a.fc, nn.Linear)


def test_a_compressed_checkpoint_is_a_checkpoint():
    torch.manual_seed(0)
    whole = build_model("faster_rcnn", CONFIG, LABELS)
    checkpoint = Checkpoint("faster_rcnn", CONFIG, LABELS, whole.state_dict())
    small, layers = compress_checkpoint(checkpoint, {"fc6": 12, "fc7": 8})
    assert {(layer.name, layer.rank) for layer in layers} == {
        ("roi_heads.box_head.fc6", 12),
        ("roi_heads.box_head.fc7", 8),
    }
    module = module_from_checkpoint(small)
    fc6 = module.roi_heads.box_head.fc6
    assert [tuple(part.weight.shape) for part in fc6] == [(12, 16 * 49), (48, 12)]
    torch.testing.assert_close(fc6[1].weight @ fc6[0].weight, TruncatedSVD(12)(whole.roi_heads.box_head.fc6)[1].weight
                               @ TruncatedSVD(12)(whole.roi_heads.box_head.fc6)[0].weight)  # fmt: skip
    assert all(0 < layer.energy < 1 and layer.weights_after < layer.weights_before for layer in layers)
    assert isinstance(module_from_checkpoint(checkpoint).roi_heads.box_head.fc6, nn.Linear), "the original is whole"
