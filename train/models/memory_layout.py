"""The order in which convolutions' values lie in memory while a net learns: the one that PyTorch computes faster in."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_WIDE = 64  # input channels
_MOSTLY = 0.8  # of the weights


def training_layout(module: nn.Module, precision: str, *, on_cpu: bool = True) -> torch.memory_format:
    """Channels last, but for nets of wide k×k convolutions on a CPU without AVX-512, in fp32.

    There oneDNN's backward convolutions are slow channels last (docs/results.md has VGG16's, "The papers' ratios"),
    while narrow, 1×1 and depthwise ones (SqueezeNet, MobileNets) are faster so, and ResNets about as fast either way.
    """
    if not on_cpu or precision != "fp32" or torch.backends.cpu.get_cpu_capability() not in ("DEFAULT", "AVX2"):
        return torch.channels_last
    weights = [layer.weight for layer in module.modules() if isinstance(layer, nn.Conv2d)]
    wide = sum(w.numel() for w in weights if w.shape[1] >= _WIDE and w.shape[2] * w.shape[3] > 1)
    return torch.contiguous_format if wide > _MOSTLY * sum(w.numel() for w in weights) else torch.channels_last


def lay_out(module: nn.Module, layout: torch.memory_format) -> None:
    """Weights in the order that `training_layout` says; call it when what is frozen is frozen.

    Channels first, frozen convolutions stay channels last, for a forward pass alone is faster so, as is max pooling
    (docs/results.md, "The papers' ratios"). The layer behind them turns the order around.
    """
    module.to(memory_format=layout)
    if layout == torch.channels_last:
        return
    for layer in module.modules():
        if not isinstance(layer, nn.Conv2d):
            continue
        if layer.weight.requires_grad:
            layer.register_forward_pre_hook(_channels_first_while_learning)
        else:
            layer.to(memory_format=torch.channels_last)


def _channels_first_while_learning(layer: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(value.contiguous() for value in given) if layer.training else given


def takes_channels_first(module: nn.Module) -> bool:
    """Whether the module learns and its convolutions' weights lie channels first: its images then must, too.

    A net that does not learn takes them as they come, channels last: PyTorch is as fast so, or faster.
    """
    if not module.training:
        return False
    layers = (layer.weight for layer in module.modules() if isinstance(layer, nn.Conv2d))
    telling = next((w for w in layers if w.shape[1] > 1 and w.shape[2] * w.shape[3] > 1), None)
    return telling is not None and telling.is_contiguous()
