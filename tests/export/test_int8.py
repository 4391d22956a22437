"""int8: where Q/DQ nodes stand in each dialect, that ONNX Runtime compiles integers of them, and what is refused."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest
import torch
from tiny_detectors import LABELS, photos
from torch import nn

import regionrt.runtime as rt
from regionrt.export import ExportError, ExportOptions, export_bundle
from regionrt.export.calibration.collect import calibrate, run_on, session_of
from regionrt.export.calibration.sensitivity import sensitivities
from regionrt.export.compress.calibration import Photo
from regionrt.export.passes.fp8 import E4M3
from regionrt.export.passes.int8 import SYMMETRIC, U8S8, int8
from regionrt.export.passes.qdq import Range, insert_qdq
from regionrt.export.quantizing import quantizable_names, quantization_of
from regionrt.runtime.bundle import Manifest
from regionrt.train.models import build_model

PHOTOS = [Photo(name, lambda p=pixels: p) for name, pixels in photos([(64, 96)] * 6, seed=3)]


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


class Residual(nn.Module):
    """conv → relu → max-pool → conv + the pooled, relu → fc."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fc = nn.Conv2d(3, 8, 3, 1, 1), nn.Conv2d(8, 8, 3, 1, 1), nn.Linear(8 * 16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.nn.functional.max_pool2d(self.a(x).relu(), 2)
        return self.fc((self.b(x) + x).relu().flatten(1))


def residual() -> tuple[ir.Model, np.ndarray]:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, 8)
    model = torch.onnx.export(Residual().eval(), (x,), dynamo=True, opset_version=20, verbose=False).model
    return model, x.numpy()


def ranges_of(model: ir.Model, x: np.ndarray) -> dict[str, Range]:
    watched = model.clone()
    (name,) = (value.name for value in watched.graph.inputs)
    own = {value.name for value in watched.graph.outputs}
    watched.graph.outputs.extend(
        v for n in watched.graph for v in n.outputs if v.dtype == ir.DataType.FLOAT and v.name not in own
    )
    session = session_of(watched)
    names = [value.name for value in session.get_outputs()]
    values = {name: x, **dict(zip(names, session.run(names, {name: x}), strict=True))}
    return {n: Range(min(float(v.min()), 0), max(float(v.max()), 0)) for n, v in values.items()}


def read_by(model: ir.Model, value: str) -> set[str]:
    return {use.node.op_type for node in model.graph for v in node.outputs if v.name == value for use in v.uses()}


def test_symmetric_quantises_what_layers_read_and_nothing_else():
    model, x = residual()
    quantized, layers = int8(model, ranges_of(model, x), SYMMETRIC)
    assert len(layers) == 3
    ops = Counter(node.op_type for node in quantized.graph)
    assert (ops["QuantizeLinear"], ops["DequantizeLinear"]) == (3, 3 + 3), "three inputs; three weights, no bias"
    for node in quantized.graph:
        if node.op_type in ("Conv", "Gemm"):
            assert [v.producer().op_type for v in node.inputs[:2]] == ["DequantizeLinear"] * 2
            assert node.inputs[2].is_initializer(), "the bias stays fp32"
            codes, scale, zero = node.inputs[1].producer().inputs
            assert codes.dtype == ir.DataType.INT8
            assert scale.const_value.shape == (codes.shape[0],), "a scale for each output channel"
            assert not zero.const_value.numpy().any()
        if node.op_type == "QuantizeLinear":
            assert node.inputs[2].dtype == ir.DataType.INT8
            assert not node.inputs[2].const_value.numpy().any()
        if node.op_type == "Add":
            assert all(v.producer().op_type != "DequantizeLinear" for v in node.inputs)


def test_u8s8_lets_onnx_runtime_compute_the_whole_in_integers(tmp_path):
    from regionrt.export.proof import compiled_ops

    model, x = residual()
    quantized, layers = int8(model, ranges_of(model, x), U8S8)
    ir.save(quantized, tmp_path / "q.onnx")
    ops = compiled_ops(tmp_path / "q.onnx")
    assert (ops["QLinearConv"], ops["QGemm"], ops["QLinearAdd"]) == (2, 1, 1)
    assert len(layers) == 3
    assert ops["QuantizeLinear"] == ops["DequantizeLinear"] == 1, "at the borders only"
    bias = next(n for n in quantized.graph if n.op_type == "Gemm").inputs[2].producer()
    assert bias.inputs[0].dtype == ir.DataType.INT32


@pytest.mark.parametrize("dialect", [SYMMETRIC, U8S8, E4M3], ids=lambda d: d.name)
def test_the_output_is_near_and_not_the_same(dialect):
    model, x = residual()
    quantized, _ = insert_qdq(model, ranges_of(model, x), dialect)
    (name,) = (value.name for value in model.graph.inputs)
    wanted, found = (session_of(m).run(None, {name: x})[0] for m in (model, quantized))
    error = np.linalg.norm(found - wanted) / np.linalg.norm(wanted)
    assert 1e-4 < error < (0.15 if dialect is E4M3 else 0.05)
    assert [v.name for v in quantized.graph.outputs] == [v.name for v in model.graph.outputs]
    assert not any(n.op_type == "QuantizeLinear" for n in model.graph), "the input is left alone"


def test_layers_that_are_kept_read_and_have_what_they_had():
    model, x = residual()
    first = quantizable_names(model)[0]
    quantized, layers = int8(model, ranges_of(model, x), SYMMETRIC, [first])
    assert first not in layers
    kept = next(node for node in quantized.graph if node.name == first)
    assert all(v.is_initializer() or v.is_graph_input() for v in kept.inputs)


def test_a_dead_channel_with_a_bias_and_a_value_that_is_always_zero():
    model, x = residual()
    weight = next(n for n in model.graph if n.op_type == "Conv").inputs[1]
    array = weight.const_value.numpy().copy()
    array[0] = 0
    weight.const_value = ir.tensor(array, name=weight.name)
    ranges = {name: Range(0, 0) if name == model.graph.inputs[0].name else r for name, r in ranges_of(model, x).items()}
    quantized, _ = int8(model, ranges, U8S8)
    found = session_of(quantized).run(None, {model.graph.inputs[0].name: 0 * x})[0]
    wanted = session_of(model).run(None, {model.graph.inputs[0].name: 0 * x})[0]
    np.testing.assert_allclose(found, wanted, atol=0.02 * ranges["linear"].largest)


def test_a_bundle_of_int8_says_what_is_in_it_and_runs(fixed, instant, tmp_path):
    options = replace(fixed.options, precision="int8", most_error=0.5)
    export_bundle(fixed.module, tmp_path / "bundle", options, labels=LABELS, photos=PHOTOS)
    manifest = Manifest.read(tmp_path / "bundle")
    manifest.verify_files()
    kinds = [(a.backend, a.form) for a in manifest.artifacts]
    assert kinds == [("openvino", "staged"), ("onnxruntime", "staged"), ("onnxruntime", "native"),
                     ("tensorrt-rtx", "portable")]  # fmt: skip
    table = json.loads((tmp_path / "bundle" / "precision.json").read_text())
    shares = table["shares"]
    assert sum(of["flops"] for of in shares.values()) == pytest.approx(1)
    assert shares["int8"]["layers"] == len(manifest.artifacts[0].quantized) > 5
    errors = [layer["sensitivity"] for layer in table["layers"]]
    assert errors == sorted(errors, reverse=True)
    for backend, form in kinds[:3]:
        with rt.load(tmp_path / "bundle", backend=backend, form=form) as predict, rt.load(fixed.bundle) as exact:
            assert predict.about["precision"] == "int8"
            wanted, found = (sum(len(p(photo.pixels()).scores) for photo in PHOTOS) for p in (exact, predict))
            assert 0.5 * wanted <= found <= 2 * wanted


def test_more_sensitive_layers_than_allowed_stay_fp32(fixed, instant, tmp_path):
    options = replace(fixed.options, precision="int8", ops=("native",), most_error=0.5)
    found = quantization_of(fixed.abstract, fixed.canvas, PHOTOS, "int8", method="minmax", most_error=0.5)
    errors = list(found.sensitivity.items())
    assert errors[0][1] > errors[-1][1] > 0
    limit = errors[1][1]
    export_bundle(
        fixed.module, tmp_path / "b", replace(options, most_error=limit, calibration="minmax"), labels=LABELS,
        photos=PHOTOS,
    )  # fmt: skip
    (artifact,) = Manifest.read(tmp_path / "b").artifacts
    assert errors[0][0] not in artifact.quantized
    assert errors[1][0] in artifact.quantized


def test_the_sensitivity_of_a_layer_is_what_it_does_to_its_stage(fixed):
    """Measured apart: the graph up to the stage's outputs, with that layer alone quantised."""
    ranges = calibrate(fixed.abstract, fixed.canvas, PHOTOS, "minmax").ranges
    found = sensitivities(fixed.abstract, fixed.canvas, PHOTOS[:2], ranges, SYMMETRIC)
    layer = quantizable_names(fixed.abstract)[0]
    changed, _ = int8(fixed.abstract, ranges, SYMMETRIC, [n for n in found if n != layer])
    names = ["features.0", "objectness.0", "rpn_deltas.0"]
    runs = [[v for _, v in run_on(m, fixed.canvas, PHOTOS[:2], names)] for m in (fixed.abstract, changed)]
    worst = 0.0
    for name in names:
        y, q = (np.stack([values[name] for values in run]).astype(np.float64) for run in runs)
        worst = max(worst, float(np.linalg.norm(q - y) / np.linalg.norm(y - y.mean())))
    assert found[layer] == pytest.approx(worst, rel=1e-3)


def test_too_few_images_are_refused(fixed):
    with pytest.raises(ExportError, match="4 images to calibrate on: give 5 or more"):
        calibrate(fixed.abstract, fixed.canvas, PHOTOS[:4], "minmax")


def test_images_of_one_colour_are_refused(fixed):
    grey = [Photo(f"grey {n}", lambda n=n: np.full((64, 96, 3), 20 * n, np.uint8)) for n in range(5)]
    with pytest.raises(ExportError, match="one colour each"):
        calibrate(fixed.abstract, fixed.canvas, grey, "minmax")


def test_an_infinite_activation_names_image_and_layer(fixed):
    model = fixed.abstract.clone()
    conv = next(node for node in model.graph if node.op_type == "Conv")
    weight = conv.inputs[1]
    weight.const_value = ir.tensor(np.full_like(weight.const_value.numpy(), 3e38), name=weight.name)
    with pytest.raises(ExportError, match=rf"photo 0: layer {conv.name} \(Conv\) computes NaN or infinite"):
        calibrate(model, fixed.canvas, PHOTOS, "minmax")


@pytest.mark.parametrize(
    ("options", "with_photos", "match"),
    [
        ({"precision": "int8"}, False, "--calibrate DIR"),
        ({"precision": "fp32"}, True, "needs no calibration"),
        ({"precision": "int8", "keep": ("node_conv",)}, True, "no layer 'node_conv' to keep"),
        ({"precision": "int8", "most_error": 1e-9}, True, "no layer would be in int8"),
    ],
)
def test_what_is_refused_writes_nothing(fixed, instant, tmp_path, options, with_photos, match):
    with pytest.raises(ExportError, match=match):
        export_bundle(
            fixed.module, tmp_path / "bundle", replace(fixed.options, **options), labels=LABELS,
            photos=PHOTOS if with_photos else None,
        )  # fmt: skip
    assert not (tmp_path / "bundle").exists()


def test_calibration_is_read_from_the_cache_and_knows_other_data(fixed, monkeypatch):
    first = calibrate(fixed.abstract, fixed.canvas, PHOTOS, "percentile")
    import regionrt.export.calibration.collect as collect

    def no_run(*_, **__):
        raise AssertionError("computed again")

    monkeypatch.setattr(collect, "run_on", no_run)
    assert calibrate(fixed.abstract, fixed.canvas, PHOTOS, "percentile") == first
    for other in ((PHOTOS[::-1], "percentile"), (PHOTOS, "minmax")):
        with pytest.raises(AssertionError, match="computed again"):
            calibrate(fixed.abstract, fixed.canvas, *other)
    (file,) = (collect.cache_folder("calibration")).glob("*.json")
    file.write_text("{}")
    with pytest.raises(AssertionError, match="computed again"):
        calibrate(fixed.abstract, fixed.canvas, PHOTOS, "percentile")


def test_fp16_keeps_what_comes_near_the_end_of_its_range(fixed, tmp_path):
    model = fixed.abstract.clone()
    conv = [node for node in model.graph if node.op_type == "Conv"][1]
    weight = conv.inputs[1]
    weight.const_value = ir.tensor(weight.const_value.numpy() * np.float32(2e4), name=weight.name)
    found = quantization_of(model, fixed.canvas, PHOTOS, "fp16", method="minmax")
    assert str(conv.name) in found.kept
    assert "fp16 ends at 65504" in found.why[str(conv.name)]
    assert not quantization_of(fixed.abstract, fixed.canvas, PHOTOS, "fp16", method="minmax").kept
    from regionrt.export.passes.fp16 import fp16

    half = fp16(model, found.kept)
    kept = next(node for node in half.graph if node.name == conv.name)
    assert all(value.dtype == ir.DataType.FLOAT for value in (*kept.inputs, *kept.outputs))
    names = ["class_logits"]
    (_, values), *_ = run_on(half, fixed.canvas, PHOTOS[:1], names)
    assert np.isfinite(values["class_logits"]).all()


def test_options_are_checked():
    with pytest.raises(ExportError, match="calibration of percentile, entropy, minmax"):
        ExportOptions(precision="int8", calibration="max")
    with pytest.raises(ExportError, match="above 0"):
        ExportOptions(precision="int8", most_error=0)


def test_masks_and_dynamic_sizes_in_int8(dynamic, instant, tmp_path):
    instant(of=dynamic)
    options = replace(dynamic.options, precision="int8", most_error=10)
    seen = [Photo(name, lambda p=pixels: p) for name, pixels in photos([(96, 128), (64, 96)] * 3, seed=4)]
    export_bundle(dynamic.module, tmp_path / "bundle", options, labels=LABELS, photos=seen)
    for backend, form in (("openvino", "staged"), ("onnxruntime", "staged"), ("onnxruntime", "native")):
        with rt.load(tmp_path / "bundle", backend=backend, form=form) as predict, rt.load(dynamic.bundle) as exact:
            wanted, found = (sum(len(p(photo.pixels()).scores) for photo in seen) for p in (exact, predict))
            assert 0.5 * wanted <= found <= 2 * wanted


@pytest.mark.parametrize("name", ["unet", "segnet"])
def test_label_maps_in_int8_by_the_same_pass(name, tmp_path):
    torch.manual_seed(0)
    module = build_model(name, {"width": 8, "depth": 2, "size": [32, 48]}, ("sky", "road", "car"))
    options = ExportOptions(precision="int8", most_error=10)
    seen = [Photo(label, lambda p=pixels: p) for label, pixels in photos([(32, 48)] * 5, seed=4)]
    export_bundle(module, tmp_path / "int8", options, labels=("sky", "road", "car"), photos=seen)
    table = json.loads((tmp_path / "int8" / "precision.json").read_text())
    assert table["shares"]["int8"]["flops"] > 0.8
    assert table["layers"][0]["sensitivity"] > 0, "the share of pixels that change their class"
    export_bundle(module, tmp_path / "fp32", labels=("sky", "road", "car"))
    for artifact in Manifest.read(tmp_path / "int8").artifacts:
        if artifact.backend == "tensorrt-rtx":
            continue
        with (
            rt.load(tmp_path / "int8", backend=artifact.backend, form=artifact.form) as predict,
            rt.load(tmp_path / "fp32") as exact,
        ):
            assert predict.about["precision"] == "int8"
            same = [np.mean(predict(p.pixels()).labels == exact(p.pixels()).labels) for p in seen]
            assert np.mean(same) > 0.85
