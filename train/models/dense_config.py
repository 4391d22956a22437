"""What dense nets and the localiser have in common in their options: canvas, normalisation, compressed layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from .config import IMAGENET_MEAN, IMAGENET_STD
from .errors import ModelError
from .options import Options, types_of


@dataclass(frozen=True)
class CanvasConfig(Options):
    """size: the canvas, (height, width) in px. min_size, max_size: as for detectors; None: of the canvas.

    enlarge: whether photos that are smaller than the canvas are resized onto it. svd: layer name -> rank of its pair.
    Where a net has it, `norm` is "batch", or "frozen": BatchNorm of the backbone with the statistics and scales that
    --init brought.
    """

    size: tuple[int, int] = (192, 256)
    min_size: int | None = None
    max_size: int | None = None
    enlarge: bool = False
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    svd: Mapping[str, Any] = field(default_factory=dict)
    from_zero: ClassVar[str] = ""
    """The whole number that may be 0; all others are 1 or more."""

    def __post_init__(self) -> None:
        if len(self.size) != 2 or min(self.size) < 1:
            raise ModelError(f"size {list(self.size)}: give height and width in px")
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise ModelError(f"mean {list(self.mean)} and std {list(self.std)}: give three numbers each, std above 0")
        kinds = types_of(type(self))
        for name, value in vars(self).items():
            if (
                kinds[name] in (int, int | None)
                and value is not None
                and value < (least := int(name != self.from_zero))
            ):
                raise ModelError(f"{name} {value}: give {least} or more")
            if name == "dropout" and not 0 <= value < 1:
                raise ModelError(f"dropout {value}: give a share from 0 to below 1")
            if name == "norm" and value not in ("batch", "frozen"):
                raise ModelError(f'norm {value!r}: give "batch" or "frozen"')
