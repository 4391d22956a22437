"""OverFeat as a tensor program: all windows of all scales, then the op that merges their boxes."""

from torch import Tensor, nn

from regionrt.plugins.merge.torch_op import merge
from regionrt.runtime.image import Canvas
from regionrt.train.models.dense import normalised
from regionrt.train.models.overfeat import Overfeat
from regionrt.train.models.overfeat_eager import MIN_DETECTION_PX

from .exportable import OUTPUTS


class ExportableOverfeat(nn.Module):
    """images, image_sizes -> a detector's outputs, on one canvas: the windows are constants of it."""

    outputs = OUTPUTS[:-1]
    pooled_levels = ()
    windows: Tensor

    def __init__(self, module: Overfeat, canvas: Canvas, *, candidates: int):
        super().__init__()
        self.module = module
        self.candidates = min(candidates, module.heads.candidates)
        windows = module.layout((canvas.height, canvas.width)).windows
        self.register_buffer("windows", windows.clone(), persistent=False)

    def forward(self, images: Tensor, image_sizes: Tensor) -> tuple[Tensor, ...]:
        """images uint8 [N, H, W, 3] (the canvas), image_sizes int32 [N, 2] (its valid part)."""
        heads = self.module.heads
        logits, edges = self.module(normalised(self.module, images, image_sizes))
        number, boxes, scores, labels, overflow = merge(
            logits.float(),
            edges.float(),
            self.windows,
            image_sizes,
            heads.window_score,
            heads.merge,
            heads.score,
            heads.detections,
            self.candidates,
            MIN_DETECTION_PX,
            self.module.config.class_agnostic,
        )
        return number, boxes, scores, labels, overflow
