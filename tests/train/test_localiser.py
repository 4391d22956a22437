"""The localiser: its losses, its one detection, and the metric by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from regionrt.runtime.image import Canvas
from regionrt.runtime.results import Detections
from regionrt.train.batches import Augmentation
from regionrt.train.data import DataError, Sample, open_data
from regionrt.train.dense_batches import MainObjects
from regionrt.train.localisation_metrics import evaluate_localiser, main_object
from regionrt.train.models import ModelError, build_model
from regionrt.train.models.dense import canvas_of, normalised
from regionrt.train.models.localiser import detection_of, eager, losses

LABELS = ("__background__", "disc", "square")


def localiser(**config):
    torch.manual_seed(0)
    return build_model("localiser", {"size": [64, 96], "dropout": 0.0} | config, LABELS)


@pytest.mark.parametrize("box_loss", ["smooth_l1", "l2"])
def test_losses_by_hand_and_nothing_from_images_without_an_object(box_loss: str) -> None:
    module = localiser(box_loss=box_loss, box_weight=3.0)
    images = torch.randint(0, 256, (2, 64, 96, 3), dtype=torch.uint8)
    sizes = torch.tensor([[64, 96]] * 2, dtype=torch.int32)
    targets = torch.tensor([[2.0, 9.6, 6.4, 48, 32], [0, 0, 0, 0, 0]])
    found = losses(module, images, sizes, targets)
    logits, boxes = module(normalised(module, images, sizes), sizes)
    assert found["loss_class"].item() == pytest.approx(-logits[0].log_softmax(0)[1].item(), rel=1e-5)
    error = (boxes[0] - torch.tensor([0.1, 0.1, 0.5, 0.5])).abs()
    per_side = torch.where(error < 0.1, error**2 / 0.2, error - 0.05) if box_loss == "smooth_l1" else error**2
    assert found["loss_box"].item() == pytest.approx(3 * per_side.sum().item(), rel=1e-4)
    sum(losses(module, images, sizes, torch.zeros(2, 5)).values()).backward()
    assert all(p.grad is None or not p.grad.any() for p in module.parameters())


def test_one_detection_inside_the_valid_part() -> None:
    logits = torch.tensor([[0.0, 2.0], [3.0, 0.0]])
    fractions = torch.tensor([[0.1, 0.2, 0.5, 0.8], [0.9, -0.3, 0.25, 1.4]])
    valid = torch.tensor([[96.0, 64.0], [96.0, 40.0]])
    found = detection_of(logits, fractions, torch.tensor([[96.0, 64.0]] * 2), valid)
    assert found["num_detections"].tolist() == [1, 1]
    assert found["labels"].tolist() == [[2], [1]]
    torch.testing.assert_close(found["scores"], logits.softmax(1).max(1, keepdim=True).values)
    expected = torch.tensor([[[9.6, 12.8, 48, 51.2]], [[24.0, 0, 86.4, 40]]])  # corners in order, clipped
    torch.testing.assert_close(found["boxes"], expected)
    assert [found[name].dtype for name in ("num_detections", "labels", "overflow")] == [torch.int32] * 3


def test_a_pyramid_reads_the_photos_part_of_any_canvas() -> None:
    module = localiser(pyramid=[3, 2, 1]).eval()
    sizes = torch.tensor([[64, 96], [48, 64]], dtype=torch.int32)
    images = torch.randint(0, 256, (2, 64, 96, 3), dtype=torch.uint8)
    found = eager(module, images, sizes)
    for n, (height, width) in enumerate(sizes.tolist()):
        cells = found["features.0"][n : n + 1, :, : height // 16, : width // 16]
        levels = [torch.nn.functional.adaptive_max_pool2d(cells, bins).flatten(1) for bins in (3, 2, 1)]
        torch.testing.assert_close(found["roi_features.0"][n], torch.cat(levels, 1), rtol=0, atol=0)
    sides = torch.tensor([[96.0, 64.0, 96.0, 64.0], [64.0, 48.0, 64.0, 48.0]])
    boxes = (found["box_fractions"] * sides).clamp(min=0).minimum(sides)
    torch.testing.assert_close(found["boxes"][:, 0], boxes)
    assert canvas_of(module, (32, 160), dynamic=True).dynamic
    larger = torch.randint(0, 256, (1, 128, 160, 3), dtype=torch.uint8)
    assert eager(module, larger, torch.tensor([[128, 150]], dtype=torch.int32))["boxes"].shape == (1, 1, 4)


def test_losses_of_a_pyramid_are_about_parts_of_the_photo() -> None:
    module = localiser(pyramid=[2, 1], box_loss="l2", box_weight=1.0)
    images = torch.randint(0, 256, (1, 64, 96, 3), dtype=torch.uint8)
    sizes = torch.tensor([[32, 48]], dtype=torch.int32)
    found = losses(module, images, sizes, torch.tensor([[1.0, 4.8, 3.2, 24, 16]]))
    _, boxes = module(normalised(module, images, sizes), sizes)
    assert found["loss_box"].item() == pytest.approx(
        (boxes[0] - torch.tensor([0.1, 0.1, 0.5, 0.5])).square().sum().item()
    )
    sum(found.values()).backward()
    assert module.narrow.weight.grad.any()


def sample(*boxes: tuple[float, float, float, float], ignore: tuple[bool, ...] = ()) -> Sample:
    array = np.array(boxes, np.float32).reshape(-1, 4)
    flags = np.array(ignore or [False] * len(array), bool)
    labels = np.arange(1, len(array) + 1) % 2 + 1
    return Sample(1, "x", array, labels, None, flags, np.ones(len(array)), (50, 50), np.zeros((50, 50, 3), np.uint8))


def test_the_main_object_is_the_largest_that_counts() -> None:
    assert main_object(sample((0, 0, 5, 5), (0, 0, 9, 9))) == 1
    assert main_object(sample((0, 0, 5, 5), (0, 0, 9, 9), ignore=(False, True))) == 0
    assert main_object(sample((0, 0, 5, 5), ignore=(True,))) is None
    assert main_object(sample()) is None


class Data:
    labels, split, has_masks = LABELS, "test", False

    def __init__(self, *samples: Sample) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        return self.samples[index]


class Says:
    """A localiser that says what it is told to, image by image."""

    max_batch, labels = 3, LABELS

    def __init__(self, *answers: tuple[int, tuple[float, float, float, float]]) -> None:
        self.answers = list(answers)

    def batch(self, images) -> list[Detections]:
        found, self.answers = self.answers[: len(images)], self.answers[len(images) :]
        return [
            Detections(np.array([box], np.float32), np.ones(1, np.float32), np.array([label]), (50, 50), LABELS)
            for label, box in found
        ]


def test_the_metric_by_hand() -> None:
    truth = sample((0, 0, 20, 20))  # label 2
    half = (0, 0, 20, 9.9)  # IoU 0.495
    answers = ((2, (0, 0, 20, 20)), (1, (0, 0, 20, 20)), (2, half), (2, (0, 0, 1, 1)))
    result = evaluate_localiser(Says(*answers), Data(truth, truth, truth, sample()))
    assert result.metrics["localisation"] == pytest.approx(1 / 3)
    assert result.metrics["class_accuracy"] == pytest.approx(2 / 3)
    assert result.metrics["box_IoU50"] == pytest.approx(2 / 3)
    assert result.metrics["IoU"] == pytest.approx((1 + 1 + 0.495) / 3)
    assert result.per_class["square"]["objects"] == 3
    assert np.isnan(result.per_class["disc"]["localisation"])
    drawn = result.resampled(np.array([[1, 1, 1, 1], [2, 0, 0, 2], [0, 0, 0, 4]]))
    assert drawn["localisation"][:2] == pytest.approx([1 / 3, 1])
    assert np.isnan(drawn["localisation"][2])  # only an image without an object was drawn
    other = Says()
    other.labels = ("__background__", "disc")
    with pytest.raises(DataError, match="open the data with the net's labels"):
        evaluate_localiser(other, Data(truth))


def test_items_are_the_largest_box_on_the_canvas() -> None:
    data = open_data("shapes:train=12,size=64x96", "train")
    items = MainObjects(data, Canvas(64, 96, 64, 96, 16), Augmentation(flip="none"), 0)
    empty = 0
    for index in range(12):
        wanted, (_, size, found) = data[index], items[0, index]
        assert size.tolist() == [64, 96]
        if (best := main_object(wanted)) is None:
            empty += 1
            assert not found.any()
        else:
            assert found[0] == wanted.labels[best]
            np.testing.assert_allclose(found[1:], wanted.boxes[best], atol=1e-4)
    assert empty < 12


def test_the_canvas_is_fixed() -> None:
    module = localiser()
    assert (canvas_of(module).height, canvas_of(module, (64, 96)).width) == (64, 96)
    for size, dynamic in (((96, 96), False), (None, True)):
        with pytest.raises(ModelError, match="made for 64x96 px"):
            canvas_of(module, size, dynamic)
    with pytest.raises(ModelError, match='give "smooth_l1" or "l2"'):
        localiser(box_loss="l3")
    with pytest.raises(ModelError, match=r"pyramid \[0\]: .*1 to 64 bins"):
        localiser(pyramid=[0])
