"""Masks pasted on a GPU are the reference's, pixel for pixel, and torchvision's but for pixels at the threshold."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchvision.models.detection.roi_heads import paste_masks_in_image
from values import boxes_in

from regionrt.plugins.mask_paste.reference import paste_mask
from regionrt.runtime.gpu.masks import mask_paste


def run(gpu, masks, boxes, size) -> np.ndarray:
    out = gpu.empty((len(masks), *size), "uint8")
    gpu.run(mask_paste(gpu.kernels, gpu.put(masks), gpu.put(boxes), out))
    return gpu.get(out)


@pytest.mark.parametrize("side", [1, 14, 28])
@pytest.mark.parametrize("size", [(1, 1), (37, 53), (120, 90)])
def test_the_reference(gpu, size, side):
    rng = np.random.default_rng(side)
    count = 24 if gpu.large else 5
    corners = rng.uniform(-15, 60, (count, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(0, 70, (count, 2))], -1).astype(np.float32)
    boxes[:2] = [[0, 0, size[1], size[0]], [500, 500, 510, 520]]
    masks = rng.uniform(0, 1, (count, side, side)).astype(np.float32)
    found = run(gpu, masks, boxes, size)
    for index in range(count):
        np.testing.assert_array_equal(found[index], paste_mask(masks[index], boxes[index], size), err_msg=str(index))


def test_torchvision_at_the_size_of_a_photo(gpu):
    rng = np.random.default_rng(3)
    size, count = ((800, 1088), 100) if gpu.large else ((60, 80), 4)
    boxes = boxes_in(rng, (count,), min(size), 20)
    masks = rng.uniform(0, 1, (count, 28, 28)).astype(np.float32)
    found = run(gpu, masks, boxes, size)
    masks_there, boxes_there = (torch.from_numpy(v).to(gpu.torch_device) for v in (masks[:, None], boxes))
    expected = paste_masks_in_image(masks_there, boxes_there, size)[:, 0].cpu().numpy() > 0.5
    # torch may fuse multiply and add: pixels whose probability is 0.5 to the last bit
    assert (found.astype(bool) != expected).mean() <= 1e-5
    assert found.any()
