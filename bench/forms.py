"""How PyTorch runs a module: eager as users do, and the forms that make it faster without another engine."""

from __future__ import annotations

import copy
import logging
from dataclasses import dataclass

import torch
from torch import nn

_PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class TorchForm:
    """How PyTorch runs the module; the default is what users do: eager, fp32.

    precision: "bf16" and "fp16" are autocast; boxes, scores and NMS stay fp32. compiled: `torch.compile` of the
    backbone; `whole`: of the whole net, which has nothing but dense layers.
    """

    precision: str = "fp32"
    channels_last: bool = False
    compiled: bool = False
    whole: bool = False

    def __post_init__(self) -> None:
        if self.precision not in _PRECISIONS:
            raise ValueError(f"precision {self.precision!r}: choose one of {', '.join(_PRECISIONS)}")

    @property
    def autocast(self) -> torch.dtype | None:
        """The dtype to give `torch.autocast`; None in fp32."""
        return None if self.precision == "fp32" else _PRECISIONS[self.precision]

    def __str__(self) -> str:
        """The form without its precision: "eager", "channels last", "compiled backbone, channels last"."""
        parts = ["compiled" if self.whole else "compiled backbone"] * self.compiled + [
            "channels last"
        ] * self.channels_last
        return ", ".join(parts) or "eager"


EAGER = TorchForm()


def forms_to_try(device: str = "cpu", whole: bool = False) -> list[TorchForm]:
    """The forms of which the best is searched, cheapest to prepare first; fp16 only where a GPU has units for it."""
    precisions = ["fp32", "bf16", "fp16"] if device.startswith("cuda") else ["fp32", "bf16"]
    return [TorchForm(p, channels_last=True, compiled=c, whole=c and whole) for c in (False, True) for p in precisions]


def prepared(module: nn.Module, form: TorchForm) -> nn.Module:
    """The module itself for eager fp32, else a copy in `form`, to be called under autocast where that is not fp32."""
    if form == EAGER:
        return module
    module = copy.deepcopy(module)
    if form.channels_last:
        module = module.to(memory_format=torch.channels_last)
    if form.precision != "fp32":
        _cast_weights(module, _PRECISIONS[form.precision])
    if form.compiled:
        # Its build helper warns of a missing CUDA wherever nvcc is but no GPU: that says nothing about this baseline.
        logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
        if form.whole:
            module.compile()
        else:
            module.backbone = torch.compile(module.backbone)
    return module


def _cast_weights(module: nn.Module, dtype: torch.dtype) -> None:
    """Casts once what autocast would cast anew in every call: the same results, less time.

    The first layer keeps fp32 weights, because the canvas is normalised in the dtype of the module's first parameter.
    """
    first = next(module.parameters())
    for layer in module.modules():
        if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)) and layer.weight is not first:
            layer.to(dtype)
