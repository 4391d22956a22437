"""A detector and data that it knows perfectly, without any training: the data is what the detector finds."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from regionrt.cli import run
from regionrt.train.checkpoint import Checkpoint, write_checkpoint
from regionrt.train.data import write_images
from regionrt.train.models import build_model
from regionrt.train.torch_runner import torch_predictor

LABELS = ("__background__", "bolt", "nut", "washer")
CONFIG = {
    "backbone": "squeezenet1_1", "size": [128, 128], "channels": 64, "representation": 64, "proposals": 60,
    "detections": 8, "anchor_sizes": [24, 48, 80],
}  # fmt: skip
PHOTOS = 12


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Faster R-CNN with random weights, spread so that scores are far apart and rounding cannot reorder them."""
    torch.manual_seed(0)
    module = build_model("faster_rcnn", CONFIG, LABELS)
    with torch.no_grad():
        for name, factor in (("rpn.head.cls_logits", 100), ("rpn.head.bbox_pred", 10)):
            module.get_submodule(name).weight.mul_(factor)
        for name, factor in (("cls_score", 20), ("bbox_pred", 50)):
            module.get_submodule(f"roi_heads.box_predictor.{name}").weight.mul_(factor)
    path = tmp_path_factory.mktemp("checkpoint") / "random.pt"
    write_checkpoint(path, Checkpoint("faster_rcnn", CONFIG, LABELS, module.state_dict()))
    return path


@pytest.fixture(scope="session")
def native_bundle(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`checkpoint` in the native form alone. Tests that write into it copy it first."""
    bundle = tmp_path_factory.mktemp("native") / "bundle"
    assert run(["export", str(checkpoint), "--out", str(bundle), "--ops", "native"]) == 0
    return bundle


@pytest.fixture(scope="session")
def data(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A COCO folder whose objects, in the split `test`, are the detections of `checkpoint`: its AP is 100."""
    folder = tmp_path_factory.mktemp("data")
    photos = write_images(folder / "test", PHOTOS, spec=f"shapes:test={PHOTOS},size=128x128")
    images, annotations = [], []
    with torch_predictor(checkpoint) as predict:
        for number, photo in enumerate(photos, start=1):
            width, height = Image.open(photo).size
            images.append({"id": number, "file_name": photo.name, "width": width, "height": height})
            for row in predict(photo).to_coco(number):
                _, _, box_width, box_height = row["bbox"]
                annotations.append(
                    {"id": len(annotations) + 1, "image_id": number, "category_id": row["category_id"],
                     "bbox": row["bbox"], "area": box_width * box_height, "iscrowd": 0}
                )  # fmt: skip
    assert len(annotations) > 2 * PHOTOS, "the detector finds too little to be judged by"
    categories = [{"id": i, "name": name} for i, name in enumerate(LABELS) if i]
    (folder / "annotations").mkdir()
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations" / "instances_test.json").write_text(json.dumps(content))
    return str(folder)
