"""The subjects of `--suite seeds`, and the process in which one of them is measured.

A subject is a function (photos, proposals, options, tell) → comparisons, in a file of its own.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from .child import Tell, answer, given_job
from .seeds_inputs import load_inputs
from .seeds_options import CaseOptions
from .seeds_overfeat import measure_overfeat
from .seeds_requests import measure_requests
from .seeds_schema import Comparison, SeedCase
from .seeds_training import measure_training

Subject = Callable[[Sequence[np.ndarray], Sequence[np.ndarray], CaseOptions, Tell], list[Comparison]]
CASES: dict[str, Subject] = {
    "requests": measure_requests,
    "training": measure_training,
    "overfeat": measure_overfeat,
}


def main() -> None:
    """The child of `seeds`: measures the job on standard input."""
    job, tell = given_job()
    options = CaseOptions.from_json(job["options"])
    torch.set_num_threads(options.threads)
    photos, proposals = load_inputs(Path(job["inputs"]))
    case = SeedCase(job["name"], options.size, load=f"{os.getloadavg()[0]:.2f}")
    case.comparisons = CASES[job["name"]](photos, proposals, options, tell)
    answer(job, case.to_json())


if __name__ == "__main__":
    main()
