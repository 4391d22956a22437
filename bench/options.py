"""What a bench can be told: how long to measure, on what, and what to leave out."""

from __future__ import annotations

import math
from dataclasses import dataclass

from regionrt.runtime.errors import OptionError


@dataclass(frozen=True)
class BenchOptions:
    """How to measure. `OptionError` for what makes no sense.

    split: of the data. classes: of the data these only, None: all. threads: CPU threads of every candidate, None: one
    per usable core.
    seconds, least_rounds: the interleaved run lasts so long, and at least so many rounds (a request of each candidate).
    batch: also measure throughput in batches of this size (1: do not). photos: how many different photos are timed.
    images: files to time on where no data is given. max_images: of the split, for accuracy (None: all).
    resamples, seed: of the bootstrap. compile_seconds: most that each torch.compile may take (0: do not try).
    best_torch, torchvision: measure PyTorch at its best, and torchvision's own forward.
    fresh: load time and memory, in a process for each candidate. pictures: how many sample photos.
    score: detections above it are drawn and counted, and their masks pasted.
    max_drop: the accuracy contract in points, shown and used to choose the headline.
    device: PyTorch's, "cpu" or "cuda".
    """

    split: str = "test"
    classes: tuple[str, ...] | None = None
    threads: int | None = None
    seconds: float = 30.0
    least_rounds: int = 20
    batch: int = 4
    photos: int = 16
    images: tuple[str, ...] = ()
    max_images: int | None = None
    resamples: int = 1000
    seed: int = 0
    compile_seconds: float = 120.0
    best_torch: bool = True
    torchvision: bool = True
    fresh: bool = True
    pictures: int = 4
    score: float = 0.5
    max_drop: float | None = None
    device: str = "cpu"

    def __post_init__(self) -> None:
        least = {
            "least_rounds": 1,
            "batch": 1,
            "photos": 1,
            "seconds": 0,
            "compile_seconds": 0,
            "pictures": 0,
            "seed": 0,
        }
        for name, value in least.items():
            if not value <= getattr(self, name) < math.inf:
                raise OptionError(f"{name}: at least {value} expected, {getattr(self, name)} given")
        for name in ("threads", "max_images"):
            if (given := getattr(self, name)) is not None and given < 1:
                raise OptionError(f"{name}: at least 1 expected, {given} given")
        if self.resamples < 500:
            raise OptionError(f"resamples: at least 500 expected, {self.resamples} given")
        if not 0 <= self.score <= 1:
            raise OptionError(f"score: 0…1 expected, {self.score} given")
        if self.max_drop is not None and not self.max_drop >= 0:
            raise OptionError(f"max_drop: points ≥ 0 expected, {self.max_drop} given")
