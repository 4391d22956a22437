"""Torch's convolutions with their norm folded in and, on a GPU, with ReLU and residual sum inside cuDNN's kernel.

What an engine does to such layers when it is built, done by hand: so that kernels and graph can be measured with dense
layers that are neither eager's nor an engine's. Frozen or evaluated norms only.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torchvision.models.resnet import Bottleneck
from torchvision.ops import FrozenBatchNorm2d
from torchvision.ops.misc import Conv2dNormActivation


class FusedConv(nn.Module):
    """convolution (+ `residual`) (→ ReLU). in_cudnn: one cuDNN kernel of them, which exists on a GPU only."""

    def __init__(self, conv: nn.Conv2d, norm: nn.Module | None, relu: bool, in_cudnn: bool) -> None:
        super().__init__()
        weight, bias = conv.weight, conv.bias
        if norm is not None:
            weight, bias = fuse_conv_bn_weights(
                weight, bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
            )
        self.weight = nn.Parameter(weight.detach(), requires_grad=False)
        self.bias = nn.Parameter((torch.zeros(len(weight)) if bias is None else bias).detach(), requires_grad=False)
        self.relu, self.in_cudnn = relu, in_cudnn
        self.stride, self.padding, self.dilation, self.groups = conv.stride, conv.padding, conv.dilation, conv.groups

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        how = (self.stride, self.padding, self.dilation, self.groups)
        if self.relu and self.in_cudnn and x.is_cuda:
            if residual is None:
                return torch.cudnn_convolution_relu(x, self.weight, self.bias, *how)
            return torch.cudnn_convolution_add_relu(x, self.weight, residual, 1.0, self.bias, *how)
        out = functional.conv2d(x, self.weight, self.bias, *how)
        if residual is not None:
            out += residual
        return out.relu_() if self.relu else out


class FusedBottleneck(nn.Module):
    """torchvision's ResNet block of three convolutions."""

    def __init__(self, block: Bottleneck, in_cudnn: bool) -> None:
        super().__init__()
        self.first = FusedConv(block.conv1, block.bn1, True, in_cudnn)
        self.second = FusedConv(block.conv2, block.bn2, True, in_cudnn)
        self.third = FusedConv(block.conv3, block.bn3, True, in_cudnn)
        self.shortcut = (
            None if block.downsample is None else FusedConv(block.downsample[0], block.downsample[1], False, in_cudnn)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.third(self.second(self.first(x)), x if self.shortcut is None else self.shortcut(x))


def fuse(module: nn.Module, in_cudnn: bool) -> nn.Module:
    """Replaces, in place and at any depth: ResNet's blocks and stem, torchvision's convolution-norm-ReLU.

    The module itself is returned. Everything else stays as it is.
    """
    children: Mapping[str, nn.Module] = dict(module.named_children())
    if isinstance(children.get("conv1"), nn.Conv2d) and _is_norm(children.get("bn1")):  # the stem
        module.conv1 = FusedConv(children["conv1"], children["bn1"], True, in_cudnn)  # type: ignore[arg-type]
        module.bn1 = module.relu = nn.Identity()
    for name, child in module.named_children():
        if isinstance(child, Bottleneck):
            setattr(module, name, FusedBottleneck(child, in_cudnn))
        elif isinstance(child, Conv2dNormActivation) and (made := _of_three(child, in_cudnn)) is not None:
            setattr(module, name, made)
        else:
            fuse(child, in_cudnn)
    return module


def _of_three(block: Conv2dNormActivation, in_cudnn: bool) -> FusedConv | None:
    """Convolution, norm or none, ReLU or none; None for anything else."""
    conv, *rest = block
    norm = rest.pop(0) if rest and _is_norm(rest[0]) else None
    if not isinstance(conv, nn.Conv2d) or conv.padding_mode != "zeros" or len(rest) > 1:
        return None
    if rest and not isinstance(rest[0], nn.ReLU):
        return None
    return FusedConv(conv, norm, bool(rest), in_cudnn)


def _is_norm(layer: nn.Module | None) -> bool:
    return isinstance(layer, (nn.BatchNorm2d, FrozenBatchNorm2d))
