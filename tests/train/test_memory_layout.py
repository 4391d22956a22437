"""The order in memory that a net is trained in: by its convolutions, the precision and the CPU."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch

from regionrt.train.initial import frozen_modules
from regionrt.train.models import build_model
from regionrt.train.models.dense import normalised
from regionrt.train.models.memory_layout import lay_out, takes_channels_first, training_layout
from regionrt.train.models.proposal_net import usually_frozen

FIRST, LAST = torch.contiguous_format, torch.channels_last


def unet(width: int) -> torch.nn.Module:
    return build_model("unet", {"width": width, "depth": 2, "size": [32, 32]}, ("a", "b"))


def on(monkeypatch: pytest.MonkeyPatch, capability: str) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)


@pytest.mark.parametrize(
    ("width", "capability", "precision", "on_cpu", "layout"),
    [
        (64, "AVX2", "fp32", True, FIRST),
        (4, "AVX2", "fp32", True, LAST),
        (64, "AVX512", "fp32", True, LAST),
        (64, "AVX2", "bf16", True, LAST),
        (64, "AVX2", "fp32", False, LAST),
    ],
)
def test_wide_convolutions_learn_channels_first_on_a_small_cpu(
    width: int, capability: str, precision: str, on_cpu: bool, layout: torch.memory_format,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    on(monkeypatch, capability)
    assert training_layout(unet(width), precision, on_cpu=on_cpu) == layout


@pytest.mark.parametrize("layout", [FIRST, LAST])
def test_images_lie_as_the_weights_do_while_a_net_learns(layout: torch.memory_format) -> None:
    module = unet(4).to(memory_format=layout).train()
    images, sizes = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8), torch.tensor([[32, 20]] * 2)
    assert takes_channels_first(module) == (layout == FIRST)
    learning = normalised(module, images, sizes)
    assert learning.is_contiguous(memory_format=layout)
    judged = normalised(module.eval(), images, sizes)
    assert judged.is_contiguous(memory_format=LAST)
    assert torch.equal(learning, judged)


def fast_rcnn() -> torch.nn.Module:
    config = {"backbone": "vgg16", "size": [64, 64], "representation": 16}
    return build_model("fast_rcnn", config, ("__background__", "a"))


def test_what_is_frozen_stays_channels_last_and_what_learns_gets_its_input_channels_first() -> None:
    module = fast_rcnn().train()
    frozen_modules(module, usually_frozen(module))
    expected = deepcopy(module)
    lay_out(module, FIRST)
    convolutions = [layer for layer in module.modules() if isinstance(layer, torch.nn.Conv2d)]
    seen: dict[int, torch.Tensor] = {}
    for place, layer in enumerate(convolutions):
        layer.register_forward_hook(lambda _, given, out, place=place: seen.update({place: out}))
    images, sizes = torch.randint(0, 256, (1, 64, 64, 3), dtype=torch.uint8), torch.tensor([[64, 64]])

    found = module.features(normalised(module, images, sizes))
    orders = [LAST if out.is_contiguous(memory_format=LAST) else FIRST for out in seen.values()]
    assert orders == [LAST] * 4 + [FIRST] * 9  # VGG16's conv1 and conv2 are frozen
    torch.testing.assert_close(found, expected.features(normalised(expected, images, sizes)))

    found.sum().backward()
    assert all(layer.weight.grad.is_contiguous() for layer in convolutions[4:])
    module.eval()
    with torch.no_grad():
        module.features(normalised(module, images, sizes))
    assert seen[4].is_contiguous(memory_format=LAST)  # a net that is judged takes what comes


def test_channels_last_is_for_all_layers() -> None:
    module = fast_rcnn()
    frozen_modules(module, usually_frozen(module))
    lay_out(module, LAST)
    for layer in module.modules():
        if isinstance(layer, torch.nn.Conv2d):
            assert layer.weight.is_contiguous(memory_format=LAST)
            assert not layer._forward_pre_hooks


def test_a_run_says_nothing_of_it_and_learns_the_same(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Either way the same net, to rounding: the order is no option, for it changes nothing but the time."""
    from regionrt.train.options import TrainOptions
    from regionrt.train.trainer import train

    found = []
    for capability in ("AVX2", "AVX512"):
        on(monkeypatch, capability)
        options = TrainOptions(epochs=1, batch=2, lr=1e-3, evaluate_every=0, accelerator="cpu", optimizer="adamw")
        config = {"width": 64, "depth": 1, "size": [64, 64]}
        best = train("unet", "shapes:train=4,size=64x64", tmp_path / capability, options, config=config)
        found.append(torch.load(best, weights_only=True)["state_dict"])
    one, other = (torch.cat([value.flatten().float() for value in weights.values()]) for weights in found)
    # AdamW's step is as long for a gradient that is rounding alone: where that decides its sign, weights part.
    assert (~torch.isclose(one, other, rtol=1e-2, atol=1e-3)).float().mean() < 1e-3
    torch.testing.assert_close(one, other, rtol=1e-2, atol=2 * 2 * options.lr)  # of two steps
