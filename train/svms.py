"""R-CNN's and SPPnet's last step: SVMs on fc7 and ridge regressors of boxes on pooled features become the net's layers.

Girshick et al., R-CNN (arXiv:1311.2524), sections 2.3 and appendices B and C; He et al., SPPnet (arXiv:1406.4729),
section 4.1. What is trained by gradients before it is the rest of the net.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from .checkpoint import module_from_checkpoint, read_checkpoint, write_checkpoint
from .models.errors import ModelError
from .models.proposal_net import ProposalNet
from .svm_regions import Near, Progress, Regions, regions_of_all

NEGATIVE_IOU = 0.3
RIDGE = 1000.0
COST = 10.0  # of all examples of a class together: the paper's 10⁻³ each, where ten thousand make up a set
_NORM = 20.0  # that features are scaled to, on average: COST is meant for that
_POSITIVE_WEIGHT = 2.0
_BIAS_SCALE = 10.0
_ROUNDS = 2  # of hard negatives, each over all images
_NEVER = -1e3  # a bias
_SLOPES = np.geomspace(0.5, 32, 13)  # of margins as logits
_AT_ONCE = 4096  # rows whose margins are computed: scikit-learn makes float64 of them


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

    Of each image `regions` proposals with IoU ≥ 0.6 with an object are drawn, and as many others; fewer, with a
    warning, where their features would take more than `svm_regions.BUDGET`. Class k's SVM: its objects against those
    drawn whose IoU with all of them is below 0.3: a quarter first, then what it gets wrong, twice. Its regressor: those
    drawn that are near one of its objects. The margins become logits beside a background of 0, all times the slope that
    fits the data best. A class without positives warns and is never found; ModelError where no class has any.
    """
    rng = np.random.default_rng(seed)
    images, near = regions_of_all(module, data, regions, rng, progress)
    if not sum(len(image.labels) for image in images):
        raise ModelError("SVMs need objects: the training split has none")
    regressors = _regressors(near, module.num_classes)
    del near  # the SVMs need the memory
    weights, biases = _svms(images, module.num_classes, rng, seed)
    slope = _slope(images, weights, biases)
    with torch.no_grad():
        for layer, weight, bias in (
            (module.head.cls_score, weights * slope, biases * slope),
            (module.head.bbox_pred, *regressors),
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
    images: Sequence[Regions], classes: int, rng: np.random.Generator, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Weights [K+1, features] and biases [K+1] of one SVM (squared hinge) for each class, zero of the background."""
    from sklearn.svm import LinearSVC

    scale = _NORM / max(float(np.mean([np.linalg.norm(row) for image in images for row in image.fc7])), 1e-9)
    weights, biases = np.zeros((classes, images[0].fc7.shape[1])), np.zeros(classes)
    for label in range(1, classes):
        positive = _gathered([(image.fc7, np.flatnonzero(image.labels == label)) for image in images])
        pool = _gathered([(image.fc7, np.flatnonzero(_far_from(image, label))) for image in images])
        positive *= scale
        pool *= scale
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
            parts = range(0, len(pool), _AT_ONCE)
            wrong = np.concatenate([svm.decision_function(pool[i : i + _AT_ONCE]) > -1 for i in parts])
            if not (wrong & ~hard).any():
                break
            hard |= wrong
        weights[label], biases[label] = svm.coef_[0] * scale, float(svm.intercept_[0])
    return weights, biases


def _regressors(images: Sequence[Near], classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Weights [4(K+1), features] and biases [4(K+1)]; zero, which leaves boxes as they are, where nothing was near."""
    from sklearn.linear_model import Ridge

    weights, biases = np.zeros((classes, 4, images[0].pooled.shape[1])), np.zeros((classes, 4))
    for label in range(1, classes):
        own = [np.flatnonzero(image.labels == label) for image in images]
        if any(map(len, own)):
            pooled, targets = (
                _gathered([(getattr(image, name), rows) for image, rows in zip(images, own, strict=True)])
                for name in ("pooled", "targets")
            )
            ridge = Ridge(alpha=RIDGE).fit(pooled, targets)
            weights[label], biases[label] = ridge.coef_, ridge.intercept_
    return weights.reshape(4 * classes, -1), biases.reshape(-1)


def _gathered(parts: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """The given rows of each array, below one another; never twice in memory, as `np.concatenate` of parts has them."""
    first = parts[0][0]
    gathered = np.empty((sum(len(rows) for _, rows in parts), *first.shape[1:]), first.dtype)
    start = 0
    for values, rows in parts:
        gathered[start : start + len(rows)] = values[rows]
        start += len(rows)
    return gathered


def _far_from(image: Regions, label: int) -> np.ndarray:
    """bool [R]: proposals (no objects) that hardly touch an object of this class."""
    own = image.overlap[:, image.labels == label]
    far = own.max(1, initial=0.0) < NEGATIVE_IOU
    far[: len(image.labels)] = False
    return far


def _slope(images: Sequence[Regions], weights: np.ndarray, biases: np.ndarray) -> float:
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
