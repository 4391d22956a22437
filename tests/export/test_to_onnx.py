"""The abstract graph: its ops and names, what is folded, what may vary, and that it computes what eager does."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from tiny_detectors import DETECTIONS, LABELS, NOTHING, PROPOSALS, OneMap, Pyramid, faster, parts, photos, spread
from torch import nn
from torchvision.models.detection import FasterRCNN
from torchvision.ops import MultiScaleRoIAlign

from regionrt.export import ExportError, ExportOptions, export_bundle, verify
from regionrt.export.passes.lower import lower
from regionrt.export.to_onnx import onnx_from_module
from regionrt.plugins.ops import DOMAIN
from regionrt.train.models.region import canvas_of, eager

# fp32 sums in another order, through a handful of layers; boxes are up to 128 px, masks and scores at most 1
BOX_PX, SCORE = 1e-3, 1e-5


def run(model: ir.Model, images: np.ndarray, sizes: np.ndarray) -> dict[str, np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    session = onnxruntime.InferenceSession(
        ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"images": images, "image_sizes": sizes}), strict=True))


def agrees(found, module, images, sizes):
    wanted = eager(module, torch.from_numpy(images), torch.from_numpy(sizes), stages=False)
    assert set(found) == set(wanted)
    for name, value in wanted.items():
        assert found[name].shape == value.shape
        if value.dtype == torch.int32:
            np.testing.assert_array_equal(found[name], value.numpy())
        else:
            np.testing.assert_allclose(found[name], value, atol=BOX_PX if name == "boxes" else SCORE, rtol=0)
    return wanted


def ours(model: ir.Model) -> list[ir.Node]:
    return [node for node in model.graph if node.domain == DOMAIN]


def test_nodes_and_stage_names_of_one_level(fixed):
    nodes = {node.op_type: node for node in ours(fixed.abstract)}
    assert list(nodes) == ["RegionProposals", "RegionRoiAlign", "RegionDetections"]
    names = {op: ([v.name for v in n.inputs], [v.name for v in n.outputs]) for op, n in nodes.items()}
    assert names == {
        "RegionProposals": (
            ["objectness.0", "rpn_deltas.0", "anchors.0", "image_sizes"],
            ["rois", "roi_scores", "roi_counts"],
        ),
        "RegionRoiAlign": (["features.0", "rois", "roi_counts"], ["roi_features"]),
        "RegionDetections": (
            ["class_logits", "box_deltas", "rois", "roi_counts", "image_sizes"],
            ["num_detections", "boxes", "scores", "labels", "roi_index", "overflow"],
        ),
    }
    attributes = {k: a.value for k, a in nodes["RegionDetections"].attributes.items()}
    assert attributes["max_detections"] == DETECTIONS
    assert attributes["candidates"] == 3840
    assert attributes["score_threshold"] == pytest.approx(0.3)
    assert list(attributes["box_weights"]) == [10, 10, 5, 5]
    assert nodes["RegionProposals"].attributes["post_nms"].value == PROPOSALS
    assert nodes["RegionProposals"].attributes["pre_nms"].value == 60
    assert nodes["RegionRoiAlign"].attributes["spatial_scales"].value == (1 / 8,)


def test_nodes_and_stage_names_of_a_pyramid_with_masks(dynamic):
    proposals, boxes, detections, masks = ours(dynamic.abstract)
    names = [f"{kind}.{level}" for kind in ("objectness", "rpn_deltas", "anchors") for level in range(3)]
    assert [v.name for v in proposals.inputs] == [*names, "image_sizes"]
    assert [v.name for v in boxes.inputs] == ["features.0", "features.1", "rois", "roi_counts"]
    assert [v.name for v in masks.inputs] == ["features.0", "features.1", "boxes", "num_detections"]
    assert masks.outputs[0].name == "mask_roi_features"
    assert detections.op_type == "RegionDetections"


def test_inputs_outputs_and_what_may_vary(exported):
    graph = exported.abstract.graph
    images, sizes = graph.inputs
    assert (images.name, images.dtype, sizes.name, sizes.dtype) == (
        "images", ir.DataType.UINT8, "image_sizes", ir.DataType.INT32,
    )  # fmt: skip
    batch, height, width, channels = images.shape
    assert not isinstance(batch, int)
    assert channels == 3
    if exported.canvas.dynamic:
        assert not isinstance(height, int)
        assert not isinstance(width, int)
    else:
        assert (height, width) == (64, 96)
    expected = ["num_detections", "boxes", "scores", "labels", "overflow"]
    assert [v.name for v in graph.outputs] == expected + (["masks"] if exported.canvas.dynamic else [])
    types = {v.name: v.dtype for v in graph.outputs}
    assert all(types[n] == ir.DataType.INT32 for n in ("num_detections", "labels", "overflow"))
    assert all(types[n] == ir.DataType.FLOAT for n in ("boxes", "scores"))


def test_every_file_passes_onnxs_checker(exported):
    onnx.checker.check_model(ir.to_proto(exported.abstract), full_check=True)
    for form in ("native", "portable"):
        onnx.checker.check_model(str(exported.bundle / f"{form}.onnx"))


def test_nothing_of_this_machine_is_in_the_files(exported):
    import torch as installed

    local = [str(Path(__file__).parents[2]), str(Path(installed.__file__).parents[2]), str(Path.home()), ".py"]
    for path in exported.bundle.iterdir():
        content = path.read_bytes()
        for text in local:
            assert text.encode() not in content, (path.name, text)
    model = onnx.load(exported.bundle / "native.onnx", load_external_data=False)
    assert model.producer_name == "regionrt"
    assert not model.metadata_props
    assert not model.graph.doc_string
    assert not any(node.metadata_props or node.doc_string for node in model.graph.node)


@pytest.mark.parametrize("form", ["native", "portable"])
def test_any_batch_on_a_fixed_canvas(form, fixed):
    model = lower(fixed.abstract, form)
    images, sizes, _ = fixed.canvas.place([p for _, p in [*photos([(64, 96), (90, 70), (30, 90)]), NOTHING]])
    whole = run(model, images, sizes)
    wanted = agrees(whole, fixed.module, images, sizes)
    assert wanted["num_detections"].tolist()[3] == 0
    assert (wanted["num_detections"][:3] > 5).all()
    for part in (slice(0, 1), slice(1, 3)):
        agrees(run(model, images[part], sizes[part]), fixed.module, images[part], sizes[part])


@pytest.mark.parametrize("form", ["native", "portable"])
def test_sizes_of_a_dynamic_canvas(form, dynamic):
    """One model: the largest canvas, sides that are no multiples of 64, portrait, and a single stride."""
    model = lower(dynamic.abstract, form)
    for number, (height, width) in enumerate([(96, 128), (80, 48), (48, 112), (16, 80)]):
        valid = np.array([[height, width], [height - 5, width - 9]], np.int32)
        images = np.zeros((2, height, width, 3), np.uint8)
        for image, (h, w), (_, photo) in zip(images, valid, photos(valid.tolist(), seed=number), strict=True):
            image[:h, :w] = photo
        wanted = agrees(run(model, images, valid), dynamic.module, images, valid)
        assert (wanted["num_detections"] > 0).all()


def test_pixels_outside_the_valid_part_do_not_matter(fixed):
    model = lower(fixed.abstract, "native")
    images, sizes, _ = fixed.canvas.place([p for _, p in photos([(40, 90), (90, 50)])])
    clean = run(model, images, sizes)
    for image, (height, width) in zip(images, sizes, strict=True):
        image[height:] = 255
        image[:, width:] = 77
    for name, value in run(model, images, sizes).items():
        np.testing.assert_array_equal(value, clean[name])


def test_nothing_found_is_a_count_of_zero_and_padding(dynamic):
    model = lower(dynamic.abstract, "portable")
    images, sizes, _ = dynamic.canvas.place([NOTHING[1]] * 2)
    found = run(model, images, sizes)
    assert found["num_detections"].tolist() == [0, 0]
    assert (found["boxes"] == 0).all()
    assert (found["masks"] == 0).all()
    assert (found["scores"] == -1).all()
    assert (found["labels"] == -1).all()


def test_the_cap_and_its_overflow_reach_the_graph(fixed):
    """The cap is an attribute of one node: with 5 instead of 3840 it drops candidates and says how many."""
    capped = fixed.abstract.clone()
    ours(capped)[-1].attributes.add(ir.AttrInt64("candidates", 5))
    images, sizes, _ = fixed.canvas.place([photos([(64, 96)])[0][1]])
    found = run(lower(capped, "native"), images, sizes)
    wanted = eager(fixed.module, torch.from_numpy(images), torch.from_numpy(sizes), candidates=5)
    assert found["overflow"].tolist() == wanted["overflow"].tolist()
    assert found["overflow"][0] > 10
    assert found["num_detections"].tolist() == wanted["num_detections"].tolist()


def test_features_are_named_by_the_backbones_levels(tmp_path):
    """RoIs read from the second of three maps only: it is `features.1`, as in eager; verify compares the right map."""
    torch.manual_seed(0)
    module = spread(FasterRCNN(**parts(Pyramid(), ["0", "1"], box_roi_pool=MultiScaleRoIAlign(["1"], 3, 2))))
    bundle = export_bundle(module, tmp_path / "b", ExportOptions(size=(64, 96), ops=("native",)), labels=LABELS)
    (result,) = verify(bundle, module, photos([(64, 96), (90, 70)]), batches=(2,))
    assert result.passed, result.first_difference
    assert "features.1" in [check.value for check in result.checks]
    assert "features.0" not in [check.value for check in result.checks]


class DecidesByContent(nn.Module):
    """What tracing cannot follow: which layers run depends on the pixels."""

    out_channels = 8

    def __init__(self):
        super().__init__()
        self.layer = OneMap()

    def forward(self, x):
        found = self.layer(x)
        return found * 2 if float(found.mean()) > 0.5 else found


def test_a_module_that_cannot_be_traced_is_one_line(tmp_path):
    module = FasterRCNN(**parts(DecidesByContent(), ["0"])).eval()
    with pytest.raises(ExportError, match="torch could not export this module: ") as caught:
        export_bundle(module, tmp_path / "b", ExportOptions(size=(64, 96)), labels=LABELS)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("size", [(16, 96), (64, 8)])
def test_a_dynamic_canvas_needs_room_to_vary(size):
    module = faster()
    with pytest.raises(ExportError, match=re.escape("at least 3 strides (24 px)")):
        onnx_from_module(module, canvas_of(module, size, dynamic=True))
