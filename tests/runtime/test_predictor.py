"""From photos to Detections through a real ONNX Runtime session, and with runners that misbehave."""

from __future__ import annotations

import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_detector import LABELS, disc_mask, photo_with
from PIL import Image

import regionrt.runtime as rt
from regionrt.runtime.image import Canvas
from regionrt.runtime.masks import full_mask, paste_crop

pytest.importorskip("onnxruntime")

# The fake detector's canvas is 96 × 128: a box found on it is known to half a canvas pixel per side.
RED, GREEN, BLUE = (1, 2, 3)


def same(one: rt.Detections, other: rt.Detections) -> bool:
    fields = [(one.boxes_xyxy, other.boxes_xyxy), (one.scores, other.scores), (one.labels, other.labels)]
    if one.roi_masks is not None and other.roi_masks is not None:
        fields.append((one.roi_masks, other.roi_masks))
    return one.image_size == other.image_size and all(np.array_equal(a, b) for a, b in fields)


@pytest.mark.parametrize("size", [(96, 128), (480, 640), (640, 480), (1000, 300), (300, 1000), (77, 51), (2000, 2000)])
def test_a_painted_area_comes_back_as_its_box(shared_bundle: Path, size: tuple[int, int]) -> None:
    height, width = size
    area = (width // 5, height // 4, width * 3 // 4, height * 4 // 5)
    with rt.load(shared_bundle) as predict:
        found = predict(photo_with(height, width, red=area))
    assert found.labels.tolist() == [RED]
    assert found.name(0) == "red"
    assert found.image_size == size
    assert found.scores[0] == pytest.approx(250 / 255, abs=1e-6)
    resized = predict.canvas.resized_size(height, width)
    per_pixel = np.array([width / resized[1], height / resized[0]] * 2)
    assert (np.abs(found.boxes_xyxy[0] - area) <= per_pixel * 0.75).all()


def test_portrait_and_landscape_of_one_photo_agree(shared_bundle: Path, tmp_path: Path) -> None:
    """A camera held upright stores the landscape pixels and a note; the boxes are those of the upright photo."""
    upright = photo_with(640, 480, red=(60, 320, 420, 600))
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "phone.png"
    Image.fromarray(np.ascontiguousarray(np.rot90(upright, 1))).save(path, exif=exif)
    with rt.load(shared_bundle) as predict:
        assert same(predict(path), predict(upright))
        assert predict(path).image_size == (640, 480)


def test_several_objects_are_sorted_and_labelled(shared_bundle: Path) -> None:
    areas = {"blue": (0, 0, 300, 200), "red": (350, 300, 640, 480), "green": (20, 260, 120, 460)}
    with rt.load(shared_bundle) as predict:
        found = predict(photo_with(480, 640, **areas))
    assert [found.name(index) for index in range(len(found))] == ["red", "green", "blue"]
    assert (np.diff(found.scores) < 0).all()
    for index, name in enumerate(("red", "green", "blue")):
        assert np.abs(found.boxes_xyxy[index] - areas[name]).max() <= 3.75
    assert found.boxes_xyxy[0, 2] <= 640
    assert found.boxes_xyxy[0, 3] <= 480


@pytest.mark.parametrize("fixture", ["shared_bundle", "mask_bundle"])
def test_an_image_with_nothing_in_it(fixture: str, request: pytest.FixtureRequest) -> None:
    with rt.load(request.getfixturevalue(fixture)) as predict:
        found = predict(np.full((333, 222, 3), 30, np.uint8))
    assert len(found) == 0
    assert found.boxes_xyxy.shape == (0, 4)
    assert found.boxes_xyxy.dtype == np.float32
    assert found.to_json() == {"image_size": [333, 222], "detections": []}
    assert found.to_coco(1) == []
    assert list(found.masks()) == []
    assert found.draw(np.full((333, 222, 3), 30, np.uint8)).shape == (333, 222, 3)


def test_batch_keeps_order_over_chunks_and_sizes(shared_bundle: Path) -> None:
    rng = np.random.default_rng(0)
    photos = []
    for index in range(11):
        height, width = (int(value) for value in rng.integers(60, 700, 2))
        area = {"red": (0, 0, width // 2, height // 2), "green": (width // 2, 0, width, height)}
        photos.append(photo_with(height, width, **(area if index % 3 else {})))
    with rt.load(shared_bundle) as predict:
        together = predict.batch(photos)
        assert [len(found) for found in together] == [0 if index % 3 == 0 else 2 for index in range(11)]
        assert all(same(found, predict(photo)) for found, photo in zip(together, photos, strict=True))
        assert predict.batch([]) == []


def test_batch_never_exceeds_the_manifests_largest(bundle: Path) -> None:
    import json

    manifest = json.loads((bundle / "manifest.json").read_text())
    (bundle / "manifest.json").write_text(json.dumps(manifest | {"max_batch": 2}))
    seen = []
    with rt.load(bundle) as predict:
        run = predict.runner.run
        predict.runner.run = lambda images, sizes: seen.append(len(images)) or run(images, sizes)  # type: ignore[func-returns-value,method-assign]
        predict.batch([np.zeros((20, 20, 3), np.uint8)] * 5)
    assert seen == [2, 2, 1]


def test_stream_is_the_same_in_order(shared_bundle: Path, tmp_path: Path) -> None:
    paths = []
    for index in range(7):
        path = tmp_path / f"{index}.png"
        Image.fromarray(photo_with(200 + 40 * index, 300, red=(10, 20, 100 + 20 * index, 150))).save(path)
        paths.append(path)
    with rt.load(shared_bundle) as predict:
        streamed = list(predict.stream(paths))
        assert [name for name, _ in streamed] == [str(path) for path in paths]
        assert all(same(found, predict(path)) for (_, found), path in zip(streamed, paths, strict=True))
        assert list(predict.stream([])) == []


def test_stream_with_a_bad_image(shared_bundle: Path, tmp_path: Path) -> None:
    good = tmp_path / "good.png"
    Image.fromarray(photo_with(100, 100, red=(0, 0, 50, 50))).save(good)
    bad = tmp_path / "bad.png"
    bad.write_bytes(good.read_bytes()[:60])
    told: list[str] = []
    with rt.load(shared_bundle) as predict:
        names = [name for name, _ in predict.stream([good, bad, good], lambda name, error: told.append(name))]
        assert names == [str(good), str(good)]
        assert told == [str(bad)]
        with pytest.raises(rt.ImageError, match=r"bad\.png"):
            list(predict.stream([good, bad]))


def test_the_net_is_ahead_of_the_caller(shared_bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(photo_with(100, 100)).save(path)
    second = threading.Event()
    calls = []
    with rt.load(shared_bundle) as predict:
        run = predict.runner.run

        def counted(images: np.ndarray, sizes: np.ndarray) -> dict[str, np.ndarray]:
            calls.append(1)
            if len(calls) == 2:
                second.set()
            return run(images, sizes)

        predict.runner.run = counted  # type: ignore[method-assign]
        stream = predict.stream([path] * 3)
        next(stream)
        assert second.wait(30), "the second image is on the net while the caller has the first"
        assert len(list(stream)) == 2


def test_an_error_of_the_engine_names_the_image(shared_bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(photo_with(100, 100)).save(path)
    with rt.load(shared_bundle) as predict:
        predict.close()
        with pytest.raises(rt.BackendError, match=r"a\.png: .*closed"):
            list(predict.stream([path]))


def test_an_abandoned_stream_stops_decoding(shared_bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(photo_with(100, 100)).save(path)
    taken = []

    def endless() -> Any:
        while True:
            taken.append(1)
            yield path

    with rt.load(shared_bundle) as predict:
        stream = predict.stream(endless())
        next(stream)
        stream.close()
    assert len(taken) < 10
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("regionrt-")]


@pytest.mark.usefixtures("every_core")
def test_eight_threads_get_identical_results(mask_bundle: Path) -> None:
    rng = np.random.default_rng(1)
    photos = []
    for _ in range(8):
        x0, y0 = (int(value) for value in rng.integers(0, 200, 2))
        photos.append(photo_with(480, 640, red=(x0, y0, x0 + 150, y0 + 90), blue=(300, 240, 600, 470)))
    with rt.load(mask_bundle) as predict:
        alone = [predict(photo) for photo in photos]
        with ThreadPoolExecutor(8) as pool:
            for _ in range(5):
                assert all(same(one, other) for one, other in zip(alone, pool.map(predict, photos), strict=True))
            batches = list(pool.map(predict.batch, [photos] * 8))
    for batch in batches:
        assert all(same(one, other) for one, other in zip(alone, batch, strict=True))


def test_masks_are_pasted_into_the_photo(mask_bundle: Path) -> None:
    with rt.load(mask_bundle) as predict:
        found = predict(photo_with(480, 640, red=(100, 50, 400, 250), green=(500, 300, 620, 460)))
    assert found.roi_masks is not None
    assert found.roi_masks.shape == (2, 14, 14)
    np.testing.assert_allclose(found.roi_masks[0], disc_mask(), atol=1e-6)
    mask = found.mask(0)
    assert mask.shape == (480, 640)
    np.testing.assert_array_equal(mask, full_mask(paste_crop(disc_mask(), found.boxes_xyxy[0], (480, 640)), (480, 640)))
    assert mask[150, 250]  # the centre of the disc
    assert not mask[52, 102]  # the box's corner
    assert not mask[:, 410:].any()


def test_dropped_candidates_are_told_with_their_number(shared_bundle: Path) -> None:
    photo = np.full((96, 128, 3), 30, np.uint8)
    photo[0, 0] = (0, 77, 0)
    with rt.load(shared_bundle) as predict:
        with pytest.warns(UserWarning, match="10 candidate boxes .* dropped by the cap of 3"):
            predict.batch([photo, photo])
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            predict(photo_with(96, 128))


def test_the_score_threshold_may_rise(shared_bundle: Path) -> None:
    photo = photo_with(480, 640, red=(0, 0, 100, 100), blue=(300, 300, 400, 400))
    with rt.load(shared_bundle, score_threshold=0.9) as predict:
        assert predict(photo).labels.tolist() == [RED]
    with rt.load(shared_bundle, score_threshold=0.05) as predict:
        assert predict(photo).labels.tolist() == [RED, BLUE]


@pytest.mark.parametrize("score", [0.0, 0.01, 0.049])
def test_a_lower_score_threshold_names_the_export_option(shared_bundle: Path, score: float) -> None:
    with pytest.raises(rt.BundleError, match=f"exported with 0.05 .* `regionrt export --score {score}`"):
        rt.load(shared_bundle, score_threshold=score)


@pytest.mark.parametrize("score", [-0.1, 1.5, float("nan")])
def test_a_score_threshold_outside_its_range(shared_bundle: Path, score: float) -> None:
    with pytest.raises(rt.BundleError, match="expected 0…1"):
        rt.load(shared_bundle, score_threshold=score)


@pytest.mark.parametrize(
    "image",
    [np.zeros((10, 10), np.uint8), np.zeros((10, 10, 3), np.float32), np.zeros((10, 10, 4), np.uint8), None, [1]],
)
def test_what_is_no_photo(shared_bundle: Path, image: object) -> None:
    with rt.load(shared_bundle) as predict, pytest.raises(rt.ImageError, match="RGB uint8"):
        predict(image)  # type: ignore[arg-type]


def test_after_close(shared_bundle: Path) -> None:
    predict = rt.load(shared_bundle)
    predict.close()
    predict.close()
    with pytest.raises(rt.BackendError, match="closed"):
        predict(photo_with(20, 20))


class BadRunner:
    """Answers with what a broken artefact might."""

    name = "bad"

    def __init__(self, **outputs: np.ndarray) -> None:
        good = {
            "num_detections": np.array([1], np.int32),
            "boxes": np.array([[[1, 1, 5, 5], [0, 0, 0, 0]]], np.float32),
            "scores": np.array([[0.9, -1]], np.float32),
            "labels": np.array([[1, -1]], np.int32),
            "overflow": np.array([0], np.int32),
        }
        self.outputs = {name: value for name, value in (good | outputs).items() if value is not None}

    def run(self, images: np.ndarray, image_sizes: np.ndarray) -> dict[str, np.ndarray]:
        return self.outputs

    def close(self) -> None:
        """Holds nothing."""


def bad_predictor(**outputs: Any) -> rt.Predictor:
    return rt.Predictor(BadRunner(**outputs), Canvas(32, 32, 32, 32), LABELS, {"score": 0.05})


def test_the_bad_runner_is_otherwise_good() -> None:
    found = bad_predictor()(np.zeros((32, 32, 3), np.uint8))
    assert found.boxes_xyxy.tolist() == [[1, 1, 5, 5]]


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        ({"scores": np.array([[np.nan, -1]], np.float32)}, "not finite"),
        ({"boxes": np.full((1, 2, 4), np.inf, np.float32)}, "not finite"),
        ({"labels": np.array([[0, -1]], np.int32)}, "labels 0…0, expected 1…3"),
        ({"labels": np.array([[91, -1]], np.int32)}, "labels 91…91, expected 1…3"),
        ({"num_detections": np.array([3], np.int32)}, r"num_detections \[3\], expected 0…2"),
        ({"num_detections": np.array([-1], np.int32)}, "num_detections"),
        ({"boxes": np.zeros((1, 3, 4), np.float32)}, r"boxes: expected \[1, 2, 4\], found \[1, 3, 4\]"),
        ({"num_detections": np.array([1, 1], np.int32)}, "num_detections: expected"),
        ({"overflow": None}, "none of overflow"),
        ({"masks": np.zeros((1, 5, 14, 14), np.float32)}, "masks: expected"),
        ({"masks": np.full((1, 2, 14, 14), np.nan, np.float32)}, "not finite"),
    ],
)
def test_never_half_a_result(outputs: dict[str, Any], message: str) -> None:
    with pytest.raises(rt.BackendError, match=message):
        bad_predictor(**outputs)(np.zeros((32, 32, 3), np.uint8))


def test_results_do_not_keep_the_outputs_of_the_whole_batch_alive() -> None:
    runner = BadRunner()
    found = rt.Predictor(runner, Canvas(32, 32, 32, 32), LABELS, {"score": 0.05})(np.zeros((32, 32, 3), np.uint8))
    runner.outputs["scores"][:] = 0
    assert found.scores[0] == np.float32(0.9)
    for array in (found.boxes_xyxy, found.scores, found.labels):
        assert array.base is None


def test_max_batch_is_checked() -> None:
    with pytest.raises(ValueError, match="max_batch"):
        rt.Predictor(BadRunner(), Canvas(32, 32, 32, 32), LABELS, {"score": 0.05}, max_batch=0)
