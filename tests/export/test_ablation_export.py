"""Faster R-CNN as in its paper, and Mask R-CNN's ablations, as bundles: every form equals eager, engines build."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from tiny_detectors import LABELS, NOTHING, OneMap, parts, photos, spread
from torch import nn
from torchvision.models.detection import MaskRCNN

from regionrt.export import ExportError, ExportOptions, export_bundle
from regionrt.export.exportable import check_supported
from regionrt.export.verify import verify
from regionrt.runtime.build import build_engines
from regionrt.runtime.bundle import Manifest
from regionrt.train.models import build_model
from regionrt.train.models.mask_heads import SoftmaxMaskHeads, mask_layers
from regionrt.train.models.region_pool import region_pool

SIZE = (64, 96)


@dataclass(frozen=True)
class Made:
    """A module and the bundle made of it. Tests leave both as they are."""

    module: nn.Module
    bundle: Path


def original() -> nn.Module:
    """The preset, smaller; weights with which scores are far from ties."""
    torch.manual_seed(0)
    small = {
        "backbone": "squeezenet1_1", "channels": 8, "size": SIZE, "min_size": None, "max_size": None,
        "representation": 24, "anchor_sizes": [16, 32, 48], "proposals": 20, "proposal_candidates": 60, "score": 0.3,
        "detections": 10,
    }  # fmt: skip
    module = build_model("faster_rcnn_original", small, LABELS)
    module.roi_heads.box_predictor.cls_score.weight.data.mul_(20)
    module.roi_heads.box_predictor.bbox_pred.weight.data.mul_(5)
    module.rpn.head.cls_logits.weight.data.mul_(20)
    return module


def ablated() -> nn.Module:
    """The maximum of RoIAlign for boxes, RoIPool for masks, an MLP, softmax masks: all in one net."""
    torch.manual_seed(0)
    head, predictor = mask_layers("mlp", 8, 4, (12, 8), len(LABELS))
    module = MaskRCNN(
        **parts(OneMap(), ["0"], box_roi_pool=region_pool("align_max", ["0"], 3)),
        mask_roi_pool=region_pool("max", ["0"], 4), mask_head=head, mask_predictor=predictor,
    )  # fmt: skip
    spread(module).roi_heads = SoftmaxMaskHeads.like(module.roi_heads)
    return module.eval()


NETS = {"original": (original, False), "ablated": (ablated, True)}


@pytest.fixture(scope="module", params=NETS)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    build, dynamic = NETS[request.param]
    module = build()
    bundle = tmp_path_factory.mktemp("net") / "bundle"
    return Made(module, export_bundle(module, bundle, ExportOptions(size=SIZE, dynamic=dynamic), labels=LABELS))


def test_every_form_equals_eager(made: Made) -> None:
    verdicts = verify(made.bundle, made.module, [*photos([SIZE, (50, 80), (64, 60)]), NOTHING], batches=(1, 4))
    assert {verdict.form for verdict in verdicts} == {"staged", "native", "portable"}
    for verdict in verdicts:
        assert verdict.first_difference is None
        for found in verdict.agreements:
            assert found.matched == found.eager >= 10


def test_the_bundle_pools_as_the_net_does(made: Made) -> None:
    staged = next(a for a in Manifest.read(made.bundle).artifacts if a.form == "staged")
    between = [(op["op"], op["attributes"].get("mode")) for op in staged.ops_between]
    pools = [op for op in between if op[0].startswith("RegionRoi")]
    if isinstance(made.module, MaskRCNN):
        assert pools == [("RegionRoiAlign", "max"), ("RegionRoiPool", None)]
    else:
        assert pools == [("RegionRoiPool", None)]


def test_an_engine_is_built(made: Made, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed: pip install 'regionrt[rtx]'")
    bundle = Path(shutil.copytree(made.bundle, tmp_path / "bundle"))
    (engine,) = build_engines(bundle)
    assert engine.engine is not None
    assert engine.engine["proof"]["share"] == 1.0


@pytest.mark.parametrize("name", ["box_roi_pool", "mask_roi_pool"])
def test_a_pool_that_overrides_ours_is_refused(name: str) -> None:
    module = ablated()
    pool = getattr(module.roi_heads, name)
    pool.forward = lambda *arguments: type(pool).forward(pool, *arguments) * 2
    with pytest.raises(ExportError, match=rf"{name} \(RegionPool\) overrides forward.*what RegionPool does"):
        check_supported(module)


class OwnHeads(SoftmaxMaskHeads):
    def forward(self, *arguments):
        return super().forward(*arguments)


def test_heads_that_override_ours_are_refused() -> None:
    module = ablated()
    module.roi_heads = OwnHeads.like(module.roi_heads).eval()
    with pytest.raises(ExportError, match=r"roi_heads \(OwnHeads\) overrides forward.*SoftmaxMaskHeads"):
        check_supported(module)
