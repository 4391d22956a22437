"""Predictors whose answers and times are chosen by the test, and data whose objects they know."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from regionrt.runtime.image import Canvas
from regionrt.runtime.predictor import Predictor
from regionrt.train.data import Sample

LABELS = ("__background__", "disc", "square")
CANVAS = Canvas(64, 64, min_size=64, max_size=64)
Found = list[tuple[float, float, float, float, float, int]]  # x0, y0, x1, y1, score, label


class FakeClock:
    """Stands in for `time.perf_counter`: time passes only when a fake works."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class FakeRunner:
    """Answers by the value of the canvas's first pixel, which names the photo; takes seconds of the fake clock."""

    name = "fake"

    def __init__(
        self,
        answers: Callable[[int], Found] | None = None,
        clock: FakeClock | None = None,
        seconds: Callable[[int], float] = lambda call: 0.0,
    ) -> None:
        self.answers = answers or (lambda photo: [])
        self.clock = clock
        self.seconds = seconds
        self.seen: list[list[int]] = []

    def run(self, images: np.ndarray, image_sizes: np.ndarray) -> dict[str, np.ndarray]:
        photos = [int(image[0, 0, 0]) for image in images]
        if self.clock is not None:
            self.clock.now += self.seconds(len(self.seen))
        self.seen.append(photos)
        slots, n = 8, len(photos)
        outputs = {
            "num_detections": np.zeros(n, np.int32),
            "boxes": np.zeros((n, slots, 4), np.float32),
            "scores": np.full((n, slots), -1, np.float32),
            "labels": np.full((n, slots), -1, np.int32),
            "overflow": np.zeros(n, np.int32),
        }
        for i, photo in enumerate(photos):
            for j, (x0, y0, x1, y1, score, label) in enumerate(self.answers(photo)):
                outputs["boxes"][i, j] = (x0, y0, x1, y1)
                outputs["scores"][i, j] = score
                outputs["labels"][i, j] = label
                outputs["num_detections"][i] = j + 1
        return outputs

    def close(self) -> None:
        self.answers = lambda photo: []


def fake_predictor(runner: FakeRunner, max_batch: int = 4) -> Predictor:
    return Predictor(runner, CANVAS, LABELS, {"score": 0.05}, max_batch=max_batch)


def photos(count: int) -> list[np.ndarray]:
    """Grey photos of the canvas's size; photo i has the value i."""
    return [np.full((64, 64, 3), i, np.uint8) for i in range(count)]


class FakeData:
    """`count` photos; photo i holds the objects `objects(i)`: (x0, y0, x1, y1, label)."""

    labels = LABELS
    split = "test"
    has_masks = False

    def __init__(self, count: int, objects: Callable[[int], Sequence[tuple[float, float, float, float, int]]]) -> None:
        self.count = count
        self.objects = objects
        self.dropped: Counter[str] = Counter()

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        rows = list(self.objects(index))
        boxes = np.array([row[:4] for row in rows], np.float32).reshape(-1, 4)
        return Sample(
            image_id=index,
            name=f"photo {index}",
            boxes=boxes,
            labels=np.array([row[4] for row in rows], np.int64),
            masks=None,
            ignore=np.zeros(len(rows), bool),
            areas=np.prod(boxes[:, 2:] - boxes[:, :2], axis=1).astype(np.float32),
            size=(64, 64),
            pixels=photos(index + 1)[index],
        )
