"""Real photos of many kinds (../shared/data, where present): decoded as Pillow does, placed as torchvision does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from regionrt.runtime.image import Canvas, read_image, resize_bilinear

pytestmark = pytest.mark.real
DATA = Path(__file__).resolve().parents[3] / "shared" / "data" / "coco_mini"
torch = pytest.importorskip("torch")
torch.set_num_threads(1)  # small tensors: threads only cost
transform = pytest.importorskip("torchvision.models.detection.transform")


def photos(limit: int) -> list[Path]:
    found = sorted(path for path in DATA.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    if not found:
        pytest.skip("no ../shared/data/coco_mini beside the checkout")
    return found[:: max(1, len(found) // limit)]


def test_decoding_is_pillows() -> None:
    for path in photos(100):
        with Image.open(path) as image:
            expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
        np.testing.assert_array_equal(read_image(path), expected, err_msg=str(path))


def test_the_canvas_is_torchvisions() -> None:
    """Sizes to the pixel, pixels to one level and in 99.9 % equal, on landscape and portrait photos."""
    resizer = transform.GeneralizedRCNNTransform(480, 640, [0.0], [1.0]).eval()
    canvas = Canvas(640, 640, 480, 640)
    portraits = 0
    for path in photos(20):
        image = read_image(path)
        values = torch.from_numpy(image).permute(2, 0, 1).float().contiguous()
        expected = resizer.resize(values)[0].round().byte().permute(1, 2, 0).numpy()
        size = canvas.resized_size(*image.shape[:2])
        assert size == expected.shape[:2], path
        difference = np.abs(resize_bilinear(image, *size).astype(int) - expected)
        assert difference.max() <= 1
        assert (difference > 0).mean() <= 1e-3, path
        portraits += size[0] > size[1]
    assert portraits >= 2
