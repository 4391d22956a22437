"""What the export would silently ignore is refused, naming the part."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from tiny_detectors import LABELS, OneMap, Pyramid, faster, mask, parts, photos
from torch import nn
from torchvision.models.detection import FasterRCNN, KeypointRCNN
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import MultiScaleRoIAlign, RoIAlign

from regionrt.export import ExportError, ExportOptions, export_bundle
from regionrt.export.exportable import ExportableDetector, check_supported
from regionrt.train.models.region import eager


class OwnForward(FasterRCNN):
    def forward(self, images, targets=None):
        return super().forward([image * 2 for image in images], targets)


class OwnAnchors(AnchorGenerator):
    def grid_anchors(self, *args):
        return [a + 1 for a in super().grid_anchors(*args)]


class OwnPool(MultiScaleRoIAlign):
    def forward(self, *args):
        return super().forward(*args) * 2


def keypoints(_):
    return KeypointRCNN(
        OneMap(),
        2,
        box_roi_pool=MultiScaleRoIAlign(["0"], 7, 2),
        rpn_anchor_generator=AnchorGenerator(((16,),), ((1.0,),)),
    )


def with_attribute(path: str, value):
    def change(module):
        *parents, name = path.split(".")
        part = module
        for parent in parents:
            part = getattr(part, parent)
        setattr(part, name, value)
        return module

    return change


def bound(method):
    """A method put on the object itself, over its class's."""

    def change(module):
        module.roi_heads.postprocess_detections = method
        return module

    return change


REFUSED = {
    "wrapper": (nn.DataParallel, "found DataParallel: pass the detector itself"),
    "backbone": (lambda m: m.backbone, "FasterRCNN or MaskRCNN, found OneMap"),
    "training mode": (lambda m: m.train(), "training mode: call module.eval()"),
    "keypoints": (keypoints, "keypoint heads are not covered"),
    "other RoI pool": (with_attribute("roi_heads.box_roi_pool", RoIAlign(3, 1.0, 2)), "roi_heads.box_roi_pool, found RoIAlign"),  # noqa: E501
    "own RoI pool": (with_attribute("roi_heads.box_roi_pool", OwnPool(["0"], 3, 2)), "box_roi_pool (OwnPool) overrides forward"),  # noqa: E501
    "own anchors": (with_attribute("rpn.anchor_generator", OwnAnchors()), "rpn.anchor_generator (OwnAnchors) overrides grid_anchors"),  # noqa: E501
    "own detector": (lambda m: OwnForward(**parts(OneMap(), ["0"])), "the detector (OwnForward) overrides forward"),
    "own post-processing": (bound(lambda *_: None), "roi_heads (RoIHeads) overrides postprocess_detections"),
    "other box coder": (with_attribute("rpn.box_coder", SimpleNamespace()), "rpn.box_coder, found SimpleNamespace"),
    "other clip of deltas": (
        with_attribute("roi_heads.box_coder", BoxCoder((10, 10, 5, 5), bbox_xform_clip=math.log(10))),
        "roi_heads.box_coder.bbox_xform_clip",
    ),
    "fixed_size": (with_attribute("transform.fixed_size", (64, 96)), "found a transform with fixed_size"),
    "half precision": (lambda m: m.half(), "found torch.float16: call module.float()"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_what_would_be_ignored_is_refused(change, message, tmp_path):
    module = change(faster())
    if isinstance(module, FasterRCNN) and message.find("training") < 0:
        module.eval()
    with pytest.raises(ExportError) as caught:
        check_supported(module)
    assert message in str(caught.value)
    with pytest.raises(ExportError) as again:  # nothing is made of it either, and its mode is not changed in silence
        export_bundle(module, tmp_path / "b", ExportOptions(size=(64, 96)), labels=LABELS)
    assert str(again.value) == str(caught.value)
    assert not list(tmp_path.iterdir())


def test_torchvisions_own_detectors_pass():
    check_supported(faster())
    check_supported(mask())


def test_the_mask_pool_is_checked_too():
    module = mask()
    module.roi_heads.mask_roi_pool = OwnPool(["0", "1"], 4, 2)
    with pytest.raises(ExportError, match="mask_roi_pool"):
        check_supported(module)


def program(module):
    return ExportableDetector(module, 64, 96, candidates=3840, dynamic=False)


def test_a_pool_that_reads_maps_the_backbone_does_not_give():
    module = faster()
    module.roi_heads.box_roi_pool = MultiScaleRoIAlign(["p3"], 3, 2)
    with pytest.raises(ExportError, match=r"\['p3'\].*\['0'\]"):
        program(module)


class Gap(Pyramid):
    """Maps of stride 8 and 32."""

    def forward(self, x):
        maps = super().forward(x)
        maps["1"] = maps.pop("pool")
        return maps


def test_maps_that_leave_out_a_stride_are_refused():
    """torchvision gives zeros to the RoIs of the missing level."""
    torch.manual_seed(0)
    options = {"rpn_anchor_generator": AnchorGenerator(((8,), (16,)), ((1.0,),) * 2)}
    module = FasterRCNN(**parts(Gap(), ["0", "1"], **options)).eval()
    with pytest.raises(ExportError, match="no stride left out, found strides 8, 32"):
        program(module)


def test_the_smallest_proposal_is_the_modules_own(fixed):
    """torchvision's RPN lets a user change it."""
    module = faster()
    module.rpn.min_size = 20.0
    canvases, sizes, _ = fixed.canvas.place([photos([(64, 96)])[0][1]])
    images = torch.from_numpy(canvases), torch.from_numpy(sizes)
    _, boxes, *_ = program(module)(*images)
    expected = eager(module, *images)["boxes"]
    torch.testing.assert_close(boxes, expected, atol=1e-3, rtol=0)
    assert not torch.allclose(eager(fixed.module, *images)["boxes"], expected, atol=1)
