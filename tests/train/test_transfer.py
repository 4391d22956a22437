"""The recipe: what is frozen, which rate the others have, how rates go; for every kind of model."""

from __future__ import annotations

import pytest
import torch

from regionrt.train.checkpoint import read_checkpoint
from regionrt.train.initial import frozen_modules
from regionrt.train.models import build_model
from regionrt.train.options import TrainError, TrainOptions
from regionrt.train.trainer import train
from regionrt.train.transfer import groups_of, optimizer_for, schedule_for

LABELS = ("__background__", "disc", "square")
MODELS = {
    "faster_rcnn": {"size": [64, 64], "representation": 16},
    "fcn8s": {"size": [64, 64]},
    "unet": {"size": [32, 32], "width": 4, "depth": 2},
    "segnet": {"size": [32, 32], "width": 8, "depth": 2},
    "localiser": {"size": [64, 64]},
}


@pytest.mark.parametrize("name", MODELS)
def test_groups_hold_every_parameter_once(name: str) -> None:
    module = build_model(name, MODELS[name], LABELS)
    frozen_modules(module, ("backbone.body.0" if hasattr(module.backbone, "body") else "backbone.levels.0",))
    groups = groups_of(module, TrainOptions(lr=0.01, backbone_lr=0.001, weight_decay=0.1))
    held = [id(p) for group in groups for p in group.parameters]
    assert len(held) == len(set(held))
    assert set(held) == {id(p) for p in module.parameters()}
    names = {id(p): n for n, p in module.named_parameters()}
    for group in groups:
        for p in group.parameters:
            assert names[id(p)].startswith("backbone.") == group.name.startswith("backbone")
            assert p.requires_grad != group.frozen
            if not group.frozen:
                assert group.lr == (0.001 if group.name.startswith("backbone") else 0.01)
                assert group.weight_decay == (0.1 if p.ndim > 1 else 0)
    rows = [group.row() for group in groups]
    assert sum(row["parameters"] for row in rows) == sum(p.numel() for p in module.parameters())
    assert [row["frozen"] for row in rows].count(True) == 1


@pytest.mark.parametrize("schedule", ["one-cycle", "poly"])
def test_rates_rise_fall_and_keep_their_ratio(schedule: str) -> None:
    module = build_model("unet", MODELS["unet"], LABELS)
    options = TrainOptions(lr=0.01, backbone_lr=0.002, schedule=schedule, warmup=0.2, optimizer="adamw")
    optimizer = optimizer_for(groups_of(module, options), options)
    steps = schedule_for(optimizer, options, 50)
    rates = []
    for _ in range(50):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        steps.step()
    rates = torch.tensor(rates)
    assert rates.max() == pytest.approx(0.01, rel=0.1)
    assert rates[:, 2].argmax() in range(8, 12)
    assert rates[-1].max() < 0.001
    torch.testing.assert_close(rates[:, 0] * 5, rates[:, 2], rtol=1e-5, atol=1e-7)


def test_a_constant_rate_has_no_schedule() -> None:
    module = build_model("unet", MODELS["unet"], LABELS)
    options = TrainOptions(schedule="constant")
    assert schedule_for(optimizer_for(groups_of(module, options), options), options, 10) is None


@pytest.mark.parametrize(
    ("options", "expected"), [({"backbone_lr": 0.0}, "backbone_lr 0.0"), ({"schedule": "step"}, "one-cycle")]
)
def test_options_that_cannot_be(options: dict, expected: str) -> None:
    with pytest.raises(TrainError, match=expected):
        TrainOptions(**options)


@pytest.mark.parametrize(("name", "metric"), [("segnet", "mIoU"), ("localiser", "localisation")])
def test_a_feature_extractor_and_what_a_run_tells(name: str, metric: str, tmp_path) -> None:
    """All of the backbone frozen: its weights and statistics stay, all others learn; a table says so."""
    told = []
    options = TrainOptions(
        epochs=1, batch=2, accelerator="cpu", devices=1, freeze=("backbone",), balance=name == "segnet", seed=3
    )
    best = train(
        name, "shapes:train=4,val=2,size=64x64", tmp_path / "run", options, config=MODELS[name], report=told.append
    )
    (groups,) = (row["groups"] for row in told if "groups" in row)
    assert [g["group"] for g in groups if g["frozen"]] == ["backbone: frozen"]
    assert not [g for g in groups if g["group"].startswith("backbone") and not g["frozen"]]
    (row,) = (row for row in told if "epoch" in row)
    assert metric in row
    trained = read_checkpoint(best).state_dict
    torch.manual_seed(3)
    before = build_model(name, read_checkpoint(best).config, read_checkpoint(best).labels).state_dict()
    changed = {key.split(".")[0] for key in before if not torch.equal(before[key], trained[key])}
    assert "backbone" not in changed
    assert changed


def test_balance_is_for_pixels(tmp_path) -> None:
    options = TrainOptions(epochs=1, accelerator="cpu", devices=1, balance=True)
    with pytest.raises(TrainError, match="balance weighs the classes of pixels: localiser is for localisation"):
        train("localiser", "shapes:train=2,val=1,size=64x64", tmp_path / "run", options, config=MODELS["localiser"])
    assert not (tmp_path / "run").exists()
