"""Options of models as users type them: wrong types are refused by name, before anything is built."""

import json

import pytest

from regionrt.train.models import MODELS, ModelError, build_model

LABELS = ("__background__", "bolt", "nut")
WRONG = {
    "fast_rcnn": [
        "representation=512.5", "bins=7.5", "scales=1.0", "proposals=10.5", 'detections="a"', "size=[384.5,512]",
        "score=NaN", "enlarge=1", "channels=true", "search=3", 'background_iou=["a",0.5]', "backbone=7", "size=384",
    ],
    "sppnet": ["pyramid=[6.5]", "pyramid=6"],
    "rcnn": ["crop=227.5", "context=-1"],
    "mask_rcnn": ["mask_layers=[32.5]", "anchor_sizes=32.5", "std=[0.2,0.2,Infinity]", "svd=[1]", "channels=64.0"],
    "overfeat": ["windows_per_image=64.0", "fine=1", "classifier=[64.5,64]", "windows=[null]"],
    "fcn8s": ["fc=256.0", "dropout=null"],
    "localiser": ["representation=256.0", "box_weight=[10]"],
}  # fmt: skip


@pytest.mark.parametrize(("name", "given"), [(name, given) for name, of in WRONG.items() for given in of])
def test_wrong_types(name: str, given: str) -> None:
    option, _, value = given.partition("=")
    with pytest.raises(ModelError, match=f"^{option} .*: give "):
        MODELS[name].full_config({option: json.loads(value)})


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("fast_rcnn", {"score": 0, "box_weight": 0, "dropout": 0, "scales": [1], "channels": None}),
        ("rcnn", {"context": 0}),
        ("overfeat", {"merge": 0, "windows": None, "background_iou": 0}),
        ("mask_rcnn", {"anchor_sizes": [[32], [64, 96]], "mean": [0, 0, 0], "std": [1, 1, 1]}),
        ("unet", {"dropout": 0, "enlarge": True}),
    ],
)
def test_whole_numbers_are_numbers_and_null_is_the_default(name: str, given: dict) -> None:
    full = MODELS[name].full_config(given)
    assert {option: full.get(option) for option in given} == given
    assert MODELS[name].full_config(json.loads(json.dumps(full))) == full


def test_the_defaults_of_every_model_fit() -> None:
    for model in MODELS.values():
        if model.config is not None:
            assert model.full_config({}) == model.config.to_json()


def test_rcnn_without_context_is_built() -> None:
    small = {"context": 0, "crop": 64, "size": [64, 64], "representation": 8}
    assert build_model("rcnn", small, LABELS).config.context == 0
