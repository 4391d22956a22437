"""Detectors of a few thousand weights, and photos for them: exported in seconds."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import FrozenBatchNorm2d, MultiScaleRoIAlign

from regionrt.train.models.region import canvas_of, eager

LABELS = ("__background__", "disc", "square", "ring")
PROPOSALS, DETECTIONS = 40, 15
NOTHING = ("nothing", np.full((64, 96, 3), 116, np.uint8))


class OneMap(nn.Module):
    """Three convolutions, one map of stride 8; BatchNorm of both kinds with statistics that matter."""

    def __init__(self, width: int = 8):
        super().__init__()
        self.out_channels = width
        self.layers = nn.Sequential(
            nn.Conv2d(3, width, 3, 2, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, 2, 1, bias=False),
            FrozenBatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, 2, 1),
            nn.ReLU(),
        )
        for layer in self.layers:
            if isinstance(layer, nn.BatchNorm2d | FrozenBatchNorm2d):
                layer.running_mean.normal_(0, 0.2)
                layer.running_var.uniform_(0.5, 2)
                layer.weight.data.uniform_(0.5, 1.5)
                layer.bias.data.normal_(0, 0.2)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class Pyramid(nn.Module):
    """Maps of stride 8 and 16 with a top-down path, and one of stride 32 for the RPN alone."""

    def __init__(self, width: int = 8):
        super().__init__()
        self.out_channels = width
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, 4, 1), nn.ReLU(), nn.Conv2d(width, width, 3, 2, 1), nn.ReLU())
        self.deep = nn.Sequential(nn.Conv2d(width, width, 3, 2, 1), nn.ReLU())
        self.lateral = nn.ModuleList(nn.Conv2d(width, width, 1) for _ in range(2))

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        fine = self.stem(x)
        coarse = self.lateral[1](self.deep(fine))
        fine = self.lateral[0](fine) + F.interpolate(coarse, size=fine.shape[-2:], mode="nearest")
        return OrderedDict([("0", fine), ("1", coarse), ("pool", F.max_pool2d(coarse, 1, 2, 0))])


def parts(backbone: nn.Module, maps: list[str], **changes) -> dict:
    """The arguments of FasterRCNN."""
    levels = len(maps) if maps == ["0"] else len(maps) + 1
    pool = MultiScaleRoIAlign(maps, 3, 2, canonical_scale=32, canonical_level=4)
    return {
        "backbone": backbone,
        "num_classes": None,
        "min_size": 64,
        "max_size": 96,
        "rpn_anchor_generator": AnchorGenerator(
            tuple((12 * 2**i, 18 * 2**i) for i in range(levels)), ((0.5, 1, 2),) * levels
        ),
        "rpn_pre_nms_top_n_test": 60,
        "rpn_post_nms_top_n_test": PROPOSALS,
        "box_roi_pool": pool,
        "box_head": TwoMLPHead(backbone.out_channels * 9, 24),
        "box_predictor": FastRCNNPredictor(24, len(LABELS)),
        "box_score_thresh": 0.3,
        "box_detections_per_img": DETECTIONS,
        **changes,
    }


def faster(seed: int = 0, **changes) -> FasterRCNN:
    """One level, stride 8."""
    torch.manual_seed(seed)
    return spread(FasterRCNN(**parts(OneMap(), ["0"], **changes)))


def mask(seed: int = 0, **changes) -> MaskRCNN:
    """Two levels for RoIs, three for the RPN, stride 16."""
    torch.manual_seed(seed)
    backbone = Pyramid()
    heads = {
        "mask_roi_pool": MultiScaleRoIAlign(["0", "1"], 4, 2, canonical_scale=32, canonical_level=4),
        "mask_head": MaskRCNNHeads(backbone.out_channels, (8,), 1),
        "mask_predictor": MaskRCNNPredictor(8, 8, len(LABELS)),
    }
    return spread(MaskRCNN(**parts(backbone, ["0", "1"], **heads | changes)))


def spread(module: FasterRCNN) -> FasterRCNN:
    """Weights with which scores are far from ties and boxes far from the anchors."""
    heads = module.roi_heads
    with torch.no_grad():
        for layer in module.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear | nn.ConvTranspose2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                if layer.bias is not None:
                    layer.bias.normal_(0, 0.1)
        module.rpn.head.cls_logits.weight.mul_(2)
        module.rpn.head.bbox_pred.weight.mul_(0.1)
        heads.box_predictor.bbox_pred.weight.mul_(0.5)
        heads.box_predictor.cls_score.weight.mul_(2)
    module.eval()
    some, none = (_box_head_outputs(module, images) for images in (photos([(64, 96)] * 4, seed=9), [NOTHING]))
    with torch.no_grad():  # nothing is found in the flat photo; in others every class is the best one somewhere
        apart = none.mean(0) - some.mean(0)
        heads.box_predictor.cls_score.weight[0] += 12 * apart / apart.square().sum()
        heads.box_predictor.cls_score.bias.copy_(-heads.box_predictor.cls_score.weight @ some.mean(0))
    return module


def _box_head_outputs(module: FasterRCNN, images: list[tuple[str, np.ndarray]]) -> Tensor:
    """What the box head makes of each RoI: [RoIs, width]."""
    seen: list[Tensor] = []
    hook = module.roi_heads.box_predictor.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    canvases, sizes, _ = canvas_of(module, (64, 96)).place([photo for _, photo in images])
    eager(module, torch.from_numpy(canvases), torch.from_numpy(sizes))
    hook.remove()
    return seen[0][:-1]  # the last row shows what padding gives


def photos(sizes: list[tuple[int, int]], seed: int = 0) -> list[tuple[str, np.ndarray]]:
    """Smooth noise with grain: (name, RGB uint8 [h, w, 3])."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for number, (height, width) in enumerate(sizes):
        coarse = torch.randint(0, 256, (1, 3, 6, 8), generator=generator).float()
        smooth = F.interpolate(coarse, (height, width), mode="bilinear")[0].permute(1, 2, 0)
        grain = torch.randint(-20, 21, (height, width, 3), generator=generator)
        found.append((f"photo {number}", (smooth + grain).clamp(0, 255).byte().numpy()))
    return found
