"""What a search can be told: the backend, the budget of accuracy and of time, what is measured on what."""

from __future__ import annotations

from dataclasses import dataclass

from regionrt.export.calibration.ranges import METHODS

from ..errors import BenchError

BACKENDS = ("onnxruntime", "openvino")
"""What a search can measure with: it runs every artefact that it tries, on the machine that it runs on."""
_LEAST = {
    "seconds": 0, "photos": 1, "multiple": 1, "points": 1, "confirm": 0, "calibration_images": 5, "seed": 0,
    "verify_images": 1, "resamples": 500,
}  # fmt: skip


@dataclass(frozen=True)
class SearchOptions:
    """BenchError for what makes no sense.

    max_drop: points of the task's metrics that may be lost against the checkpoint in eager PyTorch. margin: so many of
    them are kept back while searching, for what the splits differ by. split: what is searched on; judged_on: what the
    found artefact is judged on; calibrated_on: photos for data-aware SVD and int8. calibration_images: how many of
    them. max_images: of the other two splits each (None: all).
    seconds: of each comparison with the base, requests in turn. threads: of every artefact, None: one per usable core.
    layers, spatial: which layers may be split, as of `CompressOptions`. multiple: ranks are multiples of it.
    points: how many ranks of each layer are measured. confirm: how many combinations at most are measured, after what
    is measured alone. minutes: no further trial is begun after so long (None: no limit).
    precisions, sizes, proposals: what `tune` tries of them; None: what suits backend and net, (): only as it is.
    """

    backend: str
    max_drop: float
    margin: float = 0.0
    split: str = "val"
    judged_on: str = "test"
    calibrated_on: str = "train"
    classes: tuple[str, ...] | None = None
    max_images: int | None = None
    calibration_images: int = 32
    calibration: str = METHODS[0]
    seconds: float = 5.0
    photos: int = 8
    threads: int | None = None
    layers: tuple[str, ...] = ()
    spatial: bool = False
    multiple: int = 16
    points: int = 4
    confirm: int = 8
    minutes: float | None = None
    precisions: tuple[str, ...] | None = None
    sizes: tuple[tuple[int, int], ...] | None = None
    proposals: tuple[int, ...] | None = None
    verify_images: int = 4
    resamples: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        if self.backend not in BACKENDS:
            raise BenchError(
                f"--backend {self.backend}: expected {' or '.join(BACKENDS)}, for a search runs what it tries here; "
                "engines are built by `regionrt deploy` from the checkpoint that it finds"
            )
        if self.calibration not in METHODS:
            raise BenchError(f"calibration {self.calibration!r}: expected one of {', '.join(METHODS)}")
        if not 0 <= self.max_drop <= 100:
            raise BenchError(f"--max-drop: points from 0 to 100 expected, {self.max_drop} given")
        if not 0 <= self.margin <= self.max_drop:
            raise BenchError(f"--margin: points from 0 to --max-drop ({self.max_drop:g}) expected, {self.margin} given")
        for name, value in _LEAST.items():
            if not getattr(self, name) >= value:
                raise BenchError(f"{name.replace('_', ' ')}: at least {value} expected, {getattr(self, name)} given")
        for name in ("minutes", "max_images", "threads"):
            if (value := getattr(self, name)) is not None and not value > 0:
                raise BenchError(f"{name.replace('_', ' ')}: more than 0 expected, {value} given")
        if any(number < 1 for number in self.proposals or ()):
            raise BenchError(f"--proposals: numbers from 1 on expected, found {list(self.proposals or ())}")

    @property
    def searched_drop(self) -> float:
        """Points that may be lost on the split that is searched on."""
        return self.max_drop - self.margin
