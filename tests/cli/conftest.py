"""A small detector that has learnt something, trained once for all tests of the command line."""

from pathlib import Path

import pytest

from regionrt.train.options import TrainOptions
from regionrt.train.trainer import train

DATA = "shapes:train=96,val=4,test=12,size=128x128"


@pytest.fixture(scope="session")
def data() -> str:
    """The data that `trained` was trained on."""
    return DATA


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """best.pt of a Faster R-CNN for 128×128 shapes: weak, but far better than chance."""
    run = tmp_path_factory.mktemp("trained") / "run"
    config = {
        "backbone": "squeezenet1_1", "size": [128, 128], "channels": 64, "representation": 128, "rois_per_image": 64,
        "train_proposals": 200, "proposals": 100, "detections": 20, "anchor_sizes": [24, 48, 80],
    }  # fmt: skip
    options = TrainOptions(epochs=12, batch=8, lr=0.02, evaluate_every=0)
    return train("faster_rcnn", DATA, run, options, config=config)
