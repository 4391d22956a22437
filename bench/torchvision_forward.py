"""torchvision's own forward as a Predictor: float resize, NMS on shifted boxes, dense masks.

It stands beside the baseline to show that the baseline is no slower than torchvision itself, and what the canvas (a
resize rounded to uint8, fixed padding) costs in AP.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from regionrt.runtime.image import Canvas
from regionrt.runtime.predictor import Predictor, Prepared
from regionrt.runtime.results import Detections
from regionrt.train.models.region import thresholds_of
from regionrt.train.torch_runner import TorchRunner

from .forms import EAGER, TorchForm, prepared


class TorchvisionForward(Predictor):
    """`module(images)` behind the Predictor's three steps; its canvas is not used.

    paste_masks False keeps masks at RoI resolution, which evaluation needs; True pastes them as `module(images)` does.
    form: under autocast boxes are decoded in its precision, because torchvision does so.
    """

    def __init__(
        self,
        module: nn.Module,
        labels: Sequence[str],
        canvas: Canvas,
        *,
        paste_masks: bool,
        form: TorchForm = EAGER,
    ) -> None:
        own = copy.deepcopy(module)  # its RoI pools must not see the scales that other runners leave in them
        for pool in (own.roi_heads.box_roi_pool, own.roi_heads.mask_roi_pool):
            if pool is not None:
                pool.scales = pool.map_levels = None
        own = prepared(own, form)
        about = {"form": "torchvision" if form == EAGER else f"torchvision, {form}", "precision": form.precision}
        super().__init__(TorchRunner(own), canvas, labels, thresholds_of(own), about=about)
        self.module = own
        self.autocast = form.autocast
        self.paste_masks = paste_masks

    def prepare(self, images: Sequence[np.ndarray], proposals: Any = None) -> Prepared:
        """RGB uint8 arrays → float tensors 0…1 [3, H, W], as torchvision's examples do."""
        device = next(self.module.parameters()).device
        self._photos = [torch.from_numpy(image).to(device).permute(2, 0, 1).float() / 255 for image in images]
        return Prepared(np.empty(0), np.empty(0), [])

    @torch.inference_mode()
    def execute(self, prepared: Prepared) -> dict[str, np.ndarray]:
        """The module's forward, without its pasting of masks unless asked for."""
        device = next(self.module.parameters()).device.type
        with torch.autocast(device, self.autocast, enabled=self.autocast is not None):
            return self._forward()

    def _forward(self) -> dict[str, np.ndarray]:
        module = self.module
        if self.paste_masks:
            self._found = module(self._photos)
            return {}
        images, _ = module.transform(self._photos)
        features = module.backbone(images.tensors)
        if isinstance(features, Tensor):
            features = {"0": features}
        proposals, _ = module.rpn(images, features)
        found, _ = module.roi_heads(features, proposals, images.image_sizes)
        masks = [entry.pop("masks", None) for entry in found]
        self._found = module.transform.postprocess(found, images.image_sizes, [p.shape[-2:] for p in self._photos])
        for entry, mask in zip(self._found, masks, strict=True):
            if mask is not None:
                entry["masks"] = mask[:, 0]
        return {}

    def finish(self, prepared: Prepared, outputs: Any) -> list[Detections]:
        """Detections; pasted masks are dropped, they have been paid for."""
        results = []
        for photo, entry in zip(self._photos, self._found, strict=True):
            values = {name: value.cpu() for name, value in entry.items()}
            values = {name: (v.float() if v.is_floating_point() else v).numpy() for name, v in values.items()}
            masks = None if self.paste_masks else values.get("masks")
            size = (int(photo.shape[1]), int(photo.shape[2]))
            boxes, labels = values["boxes"].astype(np.float32), values["labels"].astype(np.int32)
            results.append(Detections(boxes, values["scores"], labels, size, self.labels, masks))
        return results
