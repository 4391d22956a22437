"""mIoU and its relatives: by hand, against torchmetrics' own Jaccard index, and with void."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex

from regionrt.runtime.semantic import SemanticMap
from regionrt.train.data import VOID, DataError, SemanticSample
from regionrt.train.semantic_metrics import confusion_of, evaluate_maps, measure_maps

LABELS = ("a", "b", "c", "d")


def measured(*pairs: tuple[np.ndarray, np.ndarray]):
    confusion = np.stack([confusion_of(truth, found, len(LABELS)) for truth, found in pairs])
    return measure_maps(confusion, list(range(len(pairs))), LABELS, "test")


def test_by_hand() -> None:
    truth = np.array([[0, 0, 1, VOID], [1, 2, 2, VOID]], np.uint8)
    found = np.array([[0, 1, 1, 0], [1, 2, 0, 3]], np.uint8)
    result = measured((truth, found))
    iou = [1 / 3, 2 / 3, 1 / 2]  # d occurs nowhere but where void is: it is not judged
    assert [result.per_class[name]["IoU"] for name in "abc"] == pytest.approx(iou)
    assert np.isnan(result.per_class["d"]["IoU"])
    assert result.metrics["mIoU"] == pytest.approx(np.mean(iou))
    assert result.metrics["pixel_accuracy"] == pytest.approx(4 / 6)
    assert result.metrics["mean_accuracy"] == pytest.approx(np.mean([1 / 2, 1, 1 / 2]))
    assert [result.per_class[name]["objects"] for name in LABELS] == [2, 2, 2, 0]


def test_against_torchmetrics_over_several_images() -> None:
    rng = np.random.default_rng(0)
    pairs = []
    for _ in range(5):
        truth = rng.integers(0, 4, (13, 17)).astype(np.uint8)
        found = np.where(rng.random(truth.shape) < 0.6, truth, rng.integers(0, 4, truth.shape)).astype(np.uint8)
        truth[rng.random(truth.shape) < 0.2] = VOID
        pairs.append((truth, found))
    result = measured(*pairs)
    truths, founds = (torch.from_numpy(np.stack(values).astype(np.int64)) for values in zip(*pairs, strict=True))
    known = truths != VOID  # torchmetrics sees only what counts: no `ignore_index` of its own is relied on
    for metric, ours in (
        (MulticlassJaccardIndex(4, average="macro"), result.metrics["mIoU"]),
        (MulticlassAccuracy(4, average="micro"), result.metrics["pixel_accuracy"]),
        (MulticlassAccuracy(4, average="macro"), result.metrics["mean_accuracy"]),
    ):
        assert ours == pytest.approx(float(metric(founds[known], truths[known])), abs=1e-6)
    per_class = MulticlassJaccardIndex(4, average=None)(founds[known], truths[known])
    assert [result.per_class[name]["IoU"] for name in LABELS] == pytest.approx(per_class.tolist(), abs=1e-6)


def test_nothing_but_void_is_no_figure_and_takes_nothing_from_others() -> None:
    void, found = np.full((3, 3), VOID, np.uint8), np.ones((3, 3), np.uint8)
    alone = measured((void, found))
    assert all(np.isnan(value) for value in alone.metrics.values())
    assert alone.to_json()["metrics"]["mIoU"] is None
    truth = np.array([[0, 1, 1]], np.uint8)
    assert measured((void, found), (truth, truth)).metrics["mIoU"] == 1


def test_resamples_are_the_figures_of_what_was_drawn() -> None:
    rng = np.random.default_rng(1)
    pairs = [tuple(rng.integers(0, 4, (2, 6, 6)).astype(np.uint8)) for _ in range(4)]
    drawn = measured(*pairs).resampled(np.array([[1, 1, 1, 1], [0, 3, 0, 1]]))
    again = measured(pairs[1], pairs[1], pairs[1], pairs[3])
    for name in ("mIoU", "pixel_accuracy", "mean_accuracy"):
        assert drawn[name] == pytest.approx([measured(*pairs).metrics[name], again.metrics[name]])


class Maps:
    """A split of one image."""

    labels, split, has_masks = LABELS, "test", False

    def __init__(self, labels: np.ndarray) -> None:
        self.sample = SemanticSample(1, "x", labels.shape, np.zeros((*labels.shape, 3), np.uint8), labels)

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> SemanticSample:
        return self.sample


class Says:
    """A segmenter that always says the same."""

    max_batch = 4

    def __init__(self, labels: np.ndarray, names: tuple[str, ...] = LABELS) -> None:
        self.found, self.labels = labels, names

    def batch(self, images) -> list[SemanticMap]:
        return [SemanticMap(self.found, self.labels) for _ in images]


def test_a_predictor_over_a_split() -> None:
    labels = np.array([[0, 1], [VOID, 3]], np.uint8)
    seen = []
    result = evaluate_maps(Says(np.zeros((2, 2), np.uint8)), Maps(labels), progress=lambda *at: seen.append(at))
    assert result.metrics["pixel_accuracy"] == pytest.approx(1 / 3)
    assert seen == [(0, 1), (1, 1)]
    with pytest.raises(DataError, match="open the data with the net's labels"):
        evaluate_maps(Says(labels, ("a", "b")), Maps(labels))
