"""OverFeat: dense outputs are those of the windows, offsets are what the paper says, merging."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny_overfeat import LABELS, TINY, tiny

from regionrt.plugins.merge import reference
from regionrt.train.checkpoint import read_checkpoint
from regionrt.train.models import ModelError, build_model
from regionrt.train.models.overfeat import Overfeat
from regionrt.train.models.overfeat_classes import _grid, _within
from regionrt.train.models.overfeat_eager import boxes_of, canvas_of, eager, merged_boxes
from regionrt.train.models.overfeat_losses import edges_of, matched
from regionrt.train.models.valid_nets import VALID_NETS, valid_net
from regionrt.train.options import TrainOptions
from regionrt.train.torch_runner import torch_predictor
from regionrt.train.trainer import train

# fp32 convolutions add up in another order for another size of map; logits reach 10 here.
SAME = 1e-4
PAPER_SIZES = {245: 17, 281: 20, 317: 23, 389: 29, 425: 32, 461: 35, 569: 44}  # table 5: px, cells before the pooling


@pytest.mark.parametrize(
    "config",
    [{}, {"fine": False}, {"pool": 2, "kernel": 3}, {"class_agnostic": False}],
    ids=str,
)
def test_dense_outputs_are_those_of_each_window_cut_out(config):
    module = tiny(**config)
    x = torch.randn(2, 3, 64, 96)
    logits, edges = module(x)
    layout = module.layout(x.shape[2:])
    assert logits.shape[1] == edges.shape[1] == len(layout.windows) == sum(s.rows * s.columns for s in layout.scales)
    assert len(layout.windows) > 20 if module.config.fine else len(layout.windows) >= 2
    for image in range(2):
        start = 0
        for number, scale in enumerate(layout.scales):
            crops = module.crops(x[image], number)
            assert crops.shape[2] == module.sliding.side + 2 * module.sliding.margin
            one, other = module.of_crops(crops)
            of_scale = slice(start, start + scale.rows * scale.columns)
            torch.testing.assert_close(one, logits[image, of_scale], atol=SAME, rtol=SAME)
            torch.testing.assert_close(other, edges[image, of_scale], atol=SAME, rtol=SAME)
            start = of_scale.stop


def test_windows_lie_where_they_are_cut_out():
    """A bright dot on the canvas shows in the windows that hold it, and at the place where they say it is."""
    module = tiny(windows=[40])
    layout = module.layout((64, 96))
    canvas = torch.zeros(3, 64, 96)
    canvas[:, 40, 70] = 1
    crops = module.crops(canvas, 0)[:, 0]  # [Q, s, s]
    inner = module.sliding.side
    for window, crop in zip(layout.windows, crops, strict=True):
        left, top, right, bottom = window.tolist()
        place = crop.argmax()
        y, x = (float(v) - module.sliding.margin + 0.5 for v in divmod(int(place), crop.shape[1]))
        at_x, at_y = left + x / inner * (right - left), top + y / inner * (bottom - top)
        holds = left < 69.5 and right > 71.5 and top < 39.5 and bottom > 41.5
        if holds:
            assert crop.max() > 0.2
            assert abs(at_x - 70.5) < 1
            assert abs(at_y - 40.5) < 1
    assert layout.windows[0].tolist()[:2] == [0, 0]
    assert layout.windows[-1].tolist()[2:] == [96, 64]


def test_the_fine_stride_is_the_pooling_at_every_offset_interleaved():
    """Figure 3: pool at the offsets (Δx, Δy), slide the classifier over each map, and lay the results side by side."""
    module = tiny()
    pool = module.pool
    x = torch.randn(1, 3, 64, 96)
    scale = module.layout((64, 96)).scales[0]
    map_ = module.backbone["body"](module.sliding.resized(x, scale))
    fine, _ = module.of_map(module.features(x, scale))
    weight, bias = module.classifier.fc6.weight, module.classifier.fc6.bias
    woven = torch.full_like(fine, torch.nan)
    for dy in range(pool):
        for dx in range(pool):
            pooled = F.max_pool2d(map_[..., dy:, dx:], pool, pool)
            if min(pooled.shape[2:]) < weight.shape[-1]:
                continue
            hidden = F.relu(module.classifier.fc7(F.relu(F.conv2d(pooled, weight, bias))))
            of_offset = module.classifier.last(hidden)
            target = woven[..., dy::pool, dx::pool]
            woven[..., dy::pool, dx::pool] = of_offset[..., : target.shape[2], : target.shape[3]]
    torch.testing.assert_close(woven, fine, atol=SAME, rtol=SAME)


@pytest.mark.parametrize("name", ["fast", "accurate"])
def test_the_papers_nets_have_the_papers_maps(name):
    """Tables 1, 3 and 5, on nets of a few channels: sizes do not depend on widths."""
    net = valid_net(name)
    pool_and_kernel = net.pool * net.kernel
    assert net.cell + net.stride * (pool_and_kernel - 1) == {"fast": 231, "accurate": 221}[name]
    assert (net.stride, net.channels) == {"fast": (16, 1024), "accurate": (12, 1024)}[name]
    widths = [layer.out_channels for layer in net.build() if isinstance(layer, torch.nn.Conv2d)]
    assert widths == {"fast": [96, 256, 512, 1024, 1024], "accurate": [96, 256, 512, 512, 1024, 1024]}[name]
    sizes = PAPER_SIZES if name == "accurate" else {231: 12}
    for px, cells in sizes.items():
        assert (px - net.cell) // net.stride + 1 == cells


@pytest.mark.parametrize("name", VALID_NETS)
def test_a_cell_sees_its_window_and_margin_and_nothing_else(name):
    """By the gradient of one cell, on a net whose weights are all positive."""
    net = valid_net(name)
    body = net.build()
    for layer in body.children() if name != "squeezenet1_1" else ():
        if isinstance(layer, torch.nn.Conv2d):  # of two channels: where a cell looks does not depend on their number
            layer.weight = torch.nn.Parameter(layer.weight[:2, : min(layer.in_channels, 2 + (layer.in_channels == 3))])
            layer.bias = torch.nn.Parameter(layer.bias[:2])
    for parameter in body.parameters():
        parameter.data.fill_(0.01)
    seen = net.cell + 2 * net.margin
    x = torch.rand(1, 3, seen + net.stride, seen + net.stride, requires_grad=True)
    out = body(x)
    assert out.shape[2:] == (2, 2)
    out[0, 0, 1, 1].backward()
    assert x.grad is not None
    assert (x.grad[..., : net.stride, :] == 0).all()
    assert (x.grad[..., : net.stride] == 0).all()
    assert body(x[..., :seen, :seen]).shape[2:] == (1, 1)


def test_windows_and_their_boxes():
    windows = torch.tensor([[10.0, 20, 50, 60], [0, 0, 10, 20]])
    boxes = torch.tensor([[14.0, 16, 40, 70], [0, 0, 10, 20]])
    edges = edges_of(boxes, windows)
    torch.testing.assert_close(edges, torch.tensor([[0.1, -0.1, 0.75, 1.25], [0, 0, 1, 1]]))
    torch.testing.assert_close(boxes_of(edges, windows), boxes)
    np.testing.assert_allclose(reference.boxes_of(edges.numpy(), windows.numpy()), boxes, atol=1e-5)


def test_eager_merges_as_the_op_does():
    module = tiny(class_agnostic=False)
    images = torch.randint(0, 256, (3, 64, 96, 3), dtype=torch.uint8)
    sizes = torch.tensor([[64, 96], [50, 60], [28, 24]], dtype=torch.int32)  # windows begin to be centred at 20 and 30
    found = eager(module, images, sizes)
    heads = module.heads
    wanted = reference.merge(
        found["class_logits"].numpy(), found["box_edges"].numpy(), found["windows"].numpy(), sizes.numpy(),
        window_threshold=heads.window_score, merge_threshold=heads.merge, score_threshold=heads.score,
        max_detections=heads.detections, candidates=heads.candidates,
    )  # fmt: skip
    assert (found["num_detections"] >= torch.tensor([2, 2, 1])).all()
    for name, value in wanted._asdict().items():
        np.testing.assert_allclose(found[name].numpy(), value, atol=1e-4, err_msg=name)


@pytest.mark.parametrize("size", [(64, 96), (64, 43), (36, 96), (30, 31), (25, 60), (20, 20), (3, 5)], ids=str)
def test_windows_merge_that_count_in_classification_and_training(size):
    """Training leaves the first row and column out too where a photo is narrower than half a window."""
    module = tiny()
    layout = module.layout((64, 96))
    counted = torch.from_numpy(reference.in_image(layout.windows.numpy(), *size))
    start = 0
    for scale in layout.scales:
        of_scale = counted[start : start + scale.rows * scale.columns].reshape(scale.rows, scale.columns)
        rows, columns = _within(_grid(module, (64, 96), scale), size)
        assert of_scale[:rows, :columns].all()
        assert of_scale.sum() == rows * columns
        start += scale.rows * scale.columns
    learnt = matched(layout.windows, torch.zeros(0, 4), torch.tensor(size), module.config).background
    assert counted[learnt].all()
    if min(size) > 30:
        assert counted.sum() == len(learnt)


def test_nothing_to_merge():
    boxes, sums = merged_boxes(torch.zeros(0, 4), torch.zeros(0), 0.7)
    assert len(boxes) == len(sums) == 0
    boxes, sums = merged_boxes(torch.tensor([[0.0, 0, 4, 4]]), torch.tensor([0.5]), 0.7)
    assert boxes.tolist() == [[0, 0, 4, 4]]


def test_training_on_shapes_writes_a_checkpoint_that_detects(tmp_path):
    config = {key: TINY[key] for key in ("windows", "classifier", "regressor")} | {"window_score": 0.0, "score": 0.0}
    options = TrainOptions(epochs=1, batch=4, optimizer="adamw", lr=0.003, size=(64, 96), max_eval_images=2)
    best = train("overfeat", "shapes:train=8,val=2,test=2,size=64x96", tmp_path / "run", options, config=config)
    checkpoint = read_checkpoint(best)
    assert checkpoint.config["windows"] == TINY["windows"]
    found = torch_predictor(checkpoint)(np.zeros((64, 96, 3), np.uint8))
    assert len(found) > 0
    assert (np.diff(found.scores) <= 0).all()


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"backbone": "mobilenet_v2"}, "windows need a net without padding: choose one of squeezenet1_1, fast"),
        ({"windows": [500]}, "windows of 500 px on a canvas of 64x96 px"),
        ({"windows": []}, "give the sides of at least one"),
        ({"merge": 2.5}, "merge 2.5: give a number from 0"),
        ({"window_score": 1.5}, "window_score 1.5"),
        ({"background_iou": 0.6}, "background_iou 0.6: give at most foreground_iou"),
        ({"classifier": [8]}, "widths of two layers"),
        ({"foreground": 0.0}, "windows_per_image 128 and foreground 0.0: no window would be learnt as an object"),
        ({"windows_per_image": 1}, "windows_per_image 1 and foreground 0.5"),
        ({"candidates": 5000}, "give at most 3840"),
        ({"box_weight": -1.0}, "box_weight -1.0: give 0 or more"),
        ({"kernels": 2}, "unknown option 'kernels'"),
    ],
)
def test_options_that_cannot_be(config, words):
    with pytest.raises(ModelError, match=words):
        build_model("overfeat", {"size": [64, 96], **config}, LABELS)


def test_a_dynamic_canvas_is_refused():
    with pytest.raises(ModelError, match="leave --dynamic out"):
        canvas_of(tiny(), dynamic=True)


def test_windows_grow_with_the_canvas():
    module = tiny(windows=[20])
    assert isinstance(module, Overfeat)
    side = [float(module.layout(size).windows[0, 3]) for size in ((64, 96), (128, 192))]
    assert abs(side[1] / side[0] - 2) < 0.1
