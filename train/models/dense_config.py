"""What dense nets and the localiser have in common in their options: canvas, normalisation, compressed layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, TypeVar

from .config import IMAGENET_MEAN, IMAGENET_STD, _lists, _tuples
from .errors import ModelError

C = TypeVar("C", bound="CanvasConfig")


@dataclass(frozen=True)
class CanvasConfig:
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

    def __post_init__(self) -> None:
        if len(self.size) != 2 or min(self.size) < 1:
            raise ModelError(f"size {list(self.size)}: give height and width in px")
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise ModelError(f"mean {list(self.mean)} and std {list(self.std)}: give three numbers each, std above 0")
        for name, value in vars(self).items():
            if isinstance(value, int) and not isinstance(value, bool) and value < 1:
                raise ModelError(f"{name} {value}: give 1 or more")
            if name == "dropout" and not 0 <= value < 1:
                raise ModelError(f"dropout {value}: give a share from 0 to below 1")
            if name == "norm" and value not in ("batch", "frozen"):
                raise ModelError(f'norm {value!r}: give "batch" or "frozen"')

    @classmethod
    def from_json(cls: type[C], config: Mapping[str, Any]) -> C:
        """From a checkpoint's or the user's plain values; ModelError names keys that do not exist."""
        known = {f.name for f in fields(cls)}
        if unknown := sorted(set(config) - known):
            raise ModelError(f"unknown option {', '.join(map(repr, unknown))}: known are {', '.join(sorted(known))}")
        try:
            return cls(**{k: _tuples(v) for k, v in config.items()})
        except TypeError as error:
            raise ModelError(f"model options of a wrong type: {error}") from error

    def to_json(self) -> dict[str, Any]:
        return {k: _lists(v) for k, v in asdict(self).items() if v is not None and v != {}}
