"""R-CNN's net: the pooling behind each backbone is the published net's own."""

from __future__ import annotations

import pytest
import torch
from tiny_proposal_nets import LABELS
from torchvision.models import vgg

from regionrt.train.models import ModelError, build_model


@pytest.mark.parametrize(
    ("backbone", "crop", "inputs"), [("alexnet", 227, 256 * 6**2), ("squeezenet1_1", 112, 512 * 3**2)]
)
def test_alexnets_pooling_is_behind_it_and_the_small_nets(backbone, crop, inputs):
    module = build_model("rcnn", {"backbone": backbone, "crop": crop, "representation": 8}, LABELS)
    assert module.head.fc6.in_features == inputs


def test_vgg16_is_whole_with_its_fifth_pooling():
    """Against torchvision's layers of configuration D (arXiv:1409.1556), of which fc6 reads 7 × 7 cells."""
    module = build_model("rcnn", {"backbone": "vgg16", "crop": 224, "representation": 8}, LABELS)
    assert module.head.fc6.in_features == 512 * 7**2
    whole = vgg.make_layers(vgg.cfgs["D"])
    whole.load_state_dict(module.backbone.body.state_dict())
    crops = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        torch.testing.assert_close(module.cells(crops), whole(crops))


def test_a_crop_that_leaves_the_pooling_nothing():
    with pytest.raises(ModelError, match="crop 32: leaves a map of 2 cells a side, give 48 px or more"):
        build_model("rcnn", {"crop": 32, "context": 2, "representation": 8}, LABELS)
