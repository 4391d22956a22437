"""What a verification found: tolerances by precision, the worst of each stage, agreement end to end."""

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Tolerance:
    """How far an artefact of one precision may lie from PyTorch eager."""

    stage: float  # largest |error| of a stage's values, as a part of max |reference|
    iou: float  # a box is the same if its label is, its IoU is at least this …
    score: float  # … and its score differs by at most this
    mask_iou: float  # and a mask, thresholded at 0.5
    matched: float  # share of the boxes of each side that must have a partner on the other


TOLERANCES = {
    # Sums in another order; the share allows for boxes that lie on an NMS threshold to within rounding.
    "fp32": Tolerance(stage=1e-4, iou=0.99, score=1e-4, mask_iou=0.99, matched=0.995),
    # 11 bits through some fifty layers. What fp16 costs is judged by AP; this finds what is broken.
    "fp16": Tolerance(stage=2e-2, iou=0.9, score=0.05, mask_iou=0.9, matched=0.9),
    # 256 steps for what a whole photo's values span; judged by AP, this finds what is broken.
    "int8": Tolerance(stage=0.5, iou=0.5, score=0.5, mask_iou=0.5, matched=0.5),
    # 8 bits, and layers that read what layers in bf16 wrote.
    "bf16": Tolerance(stage=1e-1, iou=0.8, score=0.15, mask_iou=0.8, matched=0.7),
}

PIXELS = {"fp32": 0.999, "fp16": 0.95, "bf16": 0.9, "int8": 0.8}
"""Share of a photo's pixels that must have the same label, by precision: where two classes are equally likely, rounding
decides. What a precision costs is judged by mIoU."""

_STAGES = {
    "features": "backbone/neck features",
    "objectness": "RPN scores",
    "rpn_deltas": "RPN boxes",
    "anchors": "anchors",
    "rois": "proposals",
    "roi_features": "RoI features",
    "class_logits": "head outputs (classes)",
    "box_deltas": "head outputs (boxes)",
    "boxes": "final detections",
    "mask_roi_features": "mask RoI features",
    "masks": "masks",
    "pool_input": "encoder features",
    "pooled": "pooling",
    "places": "places of maxima",
    "unpool_input": "decoder features",
    "unpooled": "unpooling",
    "logits": "class logits",
    "probabilities": "class probabilities",
    "labels": "label map",
    "box_fractions": "box regression",
    "box_edges": "head outputs (boxes)",
}


def stage_of(value: str) -> str:
    """The stage in words: `features.2` → backbone/neck features."""
    return _STAGES.get(value.split(".")[0], value)


@dataclass
class StageCheck:
    """The worst of one value over all images; `error` is relative to max |reference|, or a share without partner."""

    stage: str
    value: str
    unit: str
    limit: float
    error: float = 0.0
    max_abs_error: float = 0.0
    image: str = ""

    @property
    def passed(self) -> bool:
        return self.error <= self.limit  # False for NaN too

    def add(self, error: float, max_abs_error: float, image: str) -> None:
        if not self.image or (not error <= self.error and self.error == self.error):  # a NaN is the worst and stays
            self.error, self.max_abs_error, self.image = error, max_abs_error, image


@dataclass
class Agreement:
    """End to end at one batch size: boxes (or pixels) of eager, of the artefact, and those that both have."""

    batch: int
    what: str = "detections"  # or "pixels"
    matched: int = 0
    eager: int = 0
    artefact: int = 0
    max_score_error: float = 0.0
    empty_images: int = 0  # images in which neither finds anything
    worst_image: str = ""
    worst_unmatched: int = 0

    @property
    def share(self) -> float:
        most = max(self.eager, self.artefact)
        return self.matched / most if most else 1.0

    def add(self, image: str, *, matched: int, eager: int, artefact: int, score_error: float) -> None:
        self.matched, self.eager, self.artefact = self.matched + matched, self.eager + eager, self.artefact + artefact
        self.max_score_error = max(self.max_score_error, score_error)
        self.empty_images += eager == artefact == 0
        unmatched = max(eager, artefact) - matched
        if unmatched > self.worst_unmatched:
            self.worst_image, self.worst_unmatched = image, unmatched


@dataclass
class Verification:
    """The verdict on one artefact."""

    artefact: str
    form: str
    precision: str
    images: int
    tolerance: Tolerance
    checks: list[StageCheck] = field(default_factory=list)
    agreements: list[Agreement] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        return self.first_difference is None

    @property
    def first_difference(self) -> str | None:
        """Where PyTorch and the artefact first part, with the worst image and numbers; None if they do not."""
        for check in self.checks:
            if not check.passed:
                return (
                    f"{check.stage} ({check.value}): error {check.error:.3g}, allowed {check.limit:.3g}, "
                    f"worst on {check.image}"
                )
        for found in self.agreements:
            if found.share < self.tolerance.matched:
                return (
                    f"end to end at batch {found.batch}: {found.matched} {found.what} agree of PyTorch's {found.eager} "
                    f"and the artefact's {found.artefact} ({found.share:.2%}, needed {self.tolerance.matched:.1%}), "
                    f"worst on {found.worst_image}"
                )
        return None

    def to_json(self) -> dict[str, Any]:
        return {
            "artefact": self.artefact,
            "form": self.form,
            "precision": self.precision,
            "images": self.images,
            "passed": self.passed,
            "first_difference": self.first_difference,
            "tolerance": asdict(self.tolerance),
            "stages": [{**asdict(check), "passed": check.passed} for check in self.checks],
            "end_to_end": [{**asdict(found), "share": found.share} for found in self.agreements],
        }
