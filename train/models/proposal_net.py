"""Nets that classify proposals from outside: what R-CNN, SPPnet and Fast R-CNN have in common, and their reference.

They differ in what a region is cut from (pixels or a feature map), in how (`pool`), and in the layers behind (`head`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection._utils import BoxCoder

from regionrt.runtime.errors import BundleError
from regionrt.runtime.proposals import ProposalInput
from regionrt.runtime.selective_search import SelectiveSearch

from .backbones import BACKBONES
from .dense import normalised
from .dense_config import CanvasConfig
from .detections import detections_of, padded_detections, pairs
from .errors import ModelError
from .region import MAX_CANDIDATES, check_size

BOX_WEIGHTS = (10.0, 10.0, 5.0, 5.0)
"""1 / the standard deviations of the targets of boxes (0.1, 0.1, 0.2, 0.2; their means are 0), by which they are
normalised (arXiv:1504.08083, section 2.3): the figures that Fast R-CNN's successors fixed."""


@dataclass(frozen=True)
class ProposalConfig(CanvasConfig):
    """Options of all three. proposals: most of a photo. search: fields of `SelectiveSearch` that are to be other ones.
    scales: at which maps are computed, of those that pool from maps; factors of the canvas, see `scales.Sheet`.

    representation: width of fc6 and fc7. score, nms, detections: of the final boxes. Training: rois_per_image are
    sampled, the part `foreground` of them among those with IoU ≥ foreground_iou with an object, the others among those
    with an IoU in background_iou, [low, high). box_weight: λ of the boxes' loss. channels: of the map; None: its own.
    classifier: "softmax", trained together with the boxes (Fast R-CNN); or "svm": a softmax is fine-tuned alone, then
    SVMs take its place, and ridge regression finds the boxes from the pooled features (R-CNN, SPPnet).
    """

    size: tuple[int, int] = (384, 512)
    enlarge: bool = True
    backbone: str = "squeezenet1_1"
    norm: str = "batch"
    channels: int | None = None
    representation: int = 4096
    dropout: float = 0.5
    proposals: int = 2000
    search: Mapping[str, Any] = field(default_factory=dict)
    scales: tuple[float, ...] = (1.0,)
    score: float = 0.05
    nms: float = 0.3
    detections: int = 100
    rois_per_image: int = 64
    foreground: float = 0.25
    foreground_iou: float = 0.5
    background_iou: tuple[float, float] = (0.1, 0.5)
    box_weight: float = 1.0
    classifier: str = "softmax"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("score", "nms", "foreground", "foreground_iou"):
            if not 0 <= getattr(self, name) <= 1:
                raise ModelError(f"{name} {getattr(self, name)}: give a number from 0 to 1")
        if len(self.background_iou) != 2 or not 0 <= self.background_iou[0] < self.background_iou[1] <= 1:
            raise ModelError(f"background_iou {list(self.background_iou)}: give the lowest IoU and the one above all")
        if self.classifier not in ("softmax", "svm"):
            raise ModelError(f'classifier {self.classifier!r}: give "softmax" or "svm"')
        if not self.box_weight >= 0:
            raise ModelError(f"box_weight {self.box_weight}: give 0 or more")
        try:
            SelectiveSearch.from_json(self.search)
        except BundleError as error:
            raise ModelError(str(error)) from error


@dataclass(frozen=True)
class Testing:
    """What `detections_of` reads, under torchvision's names."""

    score_thresh: float
    nms_thresh: float
    detections_per_img: int
    box_coder: Any = field(default_factory=lambda: BoxCoder(BOX_WEIGHTS), compare=False)


class ProposalNet(nn.Module):
    """Normalised images [N, 3, H, W] and proposals [N, P, 4] (canvas px) -> class logits and box deltas of each.

    `backbone` holds the layers that --init brings weights for, `head` the fully connected ones.
    """

    task = "proposal-detection"
    rows_at_once: int | None = None
    """How many regions are pooled at once where no gradients are asked for; None: all."""

    def __init__(self, config: ProposalConfig, labels: Sequence[str], stride: int, head: nn.Module) -> None:
        super().__init__()
        check_size(config.size, stride)
        self.config = config
        self.num_classes = len(labels)
        self.stride = stride
        self.least_px = stride
        self.slots = config.proposals
        self.heads = Testing(config.score, config.nms, config.detections)
        self.head = head

    def features(self, x: Tensor) -> Tensor:
        """What regions are pooled from."""
        raise NotImplementedError

    def placed(self, rois: Tensor) -> Tensor:
        """Boxes [N, P, 4] in canvas px -> where `features` has them, in cells times the stride."""
        return rois

    def cut(self, feature: Tensor, rois: Tensor, counts: Tensor) -> Tensor:
        """[N, P, …] of boxes that are `placed`; see `pool`."""
        raise NotImplementedError

    def pool(self, feature: Tensor, rois: Tensor, counts: Tensor) -> Tensor:
        """[N, P, …] of boxes in canvas px, differentiable where gradients are asked for; zero behind the counts."""
        return self.cut(feature, self.placed(rois), counts)

    def cells(self, rows: Tensor) -> Tensor:
        """Pooled regions [R, …] -> what the fully connected layers read of them."""
        return rows

    def classify(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Pooled regions [R, …] -> class logits [R, K+1] and box deltas [R, 4(K+1)]."""
        return self.head(self.cells(rows))


class FullyConnected(nn.Module):
    """fc6 and fc7 with ReLU and dropout, then the sibling layers (arXiv:1504.08083, section 2.1).

    With SVMs the layer of the boxes reads what fc6 reads (arXiv:1311.2524, appendix C).
    """

    def __init__(self, inputs: int, config: ProposalConfig, classes: int) -> None:
        super().__init__()
        self.fc6 = nn.Linear(inputs, config.representation)
        self.fc7 = nn.Linear(config.representation, config.representation)
        self.dropout = nn.Dropout(config.dropout)
        self.cls_score = nn.Linear(config.representation, classes)
        self.of_pooled = config.classifier == "svm"
        self.bbox_pred = nn.Linear(inputs if self.of_pooled else config.representation, 4 * classes)
        for layer, std in ((self.cls_score, 0.01), (self.bbox_pred, 0.001)):  # section 2.3
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)

    def forward(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        pooled = rows.flatten(1)
        x = self.hidden(pooled)
        return self.cls_score(x), self.bbox_pred(pooled if self.of_pooled else x)

    def hidden(self, pooled: Tensor) -> Tensor:
        """[R, representation]: what fc7 gives."""
        x = self.dropout(F.relu(self.fc6(pooled)))
        return self.dropout(F.relu(self.fc7(x)))


def one_map(config: ProposalConfig) -> tuple[nn.Module, int]:
    """A backbone of one map and its stride. ModelError for a name that has none."""
    entry = BACKBONES.get(config.backbone)
    if entry is None or entry.levels != 1:
        names = ", ".join(name for name, other in BACKBONES.items() if other.levels == 1)
        raise ModelError(f"backbone {config.backbone!r}: these nets pool from one map: choose one of {names}")
    return entry.build(config), entry.stride


def proposals_of(module: ProposalNet) -> ProposalInput:
    """What the net takes, as the runtime prepares it."""
    return ProposalInput(module.slots, SelectiveSearch.from_json(module.config.search))


def usually_frozen(module: nn.Module) -> tuple[str, ...]:
    """Names of the layers that are not fine-tuned (arXiv:1504.08083, section 4.5): of VGG16 conv1 and conv2, of smaller
    backbones what comes first. Of other nets none.

    A choice for R-CNN and SPPnet, for small data: the one fine-tunes all layers in its paper (arXiv:1311.2524, section
    2.3), the other the fully connected ones alone (arXiv:1406.4729, section 4.1).
    """
    return BACKBONES[module.config.backbone].frozen if isinstance(module, ProposalNet) else ()


def thresholds_of(module: ProposalNet) -> dict[str, float]:
    """What a module's detections are filtered by, under the names that a bundle's manifest gives them."""
    heads = module.heads
    return {
        "score": heads.score_thresh,
        "nms": heads.nms_thresh,
        "detections": heads.detections_per_img,
        "proposals": module.slots,
        "candidates": MAX_CANDIDATES,
    }


@torch.no_grad()
def eager(
    module: ProposalNet,
    images: Tensor,
    image_sizes: Tensor,
    proposals: Tensor,
    proposal_counts: Tensor,
    *,
    candidates: int = MAX_CANDIDATES,
    stages: bool = True,
) -> dict[str, Tensor]:
    """Detections of a batch of canvases and every value on the way: what artefacts must match.

    images uint8 [N, H, W, 3], image_sizes int [N, 2], proposals float32 [N, P, 4] in canvas px, proposal_counts int
    [N]; the module in eval mode. Names and shapes are those of `region.eager`, of one map: `features.0` (of R-CNN the
    normalised image), `rois` (as `placed`), `roi_features`, `class_logits`, `box_deltas`, the detections, `roi_index`.
    """
    if module.training:
        raise ValueError("eager needs module.eval()")
    x = normalised(module, images, image_sizes)
    rois, counts = proposals.to(x.device), proposal_counts.to(x.device)
    feature = module.features(x)
    real = torch.arange(rois.shape[1], device=x.device) < counts[:, None]  # [N, P]
    logits, deltas = _on_padding(module, feature, rois[:, :1], real.shape)
    pooled = []
    for part, of_part in _parts(module, feature, rois, counts):
        rows = of_part[real[:, part]]
        if len(rows):
            logits[:, part][real[:, part]], deltas[:, part][real[:, part]] = _of_rows(module, rows)
        if stages:
            pooled.append(of_part)
    found = [
        detections_of(module.heads, logits[n, :count], deltas[n, :count], rois[n, :count], size, candidates)
        for n, (count, size) in enumerate(zip(counts.tolist(), pairs(image_sizes), strict=True))
    ]
    values = padded_detections(found, module.heads.detections_per_img)
    if not stages:
        del values["roi_index"]
        return values
    maps = {"features.0": feature, "rois": module.placed(rois), "roi_features": torch.cat(pooled, 1)}
    return values | maps | {"class_logits": logits, "box_deltas": deltas}


def _parts(module: ProposalNet, feature: Tensor, rois: Tensor, counts: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """The regions pooled, `rows_at_once` of each image at a time."""
    slots = rois.shape[1]
    step = module.rows_at_once or slots
    for start in range(0, slots, step):
        part = slice(start, min(start + step, slots))
        yield part, module.pool(feature, rois[:, part], (counts - start).clamp(0, step).to(counts.dtype))


def _on_padding(module: ProposalNet, feature: Tensor, roi: Tensor, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Logits and deltas [*rows, …] of regions that are not there: what the head gives on zeros."""
    none = torch.zeros(len(roi), dtype=torch.int32, device=roi.device)
    logits, deltas = _of_rows(module, module.pool(feature, roi, none)[:1, 0])
    return logits.expand(*rows, -1).clone(), deltas.expand(*rows, -1).clone()


def _of_rows(module: ProposalNet, rows: Tensor) -> tuple[Tensor, Tensor]:
    logits, deltas = module.classify(rows)
    return logits.float(), deltas.float()  # boxes are decoded in the type of the deltas
