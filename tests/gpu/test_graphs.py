"""Our kernels in a CUDA graph: captured once, replayed on other inputs; and no op without tests on a GPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from values import boxes_in

from regionrt.plugins.native.cuda import FLAGS, PLUGINS
from regionrt.plugins.nms.reference import nms as reference_nms
from regionrt.plugins.roi_align.reference import roi_align as reference_roi_align
from regionrt.runtime.gpu.nms import nms
from regionrt.runtime.gpu.roi_align import roi_align


def test_a_graph_is_replayed_on_what_lies_there_now(gpu):
    rng = np.random.default_rng(0)
    features = rng.standard_normal((1, 8, 20, 25)).astype(np.float32)
    options = {"spatial_scales": [0.25], "output_size": (3, 3), "sampling_ratio": 2, "aligned": False, "mode": "avg"}
    labels, counts = np.zeros((1, 12), np.int32), np.array([12], np.int32)
    boxes = gpu.empty((1, 12, 4), "float32")
    out, keep = gpu.empty((1, 12, 8, 3, 3), "float32"), gpu.empty((1, 12), "uint8")
    launches = [
        *roi_align(gpu.kernels, [gpu.put(features)], boxes, gpu.put(counts), out, **options),
        *nms(gpu.kernels, boxes, gpu.put(labels), keep, iou_threshold=0.3, num_classes=1),
    ]

    def enqueue() -> None:
        for launch in launches:
            launch.enqueue(gpu.stream)

    graph = gpu.cuda.capture(gpu.stream, enqueue)
    assert graph is not None
    for _ in range(3):
        rois = boxes_in(rng, (1, 12), 80)
        there = gpu.put(rois)
        gpu.cuda.copy(boxes.address, there.address, there.nbytes, gpu.stream)
        graph.launch(gpu.stream)
        gpu.cuda.synchronize(gpu.stream)
        expected = reference_roi_align([features], rois, counts, **options)
        np.testing.assert_allclose(gpu.get(out), expected, atol=1e-5 * np.abs(expected).max(), rtol=0)
        np.testing.assert_array_equal(gpu.get(keep), reference_nms(rois, labels, iou_threshold=0.3))
    graph.close()


def test_every_op_with_kernels_is_tested_here():
    ops = {path.parent.name for path in PLUGINS.glob("*/kernel.cu")}
    assert ops == set(FLAGS)
    tested = {path.stem.removeprefix("test_gpu_") for path in Path(__file__).parent.glob("test_gpu_*.py")}
    assert ops <= tested, "an op without tests/gpu/test_gpu_<op>.py"
