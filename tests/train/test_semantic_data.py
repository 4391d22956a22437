"""Label maps from CamVid-style and Pascal-style folders and from shapes: what is read, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from regionrt.train.data import VOID, DataError, open_data, open_semantic
from regionrt.train.data.camvid import CAMVID
from regionrt.train.data.semantic import median_frequency_weights
from regionrt.train.data.shapes import ShapesData

SIZE = (7, 9)  # height, width: odd, so that nothing fits by luck


def write_pair(
    root: Path, image: str, mask: str, ids: np.ndarray, size: tuple[int, int] = SIZE, mode: str = "L"
) -> None:
    for name in (image, mask):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*size, 3), 90, np.uint8)).save(root / image)
    picture = Image.fromarray(ids.astype(np.uint8))
    if mode == "P":
        picture.putpalette([i % 256 for i in range(768)], "RGB")
    (picture.convert("RGB") if mode == "RGB" else picture).save(root / mask)


def ids_with(*values: int) -> np.ndarray:
    ids = np.zeros(SIZE, np.uint8)
    ids.ravel()[: len(values)] = values
    return ids


@pytest.fixture
def camvid(tmp_path: Path) -> Path:
    """Two splits in the layout of folders, with CamVid's ids."""
    write_pair(tmp_path, "train/a.jpg", "trainannot/a.png", ids_with(3, 11, 8, 255))
    write_pair(tmp_path, "train/b.jpg", "trainannot/b.png", ids_with(10))
    write_pair(tmp_path, "test/c.png", "testannot/c.png", ids_with(1))
    return tmp_path


def test_folders_of_images_and_masks(camvid: Path) -> None:
    data = open_semantic(camvid, "train")
    assert data.labels == CAMVID[:11]
    assert [data[i].name for i in range(len(data))] == ["a", "b"]
    labels = data[0].label_map()
    assert labels.shape == SIZE
    assert labels.ravel()[:5].tolist() == [3, VOID, 8, VOID, 0]  # CamVid's own void is 11
    assert data[0].image().shape == (*SIZE, 3)
    assert len(open_semantic(camvid, "test")) == 1


def test_a_list_of_pairs_and_names_of_its_own(tmp_path: Path) -> None:
    write_pair(tmp_path, "photos/x.png", "masks/y.png", ids_with(2, 1, 3))
    (tmp_path / "val.txt").write_text("photos/x.png masks/y.png\n\n")
    (tmp_path / "labels.txt").write_text("road\nvoid\ncar\ntree\n")
    data = open_semantic(tmp_path, "val")
    assert data.labels == ("road", "car", "tree")
    assert data[0].label_map().ravel()[:4].tolist() == [1, VOID, 2, 0]


def test_pascal_masks_are_palette_indices(tmp_path: Path) -> None:
    write_pair(tmp_path, "JPEGImages/p.jpg", "SegmentationClass/p.png", ids_with(15, 255, 20), mode="P")
    (tmp_path / "ImageSets/Segmentation").mkdir(parents=True)
    (tmp_path / "ImageSets/Segmentation/train.txt").write_text("p\n")
    data = open_semantic(tmp_path, "train")
    assert (len(data.labels), data.labels[0], data.labels[15]) == (21, "background", "person")
    assert data[0].label_map().ravel()[:4].tolist() == [15, VOID, 20, 0]
    with pytest.raises(DataError, match=r"expected ImageSets/Segmentation/val.txt, found the splits train"):
        open_semantic(tmp_path, "val")


def test_a_checkpoints_labels_decide(camvid: Path) -> None:
    order = ("kerb", *reversed(CAMVID[:11]))
    data = open_semantic(camvid, "train", order)
    assert data.labels == order
    assert data[0].label_map()[0, 0] == order.index("road")
    with pytest.raises(DataError, match=r"classes sky, .* are unknown to the checkpoint, which has road, car"):
        open_semantic(camvid, "train", ("road", "car"))


def test_shapes_are_what_their_masks_say() -> None:
    spec = "shapes:train=6,size=65x97"
    maps, objects = open_semantic(spec, "train"), ShapesData(spec, "train")
    assert maps.labels == objects.labels
    seen = 0
    for index in range(6):
        sample, labels = objects[index], maps[index].label_map()
        assert np.array_equal(maps[index].image(), sample.image())
        for label, mask in zip(sample.labels, sample.masks, strict=True):
            assert (labels[coco_mask.decode(mask).astype(bool)] == label).all()
        seen += int((labels > 0).sum())
        assert (labels > 0).sum() == sum(int(coco_mask.area(mask)) for mask in sample.masks)
    assert seen


def test_median_frequency_by_hand(tmp_path: Path) -> None:
    """freq = pixels of the class / pixels of the images that have it, void left out of both."""
    (tmp_path / "labels.txt").write_text("a\nb\nc\n")
    write_pair(tmp_path, "train/0.png", "trainannot/0.png", np.array([[0, 0, 1, 255]]), (1, 4))
    write_pair(tmp_path, "train/1.png", "trainannot/1.png", np.array([[0, 0, 0, 0]]), (1, 4))
    weights = median_frequency_weights(open_semantic(tmp_path, "train"))
    frequencies = (6 / 7, 1 / 3)
    middle = sum(frequencies) / 2
    np.testing.assert_allclose(weights, [middle / frequencies[0], middle / frequencies[1], 0], rtol=1e-6)


def test_a_mask_of_another_size(camvid: Path) -> None:
    write_pair(camvid, "train/b.jpg", "trainannot/b.png", np.zeros((7, 8)))
    with pytest.raises(DataError, match=r"trainannot/b.png: expected a mask of the image's size 9×7, found 8×7"):
        open_semantic(camvid, "train")


def test_ids_beyond_the_classes(camvid: Path) -> None:
    write_pair(camvid, "train/b.jpg", "trainannot/b.png", ids_with(10, 14, 200))
    data = open_semantic(camvid, "train")
    with pytest.raises(
        DataError, match=r"b.png: expected the ids of 11 classes \(0…10\) or of void, found 14, 200: list"
    ):
        data[1].label_map()


def test_all_void_is_a_label_map_too(camvid: Path) -> None:
    write_pair(camvid, "train/a.jpg", "trainannot/a.png", np.full(SIZE, 11))
    write_pair(camvid, "train/b.jpg", "trainannot/b.png", np.full(SIZE, 255))
    data = open_semantic(camvid, "train")
    assert all((data[i].label_map() == VOID).all() for i in range(2))
    with pytest.raises(DataError, match="expected pixels of at least one class, found only void"):
        median_frequency_weights(data)


def test_colour_masks_are_refused(camvid: Path) -> None:
    write_pair(camvid, "train/b.jpg", "trainannot/b.png", ids_with(1), mode="RGB")
    with pytest.raises(
        DataError, match=r"b.png: expected a mask of one 8-bit channel with class ids, found RGB pixels"
    ):
        open_semantic(camvid, "train")[1].label_map()


def test_broken_and_missing_files(camvid: Path) -> None:
    mask = camvid / "trainannot/b.png"
    noise = np.random.default_rng(0).integers(0, 11, (70, 90))
    write_pair(camvid, "train/b.jpg", "trainannot/b.png", noise, noise.shape)
    mask.write_bytes(mask.read_bytes()[:300])
    with pytest.raises(DataError, match=r"b.png: cannot be read as a mask, it is truncated"):
        open_semantic(camvid, "train")[1].label_map()
    mask.write_bytes(b"no image at all")
    with pytest.raises(DataError, match=r"b.png: cannot be read as an annotation"):
        open_semantic(camvid, "train")
    (camvid / "trainannot/b.png").unlink()
    with pytest.raises(DataError, match=r"expected a mask for each image of train/, 1 are missing: b.png"):
        open_semantic(camvid, "train")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("only-one.png", r"line 2: expected \"image mask\""),
        ("../x.png masks/y.png", "leaves it"),
        ("/etc/passwd masks/y.png", "leaves it"),
        ("train/a.jpg trainannot/a.png", "is listed twice"),
        ("train/none.jpg trainannot/a.png", "found no such file"),
    ],
)
def test_lists_that_are_wrong(camvid: Path, line: str, expected: str) -> None:
    (camvid / "train.txt").write_text(f"train/a.jpg trainannot/a.png\n{line}\n")
    with pytest.raises(DataError, match=expected):
        open_semantic(camvid, "train")


@pytest.mark.parametrize(
    ("names", "expected"), [("a\n\nb\n", "no empty lines"), ("a\na\n", "different class names"), ("void\n", "1 to 255")]
)
def test_class_names_that_are_wrong(camvid: Path, names: str, expected: str) -> None:
    (camvid / "labels.txt").write_text(names)
    with pytest.raises(DataError, match=expected):
        open_semantic(camvid, "train")


def test_folders_that_hold_something_else(camvid: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no split 'val': found train, test"):
        open_semantic(camvid, "val")
    with pytest.raises(DataError, match="they are for segmentation, such as `regionrt train unet`"):
        open_data(camvid, "train")
    with pytest.raises(DataError, match="it does not exist; looked for CamVid-style pairs"):
        open_semantic(tmp_path / "nowhere", "train")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no known layout of label maps: found an empty folder"):
        open_semantic(tmp_path / "empty", "train")
    with pytest.raises(DataError, match="classes cannot be chosen of label maps"):
        open_semantic(camvid, "train", classes=("road",))
