"""What a model is for, and what follows from that: its data, batches, losses, eager reference and metric."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchvision.models.detection import FasterRCNN

from regionrt.runtime.image import Canvas
from regionrt.runtime.predictor import Predictor
from regionrt.runtime.proposals import ProposalInput
from regionrt.runtime.semantic import SegmentationPredictor

from .batches import Augmentation, TrainingCanvases, collate
from .data import open_data, open_semantic
from .data.proposals import KeptProposals, compute_proposals
from .dense_batches import MainObjects, SemanticCanvases, collate_tensors
from .evaluate import evaluate, match_predictions
from .localisation_metrics import evaluate_localiser
from .models import dense, overfeat_eager, overfeat_losses, proposal_losses, proposal_net, region
from .models.errors import ModelError
from .models.localiser import eager as located
from .models.localiser import losses as localisation_losses
from .semantic_metrics import evaluate_maps


@dataclass(frozen=True)
class Task:
    """The functions that differ from task to task; all else is the same code.

    name: as manifests have it. open_data: (path, split, labels, classes) -> data. items: (module, data, augmentation,
    seed) -> a Dataset whose keys are (epoch, index). losses: (module, *batch) -> losses by name. eager: (module,
    images, image_sizes, what it takes beside, stages=…) -> values by name. thresholds_of: (module) -> what stands in a
    manifest. predictor: what makes results of them. evaluate: (predict, data) -> figures. resampled: (evaluation, data,
    image ids, weights [R, I]) -> metrics [R]. same: whether two evaluations found the same. judged_by: the metric that
    best.pt has most of. contract: metrics that --max-drop is about. per_class: figures of each class that are shown.
    counted: what `objects` of a class counts. proposals_of: (module) -> what a net takes that does not find its own.
    prepare: (module, data sets, progress) -> computes what the first epoch needs.
    """

    name: str
    open_data: Callable[..., Any]
    items: Callable[[Any, Any, Augmentation, int], Dataset]
    collate: Callable[..., Any]
    losses: Callable[..., dict[str, Tensor]]
    eager: Callable[..., dict[str, Tensor]]
    canvas_of: Callable[..., Canvas]
    thresholds_of: Callable[[nn.Module], Mapping[str, float]]
    predictor: type[Predictor]
    evaluate: Callable[..., Any]
    resampled: Callable[[Any, Any, Any, np.ndarray], dict[str, np.ndarray]]
    same: Callable[[Any, Any], bool]
    judged_by: str
    contract: tuple[str, ...]
    per_class: tuple[str, ...]
    counted: str = "objects"
    proposals_of: Callable[[Any], ProposalInput | None] = lambda module: None
    prepare: Callable[[Any, Sequence[Any], Callable[[int, int], None]], None] = lambda module, data, progress: None


def _of_detections(evaluation: Any, data: Any, image_ids: Any, weights: np.ndarray) -> dict[str, np.ndarray]:
    return match_predictions(data, evaluation.predictions, image_ids).ap(weights)


def _same_predictions(one: Any, other: Any) -> bool:
    return one.predictions == other.predictions


def _same_images(one: Any, other: Any) -> bool:
    return np.array_equal(one.by_image, other.by_image, equal_nan=True)


def _of_images(evaluation: Any, data: Any, image_ids: Any, weights: np.ndarray) -> dict[str, np.ndarray]:
    return evaluation.resampled(weights)


def _proposal_items(module: Any, data: Any, augmentation: Augmentation, seed: int) -> Dataset:
    kept = KeptProposals(proposal_net.proposals_of(module).search)
    return TrainingCanvases(data, dense.canvas_of(module), augmentation, seed, propose=kept)


def _search_proposals(module: Any, data: Sequence[Any], progress: Callable[[int, int], None]) -> None:
    search = proposal_net.proposals_of(module).search
    total, before = sum(map(len, data)), 0

    def tell(done: int, _: int) -> None:
        progress(before + done, total)

    for split in data:
        compute_proposals(split, search, progress=tell)
        before += len(split)


def _boxes(name: str, masks: bool) -> Task:
    return Task(
        name=name,
        open_data=open_data,
        items=lambda module, data, augmentation, seed: TrainingCanvases(
            data, region.canvas_of(module), augmentation, seed, masks
        ),
        collate=collate,
        losses=region.losses,
        eager=region.eager,
        canvas_of=region.canvas_of,
        thresholds_of=region.thresholds_of,
        predictor=Predictor,
        evaluate=evaluate,
        resampled=_of_detections,
        same=_same_predictions,
        judged_by="mask_AP" if masks else "AP",
        contract=("AP", "mask_AP"),
        per_class=("AP", "AP50"),
    )


TASKS: dict[str, Task] = {
    "detection": _boxes("detection", masks=False),
    "proposal-detection": replace(
        _boxes("detection", masks=False),
        items=_proposal_items,
        losses=proposal_losses.losses,
        eager=proposal_net.eager,
        canvas_of=dense.canvas_of,
        thresholds_of=proposal_net.thresholds_of,
        proposals_of=proposal_net.proposals_of,
        prepare=_search_proposals,
    ),
    "window-detection": replace(
        _boxes("detection", masks=False),
        items=lambda module, data, augmentation, seed: TrainingCanvases(
            data, overfeat_eager.canvas_of(module), augmentation, seed
        ),
        losses=overfeat_losses.losses,
        eager=overfeat_eager.eager,
        canvas_of=overfeat_eager.canvas_of,
        thresholds_of=overfeat_eager.thresholds_of,
    ),
    "instance-segmentation": _boxes("instance-segmentation", masks=True),
    "segmentation": Task(
        name="segmentation",
        open_data=open_semantic,
        items=lambda module, data, augmentation, seed: SemanticCanvases(
            data, dense.canvas_of(module), augmentation, seed
        ),
        collate=collate_tensors,
        losses=dense.losses,
        eager=dense.eager,
        canvas_of=dense.canvas_of,
        thresholds_of=lambda module: {},
        predictor=SegmentationPredictor,
        evaluate=evaluate_maps,
        resampled=_of_images,
        same=_same_images,
        judged_by="mIoU",
        contract=("mIoU",),
        per_class=("IoU", "accuracy"),
        counted="pixels",
    ),
    "localisation": Task(
        name="localisation",
        open_data=open_data,
        items=lambda module, data, augmentation, seed: MainObjects(data, dense.canvas_of(module), augmentation, seed),
        collate=collate_tensors,
        losses=localisation_losses,
        eager=located,
        canvas_of=dense.canvas_of,
        thresholds_of=lambda module: {"score": 0.0},
        predictor=Predictor,
        evaluate=evaluate_localiser,
        resampled=_of_images,
        same=_same_images,
        judged_by="localisation",
        contract=("localisation",),
        per_class=("localisation", "IoU"),
        counted="images",
    ),
}


def task_of(module: nn.Module) -> Task:
    """The task of a live module: what it says, or what torchvision's detectors are for. ModelError for others."""
    if isinstance(module, FasterRCNN):
        return TASKS["instance-segmentation" if module.roi_heads.has_mask() else "detection"]
    name = getattr(module, "task", None)
    if name not in TASKS:
        raise ModelError(
            f"expected torchvision's FasterRCNN or MaskRCNN, or a net of regionrt.train.models, found "
            f"{type(module).__name__}: pass the net itself, not a wrapper around it"
        )
    return TASKS[name]
