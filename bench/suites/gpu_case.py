"""A case of the suite of single ops: candidates on the same inputs, where they run, and the rows that come of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from regionrt.bench.torch_kernels import TorchKernels

from .gpu_clock import AGAIN, Candidate, Clock, copies_beyond_cache
from .gpu_floor import floor_us
from .gpu_schema import OpRow

CHANNELS = 256
OURS = "ours"


@dataclass(frozen=True)
class OpCase:
    """One op on one set of inputs. Candidates are made when they are timed; the first is ours.

    moved_bytes: the floor's. copies: of the inputs, which together exceed the L2 cache where `beyond_cache`.
    agreement: how far ours is from torchvision's, in words.
    """

    name: str
    moved_bytes: int
    copies: int
    beyond_cache: bool
    candidates: Mapping[str, Callable[[], Candidate]]
    agreement: Callable[[], str]


@dataclass(frozen=True)
class OpSetting:
    """Where the cases run, and how large they are: tests take small ones on a CPU."""

    kernels: TorchKernels
    device: str = "cuda"
    cache_bytes: int = 64 << 20
    sizes: Sequence[tuple[int, int]] = ((800, 1344), (800, 1088))
    rois: int = 1000
    channels: int = CHANNELS
    dtypes: Sequence[torch.dtype] = (torch.float16, torch.float32, torch.bfloat16)
    pre_nms: Sequence[int] = (1000, 2000)
    masks: int = 100
    planes: tuple[int, int, int, int] = (4, 64, 360, 480)
    """Of the pooling with places: SegNet's first."""
    crop: tuple[int, int] = (227, 16)
    """Pixels a side, and of context, of a warped RoI: R-CNN's."""
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def tensor(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device)

    def normal(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(shape, device=self.device).to(dtype)

    def copies(self, bytes_of_one: int) -> tuple[int, bool]:
        """How many copies of inputs, and whether they exceed the cache."""
        copies = copies_beyond_cache(bytes_of_one, self.cache_bytes)
        return copies, copies * bytes_of_one > self.cache_bytes


def rows_of(case: OpCase, clock: Clock, seconds: float, bytes_per_second: float) -> list[OpRow]:
    """A case measured. A candidate that fails has a row with the reason and does not stop the others."""
    ready, failed = {}, {}
    for name, make in case.candidates.items():
        try:
            ready[name] = clock.prepare(make())
        except Exception as error:
            failed[name] = told(error)
    try:
        timings = clock.measure(ready, seconds) if ready else {}
    except Exception as error:
        timings, failed = {}, failed | dict.fromkeys(ready, told(error))
    try:
        agreement = case.agreement() if OURS not in failed else ""
    except Exception as error:
        agreement = f"not compared: {told(error)}"
    floor = floor_us(case.moved_bytes, bytes_per_second)
    ours = timings.get(OURS)
    rows = []
    for name in case.candidates:
        mine = name.startswith(OURS)
        if name in failed:
            rows.append(OpRow(case.name, name, mine, failed=failed[name]))
            continue
        timing, again = timings[name], timings.get(name + AGAIN)
        rows.append(
            OpRow(
                case=case.name, name=name, ours=mine, median_us=timing.median_us, low_us=timing.low_us,
                high_us=timing.high_us, samples=timing.samples, how=timing.how, floor_us=floor,
                over_floor=timing.median_us / floor, times=timing.median_us / ours.median_us if ours else None,
                noise_us=abs(again.median_us - timing.median_us) if again else None,
                agreement=agreement if name == OURS else "", input_copies=case.copies, beyond_cache=case.beyond_cache,
            )
        )  # fmt: skip
    return rows


def told(error: BaseException) -> str:
    """An error in one line, without folders."""
    from regionrt.bench.environment import without_folders

    lines = str(error).strip().splitlines()
    return without_folders(f"{type(error).__name__}: {lines[0] if lines else ''}")[:300]


def error_of(found: Tensor, expected: Tensor, other: str = "torchvision in fp32") -> str:
    if not torch.isfinite(found).all():
        return "not all of it was written, or not finite"
    error = ((found - expected).abs().max() / expected.abs().max()).item()
    return f"largest difference {error:.0e} of the maximum, to {other}"


def named(dtype: torch.dtype) -> str:
    return {torch.float16: "fp16", torch.float32: "fp32", torch.bfloat16: "bf16"}[dtype]
