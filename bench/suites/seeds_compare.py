"""One net's requests against a base, in turn: PyTorch eager and each of our artefacts, opened, checked and timed."""

from __future__ import annotations

import itertools
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from torch import nn

from regionrt.bench.baseline import torch_baseline
from regionrt.bench.environment import without_folders
from regionrt.bench.forms import TorchForm
from regionrt.bench.stage_shares import shares_of
from regionrt.export import ExportOptions, export_bundle
from regionrt.runtime.backends.openvino import OpenVinoStages
from regionrt.runtime.loading import load
from regionrt.runtime.predictor import Predictor
from regionrt.train.tasks import task_of

from .child import Tell
from .peer_case import share_matched
from .seeds_measure import Candidate, time_candidates
from .seeds_nets import LABELS
from .seeds_options import ROWS, CaseOptions
from .seeds_schema import Comparison, SeedRow

Request = tuple[np.ndarray, np.ndarray | None]
"""A photo and its proposals; None: of nets that take none."""


def compare(
    comparison: Comparison,
    module: nn.Module,
    base: Candidate,
    form: TorchForm,
    requests: Sequence[Request],
    options: CaseOptions,
    tell: Tell,
    *,
    check: Request | None = None,
    candidate: Callable[[SeedRow, Predictor], Candidate] | None = None,
) -> None:
    """Fills the comparison's rows: PyTorch in `form`, and those of `options`, against `base`.

    check: what artefacts are compared with PyTorch on; None: the first request. candidate: how a row's predictor is
    timed, where that is not by whole requests; PyTorch has no row of its own then: it is the base.
    A row that fails says why and leaves the others alone.
    """
    asked = check or requests[0]
    baseline = torch_baseline(module, form, canvas=task_of(module).canvas_of(module), labels=LABELS)
    expected = baseline(*asked)
    candidates = [base]
    if candidate is None:
        row = SeedRow("torch-fp32", f"PyTorch {form}, fp32", ours=False, matched=1.0)
        comparison.rows.append(row)
        candidates.append(whole_requests(row, baseline, requests))
    opened: dict[str, Predictor] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for id in (id for id in ROWS if id in options.rows):
            row = SeedRow(id, ROWS[id], ours=not id.startswith("torch"))
            comparison.rows.append(row)
            tell(f"{comparison.title}: opening {row.name}")
            try:
                predict = opened[id] = _open(id, module, options, Path(scratch))
                row.matched = share_matched([expected], [predict(*asked)])
                candidates.append(candidate(row, predict) if candidate else whole_requests(row, predict, requests))
            except Exception as error:  # a candidate that fails is a finding; what it raises is the library's own
                row.reason = without_folders(f"{type(error).__name__}: {' '.join(str(error).split())}"[:400])
        tell(f"{comparison.title}: timing {len(candidates)} candidates, in turn")
        time_candidates(candidates, options.timing)
        comparison.notes.append(
            f"{len(expected)} detections to match; load average {os.getloadavg()[0]:.1f} when it ended"
        )
        fastest = comparison.best(ours=True)
        if options.profile_rounds and candidate is None and fastest is not None:
            photos, proposals = zip(*requests, strict=True)
            given = None if proposals[0] is None else proposals
            fastest.shares = shares_of(opened[fastest.id], photos, options.profile_rounds, given)
        for predict in (baseline, *opened.values()):
            predict.close()


def whole_requests(row: SeedRow, predict: Predictor, requests: Sequence[Request]) -> Candidate:
    """The requests in turn, one a call."""
    turn = itertools.cycle(requests)
    return Candidate(row, lambda: predict(*next(turn)))


def _open(id: str, module: nn.Module, options: CaseOptions, scratch: Path) -> Predictor:
    backend, precision = id.split("-")
    if precision == "bf16":
        OpenVinoStages("bf16", options.threads)  # says why where this CPU does not compute in it
    if backend == "torch":
        form = TorchForm("bf16", channels_last=True)
        return torch_baseline(module, form, canvas=task_of(module).canvas_of(module), labels=LABELS)
    bundle = scratch / precision
    if not bundle.exists():
        export_bundle(module, bundle, ExportOptions(precision=precision, ops=("staged",)), labels=LABELS)
    return load(bundle, backend, threads=options.threads, form="staged", precision=precision)
