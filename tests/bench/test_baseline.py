"""The PyTorch baseline computes what eager and torchvision compute, in every form, and its boxes stay fp32."""

import numpy as np
import pytest
import torch

from regionrt.bench.baseline import torch_baseline
from regionrt.bench.forms import EAGER, TorchForm, forms_to_try
from regionrt.bench.torchvision_forward import TorchvisionForward
from regionrt.runtime.image import Canvas
from regionrt.train.models import build_model
from regionrt.train.models.region import eager

LABELS = ("__background__", "disc", "square")
CANVAS = Canvas(96, 128, min_size=96, max_size=128)


def net(name: str):
    torch.manual_seed(0)
    torch.set_num_threads(1)
    config = {"backbone": "squeezenet1_1", "size": [96, 128], "representation": 32, "proposals": 50}
    module = build_model(name, config | ({"mask_layers": [16]} if name == "mask_rcnn" else {}), LABELS).eval()
    with torch.no_grad():  # spread the scores, so that there are detections and no ties
        module.roi_heads.box_predictor.cls_score.weight.mul_(5)
        module.rpn.head.cls_logits.weight.mul_(30)
    return module


@pytest.fixture(scope="module")
def module():
    return net("faster_rcnn")


@pytest.fixture(scope="module")
def canvases():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, 96, 128, 3), dtype=np.uint8)
    return images, np.array([[96, 128], [64, 100]], np.int32)


def outputs(module, form, canvases):
    return torch_baseline(module, form, canvas=CANVAS, labels=LABELS).runner.run(*canvases)


def test_eager_equals_eager_with_all_its_stages(module, canvases):
    found = outputs(module, EAGER, canvases)
    expected = eager(module, *map(torch.from_numpy, canvases))
    assert {"num_detections", "boxes", "scores", "labels", "overflow"} == set(found)
    assert found["num_detections"].sum() > 0
    for name, value in found.items():
        np.testing.assert_array_equal(value, expected[name].numpy(), err_msg=name)


def test_cast_weights_give_what_autocast_gives(module, canvases):
    found = outputs(module, TorchForm("bf16"), canvases)
    with torch.autocast("cpu", torch.bfloat16):
        expected = eager(module, *map(torch.from_numpy, canvases), stages=False)
    np.testing.assert_array_equal(found["boxes"], expected["boxes"].numpy())
    np.testing.assert_array_equal(found["scores"], expected["scores"].numpy())


def test_bf16_boxes_are_not_rounded_to_bf16(module, canvases):
    found = outputs(module, TorchForm("bf16", channels_last=True), canvases)
    boxes = found["boxes"][0, : found["num_detections"][0]]
    inner = boxes[(boxes > 0) & (boxes < 96)]
    assert len(inner) > 8
    rounded = torch.from_numpy(inner).bfloat16().float().numpy()
    assert (rounded != inner).mean() > 0.9  # a box that went through bf16 would equal its rounding


def test_the_module_given_is_left_alone(module, canvases):
    before = {name: (value.dtype, value.clone()) for name, value in module.state_dict().items()}
    outputs(module, TorchForm("bf16", channels_last=True), canvases)
    for name, value in module.state_dict().items():
        assert value.dtype == before[name][0]
        assert torch.equal(value, before[name][1])


@pytest.mark.parametrize("name", ["faster_rcnn", "mask_rcnn"])
def test_torchvision_forward_gives_what_the_module_gives(name):
    own = net(name)
    photo = np.random.default_rng(1).integers(0, 256, (48, 80, 3), dtype=np.uint8)
    tensor = torch.from_numpy(photo).permute(2, 0, 1).float() / 255
    with torch.no_grad():
        (expected,) = own([tensor])
    for paste in (True, False):
        found = TorchvisionForward(own, LABELS, CANVAS, paste_masks=paste)(photo)
        assert len(found) > 0
        np.testing.assert_array_equal(found.boxes_xyxy, expected["boxes"].numpy())
        np.testing.assert_array_equal(found.scores, expected["scores"].numpy())
        np.testing.assert_array_equal(found.labels, expected["labels"].numpy())
    if name == "mask_rcnn":
        pasted = expected["masks"][0, 0].numpy() >= 0.5
        assert (found.mask(0) != pasted).mean() < 1e-3


def test_training_mode_is_an_error(module):
    module.train()
    try:
        with pytest.raises(ValueError, match="eval"):
            torch_baseline(module, canvas=CANVAS, labels=LABELS)
    finally:
        module.eval()


def test_forms():
    assert {form.precision for form in forms_to_try("cpu")} == {"fp32", "bf16"}
    assert {form.precision for form in forms_to_try("cuda:0")} == {"fp32", "bf16", "fp16"}
    assert str(EAGER) == "eager"
    assert str(TorchForm("bf16", channels_last=True, compiled=True)) == "compiled backbone, channels last"
    with pytest.raises(ValueError, match="fp8"):
        TorchForm("fp8")
