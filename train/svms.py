"""R-CNN's and SPPnet's last step: SVMs on fc7 and ridge regressors of boxes on pooled features become the net's layers.

Girshick et al., R-CNN (arXiv:1311.2524), sections 2.3 and appendices B and C; He et al., SPPnet (arXiv:1406.4729),
section 4.1. What is trained by gradients before it is the rest of the net.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.ops import box_iou

from .checkpoint import module_from_checkpoint, read_checkpoint, write_checkpoint
from .data.proposals import KeptProposals
from .models.dense import canvas_of, normalised
from .models.errors import ModelError
from .models.proposal_net import ProposalNet, proposals_of

NEGATIVE_IOU = 0.3
NEAR_IOU = 0.6  # of a proposal that a regressor learns from
RIDGE = 1000.0
COST = 10.0  # of all examples of a class together: the paper's 10⁻³ each, where ten thousand make up a set
_NORM = 20.0  # that features are scaled to, on average: COST is meant for that
_POSITIVE_WEIGHT = 2.0
_BIAS_SCALE = 10.0
_ROUNDS = 2  # of hard negatives, each over all images
_NEVER = -1e3  # a bias
_SLOPES = np.geomspace(0.5, 32, 13)  # of margins as logits
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class _Regions:
    """Of one image: fc7 [R, …] of objects, then proposals, IoU [R, n] with its n objects, and their labels [n].

    near_…: of proposals that regressors learn from, what was pooled, the nearest object's label, and the targets.
    """

    fc7: np.ndarray
    overlap: np.ndarray
    labels: np.ndarray
    near_pooled: np.ndarray
    near_label: np.ndarray
    near_target: np.ndarray


def without_regressors(module: nn.Module) -> tuple[str, ...]:
    """Before a net is trained that SVMs and regressors come into later: its boxes stay the proposals until then.

    The regressors become zero, where they hold random numbers or, of a checkpoint to go on from, what fitted its old
    features: validation would judge boxes by them. Returns the names of the layers that gradients are not to change;
    none for other nets. ModelError where layers that are to be replaced are split.
    """
    if not isinstance(module, ProposalNet) or module.config.classifier != "svm":
        return ()
    for name in ("cls_score", "bbox_pred"):
        if not isinstance(getattr(module.head, name), nn.Linear):
            raise ModelError(
                f"head.{name} is split by SVD, and SVMs and regressors take the place of whole layers: compress with "
                "--layers fc6,fc7, or train first"
            )
    for values in module.head.bbox_pred.parameters():  # type: ignore[union-attr]
        nn.init.zeros_(values)
    return ("head.bbox_pred",)


def fit_svms(
    module: ProposalNet,
    data: Any,
    *,
    seed: int = 0,
    regions: int = 200,
    progress: Progress = lambda done, total: None,
) -> None:
    """Replace `cls_score` and `bbox_pred` of a module in eval mode by what SVMs and ridge regression find on `data`.

    Of each image `regions` proposals with IoU ≥ 0.6 with an object are drawn, and as many others. Class k's SVM: its
    objects against those drawn whose IoU with all of them is below 0.3: a quarter first, then what it gets wrong,
    twice. Its regressor: those drawn that are near one of its objects. The margins become logits beside a background
    of 0, all times the slope that fits the data best. A class without positives warns and is never found; ModelError
    where no class has any.
    """
    rng = np.random.default_rng(seed)
    images: list[_Regions] = []
    for index in range(len(data)):
        images.append(_regions_of(module, data[index], regions, rng))
        progress(index + 1, len(data))
    if not sum(len(image.labels) for image in images):
        raise ModelError("SVMs need objects: the training split has none")
    weights, biases = _svms(images, module.num_classes, rng, seed)
    slope = _slope(images, weights, biases)
    with torch.no_grad():
        for layer, weight, bias in (
            (module.head.cls_score, weights * slope, biases * slope),
            (module.head.bbox_pred, *_regressors(images, module.num_classes)),
        ):
            layer.weight.copy_(torch.from_numpy(weight))
            layer.bias.copy_(torch.from_numpy(bias))


def svms_into(path: Path, data: Any, seed: int, progress: Progress) -> ProposalNet:
    """`fit_svms` on a checkpoint's net; the file has its layers then. Returns the net, in eval mode."""
    checkpoint = read_checkpoint(path)
    module = module_from_checkpoint(checkpoint)
    fit_svms(module, data, seed=seed, progress=progress)
    write_checkpoint(path, replace(checkpoint, state_dict=module.state_dict()))
    return module


def _svms(
    images: Sequence[_Regions], classes: int, rng: np.random.Generator, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Weights [K+1, features] and biases [K+1] of one SVM (squared hinge) for each class, zero of the background."""
    from sklearn.svm import LinearSVC

    scale = _NORM / max(float(np.mean([np.linalg.norm(row) for image in images for row in image.fc7])), 1e-9)
    weights, biases = np.zeros((classes, images[0].fc7.shape[1])), np.zeros(classes)
    for label in range(1, classes):
        positive = np.concatenate([image.fc7[: len(image.labels)][image.labels == label] for image in images]) * scale
        pool = np.concatenate([image.fc7[_far_from(image, label)] for image in images]) * scale
        if not len(positive) or not len(pool):
            what = "object of" if not len(positive) else "proposal far from"
            warnings.warn(f"no {what} class {label} in the training split: it will never be found", stacklevel=3)
            biases[label] = _NEVER
            continue
        hard = np.zeros(len(pool), bool)
        hard[rng.permutation(len(pool))[: max(len(pool) // 4, 1)]] = True
        for _ in range(1 + _ROUNDS):
            examples = len(positive) + int(hard.sum())
            svm = LinearSVC(
                C=COST / examples, dual=False, intercept_scaling=_BIAS_SCALE,
                class_weight={1: _POSITIVE_WEIGHT, 0: 1.0}, random_state=seed, max_iter=10_000,
            )  # fmt: skip
            svm.fit(np.concatenate([positive, pool[hard]]), np.arange(examples) < len(positive))
            wrong = svm.decision_function(pool) > -1
            if not (wrong & ~hard).any():
                break
            hard |= wrong
        weights[label], biases[label] = svm.coef_[0] * scale, float(svm.intercept_[0])
    return weights, biases


def _regressors(images: Sequence[_Regions], classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Weights [4(K+1), features] and biases [4(K+1)]; zero, which leaves boxes as they are, where nothing was near."""
    from sklearn.linear_model import Ridge

    pooled, labels, targets = (
        np.concatenate([getattr(image, name) for image in images])
        for name in ("near_pooled", "near_label", "near_target")
    )
    weights, biases = np.zeros((classes, 4, pooled.shape[1])), np.zeros((classes, 4))
    for label in range(1, classes):
        own = labels == label
        if own.any():
            ridge = Ridge(alpha=RIDGE).fit(pooled[own], targets[own])
            weights[label], biases[label] = ridge.coef_, ridge.intercept_
    return weights.reshape(4 * classes, -1), biases.reshape(-1)


@torch.no_grad()
def _regions_of(module: ProposalNet, sample: Any, most: int, rng: np.random.Generator) -> _Regions:
    """Objects first, then proposals: those near an object, and some of the others."""
    image = sample.image()
    canvases, sizes, (placement,) = canvas_of(module).place([image])
    wanted = ~sample.ignore
    found = KeptProposals(proposals_of(module).search)(image)[: module.slots]
    objects, others = (torch.from_numpy(placement.boxes_to_canvas(b)) for b in (sample.boxes[wanted], found))
    overlap = box_iou(others, objects).max(1).values if len(objects) else others.new_zeros(len(others))
    near, far = (
        places[torch.from_numpy(rng.permutation(len(places))[:most])]
        for places in (torch.where(overlap >= NEAR_IOU)[0], torch.where(overlap < NEAR_IOU)[0])
    )
    boxes = torch.cat([objects, others[near], others[far]])
    x = normalised(module, torch.from_numpy(canvases), torch.from_numpy(sizes))
    fc7, pooled = _features(module, module.features(x), boxes)
    overlaps = box_iou(boxes, objects).numpy()
    labels = sample.labels[wanted].astype(np.int64)
    rows = np.arange(len(objects), len(objects) + len(near))
    nearest = overlaps[rows].argmax(1) if len(objects) else rows[:0]
    targets = module.heads.box_coder.encode([objects[nearest]], [boxes[rows]])[0] if len(rows) else boxes[:0]
    return _Regions(fc7.numpy(), overlaps, labels, pooled[rows].numpy(), labels[nearest], targets.numpy())


def _features(module: ProposalNet, feature: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """What SVMs and regressors read, of boxes [R, 4] of one image: float32 [R, …] each."""
    step = module.rows_at_once or max(len(boxes), 1)
    fc7, pooled = [], []
    for part in boxes.split(step):
        rows = module.pool(feature, part[None], torch.tensor([len(part)], dtype=torch.int32))[0]
        flat = module.cells(rows).flatten(1)
        pooled.append(flat)
        fc7.append(module.head.hidden(flat))
    if not fc7:
        empty = feature.new_zeros(0, module.head.bbox_pred.in_features)
        return feature.new_zeros(0, module.head.cls_score.in_features), empty
    return torch.cat(fc7), torch.cat(pooled)


def _far_from(image: _Regions, label: int) -> np.ndarray:
    """bool [R]: proposals (no objects) that hardly touch an object of this class."""
    own = image.overlap[:, image.labels == label]
    far = own.max(1, initial=0.0) < NEGATIVE_IOU
    far[: len(image.labels)] = False
    return far


def _slope(images: Sequence[_Regions], weights: np.ndarray, biases: np.ndarray) -> float:
    """By which margins are multiplied, so that a softmax over them and 0 says best what the regions are."""
    margins, labels = [], []
    for image in images:
        margins.append(image.fc7 @ weights.T + biases)
        of_row = np.zeros(len(image.fc7), np.int64)
        if len(image.labels):
            best, nearest = image.overlap.max(1), image.overlap.argmax(1)
            of_row = np.where(best >= 0.5, image.labels[nearest], 0)
        labels.append(of_row)
    z, y = torch.from_numpy(np.concatenate(margins)), torch.from_numpy(np.concatenate(labels))
    losses = [float(torch.nn.functional.cross_entropy(z * slope, y)) for slope in _SLOPES]
    return float(_SLOPES[int(np.argmin(losses))])
