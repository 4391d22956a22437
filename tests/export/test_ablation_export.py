"""Faster R-CNN as in its paper, and Mask R-CNN's ablations, as bundles: every form equals eager, engines build."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from tiny_detectors import NOTHING, photos
from torch import nn

from regionrt.export import ExportError, ExportOptions, export_bundle
from regionrt.export.exportable import check_supported
from regionrt.export.verify import verify
from regionrt.runtime.bundle import Manifest
from regionrt.train.models import build_model
from regionrt.train.models.mask_heads import SoftmaxMaskHeads
from regionrt.train.models.region_pool import RegionPool

LABELS = ("__background__", "disc", "square")
TINY = {
    "backbone": "squeezenet1_1", "channels": 16, "size": [96, 128], "min_size": None, "max_size": None,
    "representation": 24, "anchor_sizes": [16, 32, 64], "proposals": 40, "proposal_candidates": 100, "detections": 10,
    "score": 0.35,
}  # fmt: skip
NETS = {
    "original": ("faster_rcnn_original", {}, {"RegionRoiPool": 1}),
    "RoIPool, softmax": ("mask_rcnn", {"pool": "max", "mask_loss": "softmax", "mask_layers": [8]}, {"RegionRoiPool": 2}),
    "maximum, MLP": (
        "mask_rcnn", {"pool": "align_max", "mask_head": "mlp", "mask_layers": [12, 8]}, {"RegionRoiAlign": 2},
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Made:
    """A module and the bundle made of it. Tests leave both as they are."""

    module: nn.Module
    bundle: Path
    pools: dict[str, int]


def tiny(name: str, config: dict) -> nn.Module:
    """Weights with which scores are far from ties."""
    torch.manual_seed(0)
    module = build_model(name, TINY | config, LABELS)
    with torch.no_grad():
        for predictor, factor in (
            (module.roi_heads.box_predictor.cls_score, 20), (module.roi_heads.box_predictor.bbox_pred, 5),
            (module.rpn.head.cls_logits, 20), (module.rpn.head.bbox_pred, 10),
        ):  # fmt: skip
            predictor.weight.mul_(factor)
    return module


@pytest.fixture(scope="module", params=NETS)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    name, config, pools = NETS[request.param]
    module = tiny(name, config)
    dynamic = request.param == "maximum, MLP"
    options = ExportOptions(dynamic=dynamic)
    return Made(module, export_bundle(module, tmp_path_factory.mktemp("net") / "b", options, labels=LABELS), pools)


def test_every_form_equals_eager(made: Made) -> None:
    verdicts = verify(made.bundle, made.module, [*photos([(96, 128), (80, 100), (96, 80)]), NOTHING], batches=(1, 4))
    assert {verdict.form for verdict in verdicts} == {"staged", "native", "portable"}
    for verdict in verdicts:
        assert verdict.first_difference is None
        for found in verdict.agreements:
            assert found.matched == found.eager >= 10


def test_the_bundle_pools_as_the_net_does(made: Made) -> None:
    staged = next(a for a in Manifest.read(made.bundle).artifacts if a.form == "staged")
    pools = [op for op in staged.ops_between if op["op"].startswith("RegionRoi")]
    assert {op["op"]: len(pools) for op in pools} == made.pools
    if "RegionRoiAlign" in made.pools:
        assert [op["attributes"]["mode"] for op in pools] == ["max", "max"]


class OwnPool(RegionPool):
    def forward(self, *arguments):
        return super().forward(*arguments) * 2


class OwnHeads(SoftmaxMaskHeads):
    def forward(self, *arguments):
        return super().forward(*arguments)


def test_what_overrides_these_parts_is_refused() -> None:
    module = tiny("mask_rcnn", {"mask_loss": "softmax", "mask_layers": [8]})
    check_supported(module)
    own = tiny("mask_rcnn", {"mask_layers": [8]})
    own.roi_heads = OwnHeads.like(module.roi_heads)
    with pytest.raises(ExportError, match=r"roi_heads \(OwnHeads\) overrides forward.*SoftmaxMaskHeads"):
        check_supported(own.eval())
    module.roi_heads.mask_roi_pool = OwnPool("max", ["0"], output_size=14, sampling_ratio=2)
    with pytest.raises(ExportError, match=r"mask_roi_pool \(OwnPool\) overrides forward.*RegionPool"):
        check_supported(module)
