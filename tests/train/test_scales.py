"""Several scales on one sheet: each region is pooled from its own scale's map, as from that map alone."""

from __future__ import annotations

import pytest
import torch
import torchvision
from tiny_proposal_nets import boxes_in, tiny

from regionrt.plugins.roi_pool.torch_op import roi_pool
from regionrt.train.models import ModelError
from regionrt.train.models.dense import canvas_of
from regionrt.train.models.scales import Sheet

SCALES = (1.5, 2.0, 3.0)


def nearest_scale(box: torch.Tensor) -> int:
    """Index into SCALES, by the definition."""
    area = float((box[2] - box[0]) * (box[3] - box[1]))
    return min(range(len(SCALES)), key=lambda s: abs(area * SCALES[s] ** 2 - 224**2))


@pytest.mark.parametrize("pool", ["max", "align"])
def test_a_region_is_pooled_from_the_map_of_its_scale(pool):
    module = tiny("fast_rcnn", size=[160, 192], scales=list(SCALES), pool=pool)
    x = torch.randn(2, 3, 160, 192)
    boxes = torch.from_numpy(boxes_in(torch.zeros(150, 180, 3).numpy(), 60))  # their ends round to cells of the map
    boxes[:4] = torch.tensor([[0, 0, 180, 150], [0, 0, 150, 150], [10, 10, 90, 90], [100, 90, 170, 140]])
    counts = torch.tensor([60, 60], dtype=torch.int32)
    with torch.no_grad():
        pooled = module.pool(module.features(x), boxes.repeat(2, 1, 1), counts)
        sizes = [[int(side * scale) for side in (160, 192)] for scale in SCALES]
        maps = [module.backbone(torch.nn.functional.interpolate(x, size, mode="bilinear")) for size in sizes]
        used = set()
        for row, box in enumerate(boxes):
            number = nearest_scale(box)
            used.add(number)
            feature, scaled = maps[number], [box[None] * SCALES[number]] * 2
            if pool == "max":
                wanted = torchvision.ops.roi_pool(feature, scaled, 7, 1 / 16)
            else:
                wanted = torchvision.ops.roi_align(feature, scaled, 7, 1 / 16, 2, False)
            torch.testing.assert_close(pooled[:, row], wanted)
    assert used == {0, 1, 2}


def test_a_pooling_that_rounds_over_the_edge_does_not_read_the_next_scale():
    """7 bins of 57 cells: RoIPool's last bin ends a cell further in float32, behind the map."""
    sheet = Sheet((1.0, 0.5), (57 * 16, 64), 16)
    maps = iter((torch.ones(1, 1, 57, 4), torch.full((1, 1, 28, 2), 100.0)))
    feature = sheet.maps(lambda x: next(maps), torch.zeros(1, 3, 57 * 16, 64))
    rois = sheet.place(torch.tensor([[[0.0, 16.0, 56.0, 912.0]]]))
    pooled = roi_pool(feature, rois, torch.tensor([1], dtype=torch.int32), 1 / 16, 7, 7)
    assert pooled.max() == 1


def test_one_scale_is_the_map_itself():
    sheet = Sheet((1.0,), (64, 96), 16)
    assert sheet.alone
    x, rois = torch.randn(1, 3, 64, 96), torch.rand(1, 5, 4)
    assert sheet.maps(lambda value: value, x) is x
    assert sheet.place(rois) is rois


def test_sides_are_rounded_to_the_stride_and_boxes_with_them():
    sheet = Sheet((1.3,), (64, 96), 16)  # 83.2 × 124.8 px
    assert sheet.sizes == [(80, 128)]
    placed = sheet.place(torch.tensor([[[0.0, 0.0, 96.0, 64.0]]]))
    torch.testing.assert_close(placed, torch.tensor([[[0.0, 0.0, 128.0, 80.0]]]))


def test_gradients_reach_the_backbone_from_every_scale():
    module = tiny("sppnet", scales=[1.0, 2.0], pyramid=[2, 1])
    x = torch.randn(1, 3, 64, 96)
    small, large = torch.tensor([[[4.0, 4.0, 20.0, 20.0]]]), torch.tensor([[[0.0, 0.0, 96.0, 64.0]]])
    for rois in (small, large):
        module.zero_grad()
        module.pool(module.features(x), rois, torch.tensor([1], dtype=torch.int32)).sum().backward()
        assert module.backbone.neck.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("scales", [[], [0.0], [-1.0], [17.0], [1.0] * 17, [float("nan")]])
def test_scales_that_cannot_be(scales):
    with pytest.raises(ModelError, match=r"scales .*: give (1 to 16 factors|a list of numbers)"):
        tiny("fast_rcnn", scales=scales)


def test_rcnn_has_one_scale():
    with pytest.raises(ModelError, match="R-CNN cuts regions from the photo"):
        tiny("rcnn", crop=64, context=4, scales=[1.0, 2.0])


def test_the_canvas_is_fixed_by_its_scales():
    module = tiny("fast_rcnn", scales=[1.0, 2.0])
    with pytest.raises(ModelError, match="made for 64x96 px and takes no other size"):
        canvas_of(module, (128, 96))
