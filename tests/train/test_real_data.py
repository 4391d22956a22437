"""Real VOC and COCO folders: images, objects and broken boxes counted. Skipped where the data is absent."""

import contextlib
import io
import os
import warnings
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from regionrt.train.coco_metrics import Matches, truth_of
from regionrt.train.data import open_data

pytestmark = pytest.mark.real


@pytest.fixture
def real():
    """The folder of real data: REGIONRT_REAL_DATA, or ../shared/data beside the checkout."""
    folder = Path(os.environ.get("REGIONRT_REAL_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set REGIONRT_REAL_DATA to the folder that holds bccd/ and coco_mini/")
    return folder


@pytest.mark.parametrize(
    ("split", "images", "objects", "broken"),
    [("train", 205, 2804, "BloodImage_00343"), ("val", 87, 1137, "BloodImage_00338"), ("test", 72, 945, None)],
)
def test_bccd(real, split, images, objects, broken):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        data = open_data(real / "bccd", split)
    assert data.labels == ("__background__", "Platelets", "RBC", "WBC")
    assert (len(data), sum(len(data[index].boxes) for index in range(images))) == (images, objects)
    assert dict(data.dropped) == ({"zero area": 1} if broken else {})
    assert [f"boxes 1 of zero area dropped (first: {broken})" in str(one.message) for one in caught] == [True] * bool(
        broken
    )
    sizes = {data[index].size for index in range(images)}
    assert sizes == {(480, 640)}
    assert data[0].image().shape == (480, 640, 3)
    assert not any(data[index].ignore.any() for index in range(images))


@pytest.mark.parametrize(("split", "images", "objects", "crowds"), [("train", 208, 1678, 18), ("val", 128, 987, 10)])
def test_coco_mini(real, split, images, objects, crowds):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = open_data(real / "coco_mini", split)
    samples = [data[index] for index in range(len(data))]
    assert (len(samples), sum(len(sample.boxes) for sample in samples)) == (images, objects)
    assert sum(sample.ignore.sum() for sample in samples) == crowds
    assert (len(data.labels), data.labels[1], data.labels[-1], data.has_masks) == (81, "person", "toothbrush", True)
    assert samples[3].image().shape[:2] == samples[3].size


def test_masks_of_coco_mini_are_pycocotools_own(real):
    data = open_data(real / "coco_mini", "val")
    coco = COCO(real / "coco_mini" / "annotations" / "instances_val2017.json")
    for index in range(0, len(data), 10):
        sample = data[index]
        annotations = coco.imgToAnns[sample.image_id]
        assert len(annotations) == len(sample.masks)
        for rle, annotation in zip(sample.masks, annotations, strict=True):
            np.testing.assert_array_equal(coco_mask.decode(rle), coco.annToMask(annotation))


def test_ap_of_coco_mini_is_that_of_its_file(real):
    """Moved objects as predictions, through our reading and through pycocotools' own of the file."""
    data = open_data(real / "coco_mini", "val")
    truths = [truth_of(data[index]) for index in range(len(data))]
    rng = np.random.default_rng(0)
    predictions = [
        {
            "image_id": truth.image_id,
            "category_id": int(label),
            "bbox": [x1 + rng.normal(0, 0.1) * (x2 - x1), y1, x2 - x1, y2 - y1],
            "score": rng.random(),
        }
        for truth in truths
        for (x1, y1, x2, y2), label in zip(truth.boxes.astype(float).tolist(), truth.labels, strict=True)
    ]
    found = Matches(truths, predictions, data.labels).summary()[0]
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(real / "coco_mini" / "annotations" / "instances_val2017.json")
        ids = {record["name"]: record["id"] for record in coco.dataset["categories"]}
        results = [{**one, "category_id": ids[data.labels[one["category_id"]]]} for one in predictions]
        reference = COCOeval(coco, coco.loadRes(results), "bbox")
        reference.evaluate()
        reference.accumulate()
        reference.summarize()
    names = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large", "AR1", "AR10", "AR100")
    # Our boxes are float32, the file's are decimal: an IoU may fall on the other side of a threshold.
    np.testing.assert_allclose([found[name] for name in names], reference.stats[:9], atol=1e-3)
    assert 0.3 < found["AP"] < 0.9
