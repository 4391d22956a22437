"""What `export_bundle` writes, from what, and that a failure leaves what was there."""

from __future__ import annotations

import json

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from tiny_detectors import DETECTIONS, LABELS, PROPOSALS, faster, photos

import regionrt.runtime as rt
from regionrt.export import ExportError, ExportOptions, export_bundle
from regionrt.export.weights import write_models
from regionrt.runtime.bundle import Manifest
from regionrt.train.models.region import eager


def test_a_live_module_becomes_a_bundle_that_runs(fixed):
    """The numbers of the runtime, in photo coordinates, are eager's on the canvas, mapped back."""
    manifest = Manifest.read(fixed.bundle)
    manifest.verify_files()
    assert manifest.labels == LABELS
    assert manifest.model == "FasterRCNN"
    assert manifest.thresholds["detections"] == DETECTIONS
    assert manifest.thresholds["proposals"] == PROPOSALS
    forms = [(a.backend, a.form) for a in manifest.artifacts]
    assert forms == [
        ("openvino", "staged"),
        ("onnxruntime", "staged"),
        ("ncnn", "staged"),
        ("onnxruntime", "native"),
        ("onnxruntime", "portable"),
    ]
    assert (fixed.bundle / "labels.txt").read_text() == "".join(f"{label}\n" for label in LABELS)
    ((_, photo),) = photos([(120, 70)])
    with rt.load(fixed.bundle) as predict:
        found = predict(photo)
    canvases, sizes, (placement,) = manifest.canvas.place([photo])
    wanted = eager(fixed.module, torch.from_numpy(canvases), torch.from_numpy(sizes), stages=False)
    count = int(wanted["num_detections"][0])
    assert len(found) == count > 0
    np.testing.assert_allclose(found.scores, wanted["scores"][0, :count], atol=1e-5)
    boxes = placement.boxes_to_original(wanted["boxes"][0, :count].numpy())
    np.testing.assert_allclose(found.boxes_xyxy, boxes, atol=5e-3)


def test_forms_share_their_weights(fixed):
    """All forms cost the weights once, and nothing large stays in the ONNX files."""
    sizes = {path.name: path.stat().st_size for path in fixed.bundle.iterdir()}
    weights = sum(p.numel() * 4 for p in fixed.module.parameters())
    assert sizes["weights.bin"] < 1.5 * weights + 65536
    for name in ("native.onnx", "portable.onnx"):
        inline = [t for t in onnx.load(fixed.bundle / name, load_external_data=False).graph.initializer if t.raw_data]
        assert all(len(t.raw_data) < 1024 for t in inline)


def test_equal_tensors_are_stored_once_and_large_ones_on_pages(tmp_path):
    rng = np.random.default_rng(0)
    large, small = rng.normal(size=(200, 200)).astype(np.float32), rng.normal(size=300).astype(np.float32)

    def model(values: dict[str, np.ndarray]) -> ir.Model:
        tensors = [ir.Value(name=k, const_value=ir.tensor(v, name=k)) for k, v in values.items()]
        graph = ir.Graph([], [], nodes=[], initializers=tensors, opset_imports={"": 20}, name="g")
        return ir.Model(graph, ir_version=10)

    write_models(tmp_path, {"a.onnx": model({"x": small, "y": large}), "b.onnx": model({"z": large.copy()})})
    read = {name: ir.load(tmp_path / name).graph.initializers for name in ("a.onnx", "b.onnx")}
    y, z = read["a.onnx"]["y"].const_value, read["b.onnx"]["z"].const_value
    assert y.offset == z.offset
    assert y.offset % 4096 == 0
    np.testing.assert_array_equal(z.numpy(), large)
    np.testing.assert_array_equal(read["a.onnx"]["x"].const_value.numpy(), small)
    assert (tmp_path / "weights.bin").stat().st_size == y.offset + large.nbytes


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (None, "needs labels="),
        (LABELS[:-1], f"expected {len(LABELS)} labels"),
        (("disc", *LABELS[1:]), "`__background__` as the first label"),
        (("__background__", "two\nlines", "b", "c"), "line break"),
        (("__background__", " ", "b", "c"), "empty"),
    ],
)
def test_labels_that_do_not_fit(tmp_path, labels, words):
    with pytest.raises(ExportError, match=words):
        export_bundle(faster(), tmp_path / "bundle", labels=labels)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"precision": "int4"}, "precision of fp32, fp16, bf16"),
        ({"ops": ("graph",)}, "staged, native, portable, plugin"),
        ({"ops": ()}, "staged, native, portable"),
        ({"precision": "bf16", "ops": ("native",)}, "each of staged at most once for bf16"),
        ({"precision": "fp16", "ops": ("graph",)}, "each of native, portable, staged, plugin at most once for fp16"),
        ({"ops": ("native", "native")}, "at most once"),
    ],
)
def test_options_that_cannot_be(options, words):
    with pytest.raises(ExportError, match=words):
        ExportOptions(**options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"score": 1.5}, "score"),
        ({"nms": -0.1}, "nms"),
        ({"detections": 0}, "detections"),
        ({"proposals": 0}, "proposals"),
        ({"candidates": 4000}, "3840"),
        ({"candidates": 0}, "candidates between 1 and"),
        ({"window_score": 0.5, "merge": 0.7}, "window_score, merge: a FasterRCNN has no such threshold, leave it out"),
        ({"size": (70, 96)}, "multiple of the stride"),
    ],
)
def test_thresholds_and_sizes_out_of_range(tmp_path, options, words):
    with pytest.raises(Exception, match=words) as caught:
        export_bundle(faster(), tmp_path / "bundle", ExportOptions(**options), labels=LABELS)
    assert isinstance(caught.value, rt.RegionRTError)
    assert list(tmp_path.iterdir()) == []


def test_a_failure_on_the_way_leaves_the_old_bundle(fixed, copy_of, instant):
    out = copy_of(fixed)
    before = (out / "manifest.json").read_bytes()

    def spoil(model: ir.Model) -> None:
        raise ExportError("no luck")

    instant(spoil)
    with pytest.raises(ExportError, match="no luck"):
        export_bundle(fixed.module, out, ExportOptions(size=(64, 96)), labels=LABELS)
    assert (out / "manifest.json").read_bytes() == before
    Manifest.read(out).verify_files()
    assert [p.name for p in out.parent.iterdir()] == [out.name]


def test_a_folder_that_is_no_bundle_is_left_alone(tmp_path, instant):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(rt.RegionRTError, match="mine"):
        export_bundle(faster(), tmp_path / "mine", ExportOptions(size=(64, 96)), labels=LABELS)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


def test_the_manifest_states_thresholds_of_the_options(fixed, tmp_path, instant):
    chosen = {"score": 0.4, "nms": 0.6, "detections": 9, "proposals": 33, "candidates": 70}
    options = ExportOptions(size=(64, 96), ops=("portable",), **chosen)
    export_bundle(fixed.module, tmp_path / "bundle", options, labels=LABELS)
    written = json.loads((tmp_path / "bundle" / "manifest.json").read_text())
    thresholds = written["thresholds"]
    assert {name: thresholds[name] for name in chosen} == chosen
    assert [a["form"] for a in written["artifacts"]] == ["portable"]
