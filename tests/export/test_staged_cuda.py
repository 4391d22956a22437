"""The staged form on a GPU: whole detectors on the fake one, with the real kernels, against eager."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from staged_on_gpu import Machine
from tiny_detectors import LABELS, NOTHING, photos

from regionrt.export import ExportOptions, export_bundle
from regionrt.train.models.region import eager

IMAGES = [*photos([(120, 70), (64, 96), (90, 90)], seed=5), NOTHING]


@pytest.fixture(scope="module", params=["fixed", "dynamic"])
def staged(request, tmp_path_factory):
    """A bundle of the form staged alone: fully connected layers take RoI features channels last."""
    exported = request.getfixturevalue(request.param)
    folder = tmp_path_factory.mktemp(request.param)
    options = ExportOptions(size=exported.options.size, dynamic=exported.options.dynamic, ops=("staged",))
    export_bundle(exported.module, folder / "bundle", options, labels=LABELS)
    return exported, folder / "bundle"


def placed(exported, photos):
    images, sizes, _ = exported.canvas.place([photo for _, photo in photos])
    return images, sizes


def wanted_of(exported, images, sizes):
    values = eager(exported.module, torch.from_numpy(images), torch.from_numpy(sizes))
    return {name: value.numpy() for name, value in values.items()}


def check(found, wanted) -> None:
    assert found.keys() == {"num_detections", "boxes", "scores", "labels", "overflow", *({"masks"} & wanted.keys())}
    np.testing.assert_array_equal(found["num_detections"], wanted["num_detections"])
    np.testing.assert_array_equal(found["labels"], wanted["labels"])
    for name, atol in (("boxes", 1e-3), ("scores", 1e-5), ("masks", 1e-5)):
        if name in found:
            assert (found[name].shape, found[name].dtype) == (wanted[name].shape, wanted[name].dtype)
            np.testing.assert_allclose(found[name], wanted[name], atol=atol, rtol=0)


@pytest.mark.parametrize("flavour", ["tensorrt-rtx", "tensorrt"])
def test_detections_are_eagers(staged, tmp_path, flavour):
    """Batches of one and three, among them a photo with nothing in it; from the second run on from the graph."""
    exported, bundle = staged
    machine = Machine.of(bundle, tmp_path, flavour)
    runner = machine.runner()
    for few in (IMAGES[:1], IMAGES[1:4], IMAGES[3:], IMAGES[1:2], IMAGES[:3], IMAGES[:3]):
        images, sizes = placed(exported, few)
        check(runner.run(images, sizes), wanted_of(exported, images, sizes))
    assert runner.why_no_graph is None
    assert machine.driver.counts["cuGraphLaunch"] >= 2
    runner.close()
    driver = machine.driver
    assert driver.memory == driver.pinned == driver.streams == driver.graphs == driver.modules == {}
