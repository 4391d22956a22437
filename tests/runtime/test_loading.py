"""load(): which artefact is taken, which are left out and why, and what ONNX Runtime refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from fake_detector import fake_artifact, fake_manifest, fake_model, photo_with, with_artifacts, write_manifest

import regionrt.runtime as rt
from regionrt.runtime.backends.onnxruntime import OnnxRuntimeRunner

pytestmark = pytest.mark.usefixtures("no_gpu")
ORT = fake_artifact("onnxruntime", "native", ["native.onnx", "weights.bin"])


def test_about_says_what_runs(shared_bundle: Path) -> None:
    with rt.load(shared_bundle, threads=1) as predict:
        about = predict.about
    assert about["backend"] == "onnxruntime"
    assert about["form"] == "native"
    assert about["precision"] == "fp32"
    assert about["files"] == ["native.onnx", "weights.bin"]
    assert about["threads"] == 1
    assert about["skipped"] == []


def test_auto_skips_engines_and_says_why(bundle: Path) -> None:
    engine = fake_artifact("tensorrt-rtx", "portable", ["engines/a.engine"])
    with rt.load(with_artifacts(bundle, engine, ORT)) as predict:
        assert predict.about["backend"] == "onnxruntime"
        (skipped,) = predict.about["skipped"]
        assert len(predict(photo_with(96, 128, red=(0, 0, 50, 50)))) == 1
    assert skipped["backend"] == "tensorrt-rtx"
    assert "no NVIDIA GPU driver" in skipped["why"]


def test_an_engine_asked_for_by_name_is_an_error(bundle: Path) -> None:
    with_artifacts(bundle, fake_artifact("tensorrt-rtx", "portable", ["engines/a.engine"]), ORT)
    with pytest.raises(rt.BackendError, match=r"asked for tensorrt-rtx.*no NVIDIA GPU driver") as caught:
        rt.load(bundle, backend="tensorrt-rtx")
    assert "\n" not in str(caught.value)


def test_a_backend_that_the_bundle_does_not_hold(bundle: Path) -> None:
    with pytest.raises(rt.BackendError, match="asked for openvino, the bundle holds onnxruntime native fp32"):
        rt.load(bundle, backend="openvino")
    with_artifacts(bundle)
    with pytest.raises(rt.BackendError, match="the bundle holds nothing"):
        rt.load(bundle)


def test_form_and_precision_choose(bundle: Path) -> None:
    portable = fake_artifact("onnxruntime", "portable", ["portable.onnx", "weights.bin"])
    with_artifacts(bundle, ORT, portable)
    with rt.load(bundle, form="portable") as predict:
        assert predict.about["files"][0] == "portable.onnx"
    with pytest.raises(rt.BackendError, match="asked for auto, fp16"):
        rt.load(bundle, precision="fp16")


def test_the_first_artefact_that_runs_wins(bundle: Path) -> None:
    portable = fake_artifact("onnxruntime", "portable", ["portable.onnx", "weights.bin"])
    engine = fake_artifact("tensorrt-rtx", "portable", ["engines/a.engine"])
    with rt.load(with_artifacts(bundle, portable, ORT, engine)) as predict:
        assert predict.about["form"] == "portable"
        assert [entry["form"] for entry in predict.about["skipped"]] == ["native", "portable"]
        assert predict.about["skipped"][0]["why"] == "comes later in the bundle"
        assert "no NVIDIA GPU driver" in predict.about["skipped"][1]["why"]


def test_one_that_the_engine_refuses_is_left_out_aloud(bundle: Path) -> None:
    broken = fake_artifact("onnxruntime", "native", ["engines/a.engine"])
    with_artifacts(bundle, broken, ORT)
    with pytest.warns(UserWarning, match=r"left out: .*refuses it"):
        predict = rt.load(bundle)
    assert predict.about["files"] == ["native.onnx", "weights.bin"]
    assert "refuses it" in predict.about["skipped"][0]["why"]


def test_a_damaged_file_is_an_error_and_nothing_is_put_in_its_place(bundle: Path) -> None:
    portable = fake_artifact("onnxruntime", "portable", ["portable.onnx", "labels.txt"])
    with_artifacts(bundle, ORT, portable)
    data = bytearray((bundle / "weights.bin").read_bytes())
    data[1] ^= 0x40
    (bundle / "weights.bin").write_bytes(data)
    with pytest.raises(rt.BundleError, match=r"weights\.bin: changed since the export"):
        rt.load(bundle)


def test_files_of_artefacts_that_do_not_run_are_not_hashed(bundle: Path) -> None:
    with_artifacts(bundle, ORT, fake_artifact("tensorrt-rtx", "portable", ["engines/a.engine"]))
    (bundle / "engines" / "a.engine").write_bytes(b"NO engine of this machine")  # same size, other bytes
    rt.load(bundle).close()


def test_bundles_with_dynamic_canvas(bundle: Path) -> None:
    canvas = {"height": 1344, "width": 1344, "min_size": 96, "max_size": 1333, "multiple": 32, "dynamic": True}
    write_manifest(bundle, fake_manifest(bundle, canvas=canvas))
    with rt.load(bundle) as predict:
        found = predict.batch([photo_with(96, 100, red=(10, 20, 40, 60)), photo_with(300, 100, green=(5, 6, 70, 200))])
    assert found[0].boxes_xyxy.tolist() == [[10, 20, 40, 60]]
    np.testing.assert_allclose(found[1].boxes_xyxy, [[5, 6, 70, 200]], atol=1.5)


@pytest.mark.parametrize("threads", [0, -1])
def test_threads_are_checked(shared_bundle: Path, threads: int) -> None:
    with pytest.raises(ValueError, match="threads: expected at least 1"):
        rt.load(shared_bundle, threads=threads)


@pytest.mark.parametrize(("spin", "arena"), [(True, True), (False, True), (True, False), (False, False)])
def test_session_options_do_not_change_results(mask_bundle: Path, spin: bool, arena: bool) -> None:
    image = photo_with(96, 128, red=(3, 5, 60, 70))[None]
    sizes = np.array([[96, 128]], np.int32)
    reference = OnnxRuntimeRunner(mask_bundle / "native.onnx", threads=1).run(image, sizes)
    found = OnnxRuntimeRunner(mask_bundle / "native.onnx", threads=2, spin=spin, arena=arena).run(image, sizes)
    assert set(found) == {"num_detections", "boxes", "scores", "labels", "overflow", "masks"}
    for name, value in reference.items():
        np.testing.assert_array_equal(found[name], value)


def test_a_model_with_other_inputs_is_refused(tmp_path: Path) -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["" : 18]> '
        "other (uint8[N,H,W,3] images) => (uint8[N,H,W,3] y) { y = Identity (images) }"
    )
    onnx.save_model(model, tmp_path / "other.onnx")
    with pytest.raises(rt.BackendError, match=r"expected the inputs .* no detector of ours"):
        OnnxRuntimeRunner(tmp_path / "other.onnx")


def test_a_failing_run_is_a_backend_error(shared_bundle: Path) -> None:
    runner = OnnxRuntimeRunner(shared_bundle / "native.onnx")
    with pytest.raises(rt.BackendError, match=r"onnxruntime: failed on images \[1, 96, 128, 3\] float32") as caught:
        runner.run(np.zeros((1, 96, 128, 3), np.float32), np.array([[96, 128]], np.int32))
    assert "\n" not in str(caught.value)


def test_model_local_functions_of_our_domain_run(bundle: Path) -> None:
    """Lowered graphs hold functions of the domain "regionrt"; ONNX Runtime inlines them."""
    model = fake_model()
    function = onnx.helper.make_function(
        "regionrt",
        "RegionSame",
        ["x"],
        ["y"],
        [onnx.helper.make_node("Identity", ["x"], ["y"])],
        [onnx.helper.make_opsetid("", 18)],
    )
    model.functions.append(function)
    model.opset_import.append(onnx.helper.make_opsetid("regionrt", 1))
    for node in model.graph.node:
        node.input[:] = ["same" if name == "planes" else name for name in node.input]
    model.graph.node.insert(2, onnx.helper.make_node("RegionSame", ["planes"], ["same"], domain="regionrt"))
    onnx.save_model(model, bundle / "native.onnx")
    write_manifest(bundle, fake_manifest(bundle))
    with rt.load(bundle) as predict:
        assert len(predict(photo_with(96, 128, red=(0, 0, 50, 50)))) == 1
