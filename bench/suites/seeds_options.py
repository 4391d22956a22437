"""What the seeds are measured with: the papers' sizes by default, smaller ones for a quick look."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from regionrt.runtime.clock import TimingOptions
from regionrt.train.models.backbones import BACKBONES

CLASSES = 21
"""Of PASCAL VOC, the background among them."""
STRIDE = 16
ROWS = {
    "torch-bf16": "PyTorch bf16",
    "onnxruntime-fp32": "ours: staged, ONNX Runtime fp32",
    "openvino-fp32": "ours: staged, OpenVINO fp32",
    "ncnn-fp32": "ours: staged, ncnn fp32",
    "openvino-bf16": "ours: staged, OpenVINO bf16",
}
"""What is measured beside PyTorch in fp32, which always takes part."""
NETS = {
    "rcnn": "R-CNN",
    "sppnet": "SPPnet",
    "fast_rcnn": "Fast R-CNN",
    "fast_rcnn_svd": "Fast R-CNN + SVD",
}
CROP, CROPS = 227, {"vgg16": 224}
"""Side of R-CNN's crops in px, and of backbones that want another one (arXiv:1311.2524, sections 2.1 and 3.3)."""


@dataclass(frozen=True)
class CaseOptions:
    """How one case is measured. `ValueError` for what makes no sense.

    size: (height, width) of the photos, as they go in; by default what Fast R-CNN's rule (the shorter side 600, the
    longer at most 1000) makes of a photo of 3 : 4. nets: keys of `NETS`, whose requests are measured. representation:
    width of fc6 and fc7. regions: of each photo in a training step. seconds, least_rounds: of each comparison.
    whole_seconds: what takes less is measured as a whole; part_seconds: of what takes more, at least so much at once.
    crop_batches, training_batches: how many crops at once are
    tried for R-CNN. profile_rounds: requests by which the steps of the fastest artefact are told; 0: not. crop: side of
    R-CNN's crops in px; None: its paper's.
    """

    backbone: str = "vgg16"
    size: tuple[int, int] = (600, 800)
    proposals: int = 2000
    representation: int = 4096
    regions: int = 64
    crop: int | None = None
    nets: tuple[str, ...] = tuple(NETS)
    rows: tuple[str, ...] = tuple(ROWS)
    threads: int = 1
    seconds: float = 30.0
    least_rounds: int = 3
    whole_seconds: float = 60.0
    part_seconds: float = 10.0
    crop_batches: tuple[int, ...] = (1, 4, 16)
    training_batches: tuple[int, ...] = (4, 16)
    profile_rounds: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.backbone not in BACKBONES or BACKBONES[self.backbone].levels != 1:
            names = ", ".join(name for name, entry in BACKBONES.items() if entry.levels == 1)
            raise ValueError(f"backbone {self.backbone!r}: choose one of {names}")
        if len(self.size) != 2 or min(self.size) < 64:
            raise ValueError(f"size {self.size}: expected a height and a width of at least 64 px")
        for name, known in (("nets", NETS), ("rows", ROWS)):
            if unknown := sorted(set(getattr(self, name)) - set(known)):
                raise ValueError(f"{name} {', '.join(unknown)}: choose of {', '.join(known)}")
        for name in ("proposals", "regions", "threads", "least_rounds"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)}: expected at least 1")
        if self.crop is not None and self.crop < 64:
            raise ValueError(f"crop {self.crop}: expected at least 64 px")
        if self.representation < 16:
            raise ValueError(f"representation {self.representation}: expected at least 16")
        for name in ("crop_batches", "training_batches"):
            if not getattr(self, name) or min(getattr(self, name)) < 1:
                raise ValueError(f"{name} {getattr(self, name)}: expected numbers of at least 1")
        durations = ("seconds", "whole_seconds", "part_seconds", "profile_rounds")
        if not all(getattr(self, name) >= 0 for name in durations):
            raise ValueError(f"{', '.join(durations)}: expected 0 or more")

    @property
    def canvas(self) -> tuple[int, int]:
        """The smallest canvas that holds a photo: (height, width)."""
        height, width = (-(-side // STRIDE) * STRIDE for side in self.size)
        return height, width

    @property
    def ranks(self) -> dict[str, int]:
        """Of fc6 and fc7: 1024 and 256 of 4096 (arXiv:1504.08083, section 4.4), in proportion for other widths."""
        return {"head.fc6": self.representation // 4, "head.fc7": self.representation // 16}

    @property
    def timing(self) -> TimingOptions:
        return TimingOptions(warmup_rounds=1, warmup_seconds=0.0, seconds=self.seconds, least_rounds=self.least_rounds)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> CaseOptions:
        given: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
        return cls(**given)
