"""How far a kernel's output is from another implementation's: the rows of the correctness checks."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .gpu_schema import Check

REFERENCE, TORCHVISION = "reference.py", "torchvision"
LIMITS = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}
"""Of the largest value; half of the last bit of a value is 2⁻¹² of it in fp16, 2⁻⁹ in bf16."""


def relative(op: str, case: str, against: str, found: np.ndarray, expected: np.ndarray, limit: float) -> Check:
    """Largest difference over the largest expected value; NaN never passes."""
    error = float(np.abs(found - expected).max() / max(float(np.abs(expected).max()), 1e-30))
    return Check(op, case, against, error, limit, "of the largest value", error <= limit)


def equal(op: str, case: str, against: str, found: np.ndarray, expected: np.ndarray, unit: str) -> Check:
    different = int((found != expected).sum())
    why = ""
    if different and np.issubdtype(found.dtype, np.floating):
        why = f"largest difference {np.abs(found - expected).max():.3g}"
    return Check(op, case, against, float(different), 0.0, unit, different == 0, why)


def tensors(device: torch.device, *arrays: np.ndarray) -> list[Tensor]:
    return [torch.from_numpy(np.ascontiguousarray(array)).to(device) for array in arrays]


def wide(value: Tensor) -> np.ndarray:
    return value.float().cpu().numpy()


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def layout_of(channels_last: bool) -> str:
    return "channels last" if channels_last else "channels first"
