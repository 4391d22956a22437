"""NMS on a GPU keeps exactly the boxes that the reference keeps, and torchvision's CUDA kernel."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchvision.ops import nms as torchvision_nms
from values import boxes_in

from regionrt.plugins.nms.reference import nms as reference
from regionrt.runtime.gpu.nms import nms


def run(gpu, boxes, classes, threshold, num_classes) -> np.ndarray:
    keep = gpu.empty(classes.shape, "uint8")
    gpu.run(nms(gpu.kernels, gpu.put(boxes), gpu.put(classes), keep, iou_threshold=threshold, num_classes=num_classes))
    found = gpu.get(keep)
    assert set(np.unique(found)) <= {0, 1}
    return found.astype(bool)


def on_a_grid(rng: np.random.Generator, shape: tuple[int, ...], side: int) -> np.ndarray:
    """Whole numbers: IoUs are exact fractions, many equal to a threshold, many boxes equal or empty."""
    corner = rng.integers(0, side, (*shape, 2))
    return np.concatenate([corner, corner + rng.integers(0, side // 3, (*shape, 2))], -1).astype(np.float32)


@pytest.mark.parametrize(
    ("rows", "classes", "threshold"),
    [(1, 1, 0.5), (33, 2, 0.5), (257, 3, 0.3), (1000, 91, 0.5), (1000, 1, 0.7), (4096, 20, 0.5), (700, 2, 0.0)],
)
def test_the_reference(gpu, rows, classes, threshold):
    rows = rows if gpu.large else min(rows, 300)
    rng = np.random.default_rng(rows)
    for boxes in (boxes_in(rng, (2, rows), 300), on_a_grid(rng, (2, rows), 60)):
        boxes[:, ::17] = np.nan
        labels = rng.integers(-1, classes, (2, rows)).astype(np.int32)
        expected = reference(boxes, labels, iou_threshold=threshold)
        np.testing.assert_array_equal(run(gpu, boxes, labels, threshold, classes), expected)


def test_a_chain_in_which_every_box_decides_about_the_next(gpu):
    starts = np.arange(2000 if gpu.large else 200, dtype=np.float32) * 4
    boxes = np.stack([starts, 0 * starts, starts + 10, 0 * starts + 10], -1)[None]
    found = run(gpu, boxes, np.zeros(boxes.shape[:2], np.int32), 0.4, 1)
    np.testing.assert_array_equal(found[0], np.arange(len(starts)) % 2 == 0)


@pytest.mark.parametrize("threshold", [0.25, 0.5, 0.75])
def test_torchvision(gpu, threshold):
    """Class by class (its batched_nms shifts boxes by class, which rounds), on a grid, where no rounding differs."""
    rng = np.random.default_rng(1)
    rows, classes = (3000, 12) if gpu.large else (150, 3)
    boxes = on_a_grid(rng, (1, rows), 200 if gpu.large else 40)
    labels = rng.integers(0, classes, (1, rows)).astype(np.int32)
    expected = np.zeros((1, rows), bool)
    for label in range(classes):
        (places,) = np.nonzero(labels[0] == label)
        of_class = torch.from_numpy(boxes[0, places]).to(gpu.torch_device)
        scores = torch.arange(len(places), 0, -1, device=gpu.torch_device, dtype=torch.float32)
        expected[0, places[torchvision_nms(of_class, scores, threshold).cpu().numpy()]] = True
    np.testing.assert_array_equal(run(gpu, boxes, labels, threshold, classes), expected)
