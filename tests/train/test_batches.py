"""Training batches: boxes and masks stay on their objects through every augmentation, and the order can be resumed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from torch.utils.data import DataLoader

from regionrt.runtime.image import Canvas
from regionrt.train.batches import Augmentation, EpochSampler, TrainingCanvases, collate
from regionrt.train.data import Sample

CANVAS = Canvas(96, 128, min_size=96, max_size=128, multiple=16)
RED, BLUE = (250, 30, 20), (20, 40, 250)


class TwoRectangles:
    """Photos of 150 × 210 px with a red and a blue rectangle on grey; a third object is marked to be ignored."""

    labels = ("__background__", "red", "blue")
    split = "train"
    has_masks = True

    def __len__(self):
        return 10

    def __getitem__(self, index):
        boxes = np.array([[30, 20, 90, 70], [120, 80, 190, 140], [0, 0, 9, 9]], np.float32)
        image = np.full((150, 210, 3), 128, np.uint8)
        masks = np.zeros((150, 210, 3), np.uint8, order="F")
        for i, (left, top, right, bottom) in enumerate(boxes.astype(int)):
            image[top:bottom, left:right] = (RED, BLUE, (0, 0, 0))[i]
            masks[top:bottom, left:right, i] = 1
        return Sample(
            image_id=index,
            name=str(index),
            boxes=boxes,
            labels=np.array([1, 2, 1]),
            masks=coco_mask.encode(masks),
            ignore=np.array([False, False, True]),
            areas=np.array([3000, 4200, 81], np.float32),
            size=(150, 210),
            pixels=image,
        )


def coloured(image: torch.Tensor, colour: tuple[int, int, int]) -> torch.Tensor:
    """Pixels nearer to this colour than to the others, [H, W]."""
    choices = torch.tensor([colour, (RED, BLUE)[colour == RED], (128, 128, 128), (0, 0, 0)]).float()
    return torch.cdist(image.float().reshape(-1, 3), choices).argmin(1).reshape(image.shape[:2]) == 0


@pytest.mark.parametrize(
    "augmentation",
    [
        Augmentation("none"),
        Augmentation("horizontal"),
        Augmentation("both"),
        Augmentation("both", scale=(0.5, 0.9)),
        Augmentation("both", scale=(1.1, 2.0)),
        Augmentation("none", colour=0.2),
    ],
    ids=str,
)
def test_boxes_and_masks_lie_on_their_objects(augmentation):
    items = TrainingCanvases(TwoRectangles(), CANVAS, augmentation, seed=1, masks=True)
    seen = 0
    for index in range(10):
        image, size, target = items[0, index]
        assert image.shape == (96, 128, 3)
        assert image.dtype == torch.uint8
        height, width = size.tolist()
        assert (image[height:] == 0).all()
        assert (image[:, width:] == 0).all()
        assert target["boxes"].dtype == torch.float32
        assert target["labels"].dtype == torch.int64
        assert len(target["boxes"]) == len(target["labels"]) == len(target["masks"]) <= 2
        for box, label, mask in zip(*(target[k] for k in ("boxes", "labels", "masks")), strict=True):
            shown = coloured(image, (RED, BLUE)[int(label) - 1])
            rows, columns = torch.where(shown)
            found = torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
            # resizing blurs an edge over about a pixel
            torch.testing.assert_close(found.float(), box, atol=1.5, rtol=0)
            both = (mask.bool() & shown).sum() / (mask.bool() | shown).sum()
            assert both > 0.9
            seen += 1
    assert seen >= 10


def test_flips_happen_half_of_the_time_and_only_where_asked():
    def left_edges(flip):
        items = TrainingCanvases(TwoRectangles(), CANVAS, Augmentation(flip), seed=0, masks=False)
        boxes = [items[epoch, i][2]["boxes"][0].round().tolist() for epoch in range(4) for i in range(10)]
        return {tuple(box): boxes.count(box) for box in boxes}

    assert len(left_edges("none")) == 1
    two = left_edges("horizontal")
    assert len(two) == 2
    assert min(two.values()) >= 10
    assert len(left_edges("both")) == 4


def test_items_depend_on_seed_epoch_and_index_alone():
    def items(seed=5):
        return TrainingCanvases(TwoRectangles(), CANVAS, Augmentation("both", (0.5, 2.0), 0.3), seed, masks=False)

    again = items()
    np.random.rand(3)
    assert torch.equal(items()[2, 4][0], again[2, 4][0])
    different = [items()[3, 4][0], items()[2, 5][0], items(6)[2, 4][0]]
    assert not any(torch.equal(again[2, 4][0], other) for other in different)


def test_epochs_take_canvases_in_turn_and_boxes_stay_on_their_objects():
    items = TrainingCanvases(TwoRectangles(), CANVAS, Augmentation("none", sizes=((96, 128), (48, 64))), 0)
    for epoch, ratio in enumerate((1.0, 0.5, 1.0)):
        image, size, target = items[epoch, 0]
        assert image.shape == (96 * ratio, 128 * ratio, 3)
        assert abs(size[0] - 91 * ratio) <= 1  # 150 × 210 px, the width fills the canvas
        for box, colour in zip(target["boxes"], (RED, BLUE), strict=True):
            rows, columns = torch.where(coloured(image, colour))
            drawn = torch.tensor([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]).float()
            assert (drawn - box).abs().max() <= 1.5


def test_image_without_objects():
    class Empty(TwoRectangles):
        def __getitem__(self, index):
            sample = super().__getitem__(index)
            return replace(sample, ignore=np.array([True, True, True]))

    _, _, target = TrainingCanvases(Empty(), CANVAS, Augmentation("both", (1.5, 2)), 0, masks=True)[0, 0]
    assert target["boxes"].shape == (0, 4)
    assert target["masks"].shape == (0, 96, 128)


def test_sampler_order():
    sampler = EpochSampler(7, seed=3)
    first = list(sampler)
    assert sorted(index for _, index in first) == list(range(7))
    sampler.set_epoch(1)
    second = list(sampler)
    assert {epoch for epoch, _ in second} == {1}
    assert [i for _, i in first] != [i for _, i in second]
    sampler.set_epoch(0)
    assert list(sampler) == first
    shares = [[index for _, index in EpochSampler(7, 3, rank, 2)] for rank in (0, 1)]
    assert len(shares[0]) == len(shares[1]) == 4
    assert set(shares[0]) | set(shares[1]) == set(range(7))


def test_collate():
    items = TrainingCanvases(TwoRectangles(), CANVAS, Augmentation("none"), seed=0, masks=True)
    loader = DataLoader(items, batch_size=4, sampler=EpochSampler(10, 0), collate_fn=collate)
    images, sizes, targets = next(iter(loader))
    assert images.shape == (4, 96, 128, 3)
    assert sizes.dtype == torch.int32
    assert sizes.shape == (4, 2)
    assert [t["masks"].shape for t in targets] == [(2, 96, 128)] * 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"flip": "up"}, "horizontal"),
        ({"scale": (2, 1)}, "smallest"),
        ({"scale": (0, 1)}, "0.1"),
        ({"colour": 2}, "share"),
    ],
)
def test_augmentation_is_checked(options, message):
    with pytest.raises(ValueError, match=message):
        Augmentation(**options)
