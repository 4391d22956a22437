"""Dense nets and localisers as tensor programs with the inputs and outputs of every artefact."""

import torch
from torch import Tensor, nn

from regionrt.runtime.image import Canvas
from regionrt.train.models.dense import DenseNet, normalised
from regionrt.train.models.localiser import Localiser, detection_of, frames_of

from .errors import ExportError


class ExportableSegmenter(nn.Module):
    """images, image_sizes -> labels uint8 [N, H, W], and with `probabilities` also those, float32 [N, K, H, W]."""

    def __init__(self, module: DenseNet, *, probabilities: bool):
        super().__init__()
        self.module = module
        self.outputs = ("labels", "probabilities") if probabilities else ("labels",)

    def forward(self, images: Tensor, image_sizes: Tensor) -> tuple[Tensor, ...]:
        """images uint8 [N, H, W, 3] (the canvas), image_sizes int32 [N, 2] (its valid part)."""
        logits = self.module(normalised(self.module, images, image_sizes)).float()
        labels = logits.argmax(1).to(torch.uint8)
        return (labels, logits.softmax(1)) if len(self.outputs) == 2 else (labels,)


class ExportableLocaliser(nn.Module):
    """images, image_sizes -> a detector's outputs with one row for each image."""

    outputs = ("num_detections", "boxes", "scores", "labels", "overflow")

    def __init__(self, module: Localiser):
        super().__init__()
        self.module = module

    def forward(self, images: Tensor, image_sizes: Tensor) -> tuple[Tensor, ...]:
        """images uint8 [N, H, W, 3] (the canvas), image_sizes int32 [N, 2] (its valid part)."""
        logits, fractions = self.module(normalised(self.module, images, image_sizes), image_sizes)
        found = detection_of(logits.float(), fractions.float(), *frames_of(self.module, images, image_sizes))
        return tuple(found[name] for name in self.outputs)


def dense_program(module: nn.Module, canvas: Canvas, probabilities: bool) -> nn.Module | None:
    """The program of a net of ours that is no detector; None for others. ExportError."""
    if isinstance(module, DenseNet):
        return ExportableSegmenter(module, probabilities=probabilities)
    if probabilities:
        raise ExportError("probabilities are of segmentation nets: leave that option out")
    return ExportableLocaliser(module) if isinstance(module, Localiser) else None


def check_dense(module: nn.Module) -> None:
    """Of nets of ours: ExportError unless the module is in evaluation mode and float32."""
    if module.training:
        raise ExportError("expected the module in evaluation mode, found it in training mode: call module.eval() first")
    types = {p.dtype for p in module.parameters() if p.is_floating_point()} - {torch.float32}
    if types:
        raise ExportError(
            f"expected weights in float32, found {', '.join(sorted(map(str, types)))}: call module.float()"
        )
