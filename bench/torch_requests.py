"""A torchvision detector as its users run it on a GPU, from uint8 canvases there to boxes, scores and labels there.

Masks stay probabilities of 28 × 28 at their RoIs: pasting is not in a request. cuDNN's benchmark mode, which tries its
algorithms once, is off as it is in torch unless a form says otherwise.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .forms import TorchForm, prepared


@dataclass(frozen=True)
class RequestForm:
    """precision: "fp32"; "autocast" (fp16, as `torch.autocast` does it: weights are cast in every request); "half"
    (`module.half()`: boxes too); "cast" (autocast over weights cast beforehand).

    channels_last: weights and feature maps in that layout. backbone: "eager", "graph" (replayed as a CUDA graph) or
    "compiled" (`torch.compile`).
    """

    precision: str = "fp32"
    channels_last: bool = False
    benchmark: bool = False
    backbone: str = "eager"

    def __str__(self) -> str:
        how = {"fp32": "fp32", "autocast": "fp16, autocast", "half": "fp16, half()", "cast": "fp16, cast weights"}
        parts = [how[self.precision]]
        parts += ["channels last"] * self.channels_last + ["cuDNN benchmark"] * self.benchmark
        parts += {"eager": [], "graph": ["backbone in a CUDA graph"], "compiled": ["backbone compiled"]}[self.backbone]
        return "PyTorch " + ", ".join(parts)


def torch_request(module: nn.Module, form: RequestForm) -> Callable[[Tensor], list[dict[str, Tensor]]]:
    """uint8 [N, H, W, 3] → per image boxes, scores, labels and masks; the module itself is left as it is."""
    own = prepared(module, TorchForm("fp16", channels_last=form.channels_last)) if form.precision == "cast" else None
    own = copy.deepcopy(module) if own is None else own
    if form.precision == "half":
        own = own.half()
    if form.channels_last:
        own = own.to(memory_format=torch.channels_last)
    own.transform.postprocess = _as_they_are  # canvases are not resized: nothing to scale back, and nothing is pasted
    if form.backbone == "graph":
        own.backbone = GraphedBackbone(own.backbone)
    elif form.backbone == "compiled":
        own.backbone = torch.compile(own.backbone, dynamic=False)
    dtype = torch.float16 if form.precision == "half" else torch.float32
    device = next(own.parameters()).device.type
    mixed = form.precision in ("autocast", "cast")

    @torch.inference_mode()
    def request(canvas: Tensor) -> list[dict[str, Tensor]]:
        torch.backends.cudnn.benchmark = form.benchmark
        images = list((canvas.permute(0, 3, 1, 2) / 255).to(dtype))
        # A cast that autocast keeps would not outlive the context, but a graph that was captured in it does.
        context = torch.autocast(device, torch.float16, cache_enabled=form.precision == "autocast")
        with context if mixed else nullcontext():
            return own(images)

    return request


class GraphedBackbone(nn.Module):
    """A backbone replayed as a CUDA graph, one per shape of its input; the next call overwrites what it gives."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.graphs: dict[Any, tuple[torch.cuda.CUDAGraph, Tensor, OrderedDict[str, Tensor]]] = {}

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        key = tuple(x.shape), x.dtype
        if key not in self.graphs:
            self.graphs[key] = self._capture(x)
        graph, images, features = self.graphs[key]
        images.copy_(x)
        graph.replay()
        return features

    def _capture(self, x: Tensor) -> tuple[torch.cuda.CUDAGraph, Tensor, OrderedDict[str, Tensor]]:
        images = x.clone()
        for _ in range(3):
            self.backbone(images)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            features = self.backbone(images)
        return graph, images, features


def _as_they_are(found: list[dict[str, Tensor]], *_: object) -> list[dict[str, Tensor]]:
    return found
