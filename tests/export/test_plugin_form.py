"""The form `plugin`: the nodes that TensorRT's parser is given, what the graph around them computes, its engines."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnx.inliner
import onnx_ir as ir
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from tiny_detectors import LABELS, NOTHING, photos

import regionrt.runtime as rt
from regionrt.cli import run
from regionrt.export import ExportError, ExportOptions, export_bundle, verify
from regionrt.export.passes.lower import lower
from regionrt.plugins.nms.reference import nms
from regionrt.plugins.roi_align.reference import roi_align
from regionrt.runtime.build import BuildOptions, build_engines
from regionrt.runtime.bundle import Manifest
from regionrt.runtime.engine_plugins.registration import IN_PROCESS, PLUGINS, sources_sha256
from regionrt.train.models.region import eager

IMAGES = [*photos([(120, 70), (64, 96), (90, 90)], seed=5), NOTHING]
FOR_THE_PARSER = {"plugin_namespace": "regionrt", "plugin_version": "1", "aot": 1}
NMS = {"iou_threshold": 0.7, "num_classes": 1}
FINAL_NMS = {"iou_threshold": 0.5, "num_classes": len(LABELS) - 1}


def roi_align_of(scales: list[float], areas: list[float], size: int) -> dict[str, object]:
    return {
        "spatial_scales": scales,
        "level_areas": areas,
        "output_height": size,
        "output_width": size,
        "sampling_ratio": 2,
        "aligned": 0,
        "maximum": 0,
    }


TWO_LEVELS = [0.125, 0.0625], [0.0, (32.0 * 2 ** (0 - 1e-6)) ** 2]
EXPECTED = {
    "fixed": [
        ("RegionProposals_plugin_0", "RegionNmsPlugin", NMS),
        ("RegionRoiAlign_plugin_1", "RegionRoiAlignPlugin1", roi_align_of([0.125], [0.0], 3)),
        ("RegionDetections_plugin_2", "RegionNmsPlugin", FINAL_NMS),
    ],
    "dynamic": [
        *[("RegionProposals_plugin_0", "RegionNmsPlugin", NMS)] * 3,
        ("RegionRoiAlign_plugin_1", "RegionRoiAlignPlugin2", roi_align_of(*TWO_LEVELS, 3)),
        ("RegionDetections_plugin_2", "RegionNmsPlugin", FINAL_NMS),
        ("RegionRoiAlign_plugin_3", "RegionRoiAlignPlugin2", roi_align_of(*TWO_LEVELS, 4)),
    ],
}


@pytest.mark.parametrize("name", ["fixed", "dynamic"])
def test_the_nodes_and_all_of_their_attributes(name: str, request: pytest.FixtureRequest) -> None:
    model = ir.to_proto(lower(request.getfixturevalue(name).abstract, "plugin"))
    onnx.checker.check_model(model)  # with the schemas: every attribute is required
    assert all(onnx.defs.has(node, "regionrt") for _, node, _ in EXPECTED[name])
    found = [
        (function.name, node, {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute})
        for function in model.functions
        for node in function.node
        if node.domain == "regionrt"
    ]
    assert [(function, node.op_type) for function, node, _ in found] == [(f, n) for f, n, _ in EXPECTED[name]]
    for (_, _, attributes), (_, _, fields) in zip(found, EXPECTED[name], strict=True):
        assert {k: v for k, v in attributes.items() if k not in fields} == {
            key: value.encode() if isinstance(value, str) else value for key, value in FOR_THE_PARSER.items()
        }
        for key, value in fields.items():
            np.testing.assert_allclose(attributes[key], value, rtol=1e-6)
    # the parser would take a function of a plugin's name for the plugin, and a standard op's name for that op
    functions = {function.name for function in model.functions}
    assert not functions & set(PLUGINS)
    assert not set(PLUGINS) & {schema.name for schema in onnx.defs.get_all_schemas_with_history() if not schema.domain}


class RegionNmsPlugin(OpRun):
    op_domain = "regionrt"

    def _run(self, boxes, classes, iou_threshold=None, num_classes=None, **_):
        assert classes.max() < num_classes
        return (nms(boxes, classes, iou_threshold=iou_threshold),)


def _pool(*inputs, spatial_scales, level_areas, output_height, output_width, sampling_ratio, aligned, maximum):
    """As the kernel: the level by the areas themselves; each level on its own by the reference."""
    *features, rois, counts = inputs
    sides = rois[..., 2:] - rois[..., :2]
    level = (np.float32(sides[..., :1] * sides[..., 1:]) >= np.float32(level_areas[1:])).sum(-1)
    whole = 0
    for index, (feature, scale) in enumerate(zip(features, spatial_scales, strict=True)):
        pooled = roi_align(
            [feature],
            rois,
            counts,
            spatial_scales=[scale],
            output_size=(output_height, output_width),
            sampling_ratio=sampling_ratio,
            aligned=bool(aligned),
            mode="max" if maximum else "avg",
        )
        whole = whole + np.where((level == index)[..., None, None, None], pooled, 0)
    return whole.reshape(-1, *whole.shape[2:]).astype(features[0].dtype)


class RegionRoiAlignPlugin1(OpRun):
    op_domain = "regionrt"

    def _run(self, *inputs, plugin_namespace=None, plugin_version=None, aot=None, **fields):
        return (_pool(*inputs, **fields),)


class RegionRoiAlignPlugin2(RegionRoiAlignPlugin1):
    op_domain = "regionrt"


class GatherElements(OpRun):
    """onnx's own takes one element of each row where there are two axes."""

    def _run(self, data, indices, axis=None):
        return (np.take_along_axis(data, indices, axis),)


@pytest.mark.parametrize("name", ["fixed", "dynamic"])
def test_the_graph_around_the_plugins_computes_what_eager_does(name: str, request: pytest.FixtureRequest) -> None:
    exported = request.getfixturevalue(name)
    model = onnx.inliner.inline_local_functions(ir.to_proto(lower(exported.abstract, "plugin")))
    ours = [RegionNmsPlugin, RegionRoiAlignPlugin1, RegionRoiAlignPlugin2]
    evaluator = ReferenceEvaluator(model, new_ops=[*ours, GatherElements])
    images, sizes, _ = exported.canvas.place([photo for _, photo in IMAGES])
    found = dict(
        zip(evaluator.output_names, evaluator.run(None, {"images": images, "image_sizes": sizes}), strict=True)
    )
    wanted = eager(exported.module, torch.from_numpy(images), torch.from_numpy(sizes))
    assert wanted["num_detections"].sum() > 10
    for output, value in found.items():
        expected = wanted[output].numpy()
        assert (value.shape, value.dtype) == (expected.shape, expected.dtype)
        if value.dtype == np.int32:
            np.testing.assert_array_equal(value, expected, err_msg=output)
        else:
            np.testing.assert_allclose(
                value, expected, rtol=0, atol=1e-3 if output == "boxes" else 1e-5, err_msg=output
            )


def test_more_levels_than_a_kernel_takes(dynamic) -> None:
    model = dynamic.abstract.clone()
    node = next(n for n in model.graph if n.op_type == "RegionRoiAlign")
    feature, rois, counts = node.inputs[0], *node.inputs[-2:]
    wide = ir.Node("regionrt", "RegionRoiAlign", [*[feature] * 6, rois, counts], node.attributes.values())
    wide.attributes.add(ir.AttrFloat32s("spatial_scales", [2.0**-k for k in range(2, 8)]))
    model.graph.insert_before(node, wide)
    with pytest.raises(ExportError, match="takes at most 5 feature levels, the model has 6"):
        lower(model, "plugin")


def export(exported, out: Path, *ops: str, precision: str = "fp32") -> Path:
    options = ExportOptions(
        size=exported.options.size, dynamic=exported.options.dynamic, precision=precision, ops=ops or None
    )
    return export_bundle(exported.module, out, options, labels=LABELS)


def test_it_is_a_source_that_is_exported_when_it_is_named(fixed, tmp_path: Path, instant) -> None:
    assert [a.form for a in Manifest.read(export(fixed, tmp_path / "all")).artifacts].count("plugin") == 0
    bundle = export(fixed, tmp_path / "b", "plugin", "native")
    source, _ = Manifest.read(bundle).artifacts
    assert (str(source), source.files) == ("tensorrt-rtx plugin fp32", ("plugin.onnx", "weights.bin"))
    (photo,) = [photo for name, photo in IMAGES if name == "photo 1"]
    with rt.load(bundle) as predict:  # what cannot run is passed over, with the reason
        assert predict.about["form"] == "native"
        (skipped,) = predict.about["skipped"]
        assert f"regionrt build {bundle} --target tensorrt-rtx --ops plugin" in skipped["why"]
        assert predict(photo) is not None
    with pytest.raises(rt.BackendError, match="it runs as engines, which are built from it: regionrt build"):
        rt.load(bundle, form="plugin")
    with pytest.warns(UserWarning, match="tensorrt-rtx plugin fp32 is not verified here: it runs as engines"):
        (verdict,) = verify(bundle, fixed.module, IMAGES[:1], batches=(1,))
    assert verdict.form == "native"
    (measured, skipped) = rt.autotune(bundle, [photo], seconds=0.1)
    assert (measured.form, skipped.form) == ("native", "plugin")
    assert "which are built from it" in (skipped.why_not or "")
    with warnings.catch_warnings(), pytest.raises(ExportError, match="bf16"):
        ExportOptions(precision="bf16", ops=("plugin",))


def test_the_command_line_takes_the_form(fixed, tmp_path: Path, capfd: pytest.CaptureFixture[str], instant) -> None:
    bundle = export(fixed, tmp_path / "b", "plugin")
    assert run(["infer", str(bundle), "x.jpg"]) == 1
    assert "engines, which are built from it: regionrt build" in capfd.readouterr().err
    assert run(["bench", str(bundle), "--out", str(tmp_path / "report"), "--seconds", "1", "--json"]) == 0
    (row,) = json.loads(capfd.readouterr().out)["candidates"]
    assert "which are built from it" in json.dumps(row)
    assert run(["build", str(bundle), "--ops", "nonsense"]) == 2
    assert "plugin" in capfd.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(("name", "precision"), [("fixed", "fp32"), ("dynamic", "fp16")])
def test_an_engine_of_tensorrt_for_rtx(name: str, precision: str, request, tmp_path: Path, instant) -> None:
    """In a child process, on a machine without a GPU; proved, and with its plugins in the birth certificate."""
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed: pip install 'regionrt[rtx]'")
    exported = request.getfixturevalue(name)
    instant(of=exported)
    bundle = export(exported, tmp_path / "b", "plugin", "portable", precision=precision)
    (engine,) = build_engines(bundle, options=BuildOptions(ops="plugin"))
    assert (engine.backend, engine.form, engine.precision) == ("tensorrt-rtx", "plugin", precision)
    certificate = engine.engine
    assert certificate is not None
    assert certificate["proof"]["share"] == 1.0
    assert certificate["data_dependent_shapes"] is False  # sizes are fixed, so that it may become a CUDA graph
    assert certificate["plugins"] == [
        {
            "name": plugin,
            "namespace": "regionrt",
            "version": "1",
            "kind": IN_PROCESS,
            "op": op,
            "sha256": sources_sha256(op),
        }
        for plugin, op in (
            ("RegionNmsPlugin", "nms"),
            (f"RegionRoiAlignPlugin{1 if name == 'fixed' else 2}", "roi_align"),
        )
    ]
    manifest = Manifest.read(bundle)
    manifest.verify_files()
    assert [str(a) for a in manifest.artifacts][1:] == [
        f"tensorrt-rtx plugin {precision}",
        f"onnxruntime portable {precision}",
    ]
    (portable,) = build_engines(bundle)  # the first form that the target takes
    assert (portable.form, portable.engine["plugins"]) == ("portable", [])  # type: ignore[index]
    assert json.loads((bundle / "manifest.json").read_text())["artifacts"][1]["engine"]["plugins"]
