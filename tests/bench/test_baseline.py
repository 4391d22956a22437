"""The PyTorch baseline computes what eager computes, in every form, and its boxes stay fp32."""

import numpy as np
import pytest
import torch

from regionrt.bench.baseline import TorchForm, TorchRunner, forms_to_try
from regionrt.runtime.errors import BackendError
from regionrt.train.models import build_model
from regionrt.train.models.region import eager

LABELS = ("__background__", "disc", "square")


@pytest.fixture(scope="module")
def module():
    torch.manual_seed(0)
    torch.set_num_threads(2)
    net = build_model(
        "faster_rcnn", {"backbone": "squeezenet1_1", "size": [96, 128], "representation": 32}, LABELS
    ).eval()
    with torch.no_grad():  # spread the scores, so that there are detections and no ties
        net.roi_heads.box_predictor.cls_score.weight.mul_(5)
        net.rpn.head.cls_logits.weight.mul_(30)
    return net


@pytest.fixture(scope="module")
def canvases():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, 96, 128, 3), dtype=np.uint8)
    return images, np.array([[96, 128], [64, 100]], np.int32)


def test_eager_runner_equals_eager_with_all_stages(module, canvases):
    images, sizes = canvases
    found = TorchRunner(module).run(images, sizes)
    expected = eager(module, torch.from_numpy(images), torch.from_numpy(sizes))
    assert found.keys() <= expected.keys()
    assert found["num_detections"].sum() > 0
    for name, value in found.items():
        np.testing.assert_array_equal(value, expected[name].numpy(), err_msg=name)
    assert {name: found[name].dtype.name for name in ("boxes", "scores", "labels", "num_detections", "overflow")} == {
        "boxes": "float32",
        "scores": "float32",
        "labels": "int32",
        "num_detections": "int32",
        "overflow": "int32",
    }


def test_cast_weights_give_what_autocast_gives(module, canvases):
    images, sizes = canvases
    found = TorchRunner(module, TorchForm("bf16")).run(images, sizes)
    with torch.autocast("cpu", torch.bfloat16):
        expected = eager(module, torch.from_numpy(images), torch.from_numpy(sizes), stages=False)
    np.testing.assert_array_equal(found["boxes"], expected["boxes"].numpy())
    np.testing.assert_array_equal(found["scores"], expected["scores"].numpy())


def test_bf16_boxes_are_not_rounded_to_bf16(module, canvases):
    found = TorchRunner(module, TorchForm("bf16", channels_last=True)).run(*canvases)
    boxes = found["boxes"][0, : found["num_detections"][0]]
    assert len(boxes) > 0
    inner = boxes[(boxes > 0) & (boxes < 96)]
    rounded = torch.from_numpy(inner).bfloat16().float().numpy()
    assert (rounded != inner).mean() > 0.9  # a box that went through bf16 would equal its rounding


def test_the_module_given_is_left_alone(module, canvases):
    before = {name: (value.dtype, value.clone()) for name, value in module.state_dict().items()}
    TorchRunner(module, TorchForm("bf16", channels_last=True)).run(*canvases)
    for name, value in module.state_dict().items():
        assert value.dtype == before[name][0]
        assert torch.equal(value, before[name][1])


def test_closed_and_training_are_errors(module, canvases):
    runner = TorchRunner(module)
    runner.close()
    with pytest.raises(BackendError, match="closed"):
        runner.run(*canvases)
    module.train()
    try:
        with pytest.raises(ValueError, match="eval"):
            TorchRunner(module)
    finally:
        module.eval()


def test_fp16_is_tried_on_gpus_only():
    assert {form.precision for form in forms_to_try("cpu")} == {"fp32", "bf16"}
    assert {form.precision for form in forms_to_try("cuda:0")} == {"fp32", "bf16", "fp16"}
    assert str(TorchForm("bf16", channels_last=True, compiled=True)) == "compiled backbone, channels last"
