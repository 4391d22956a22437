"""What engines are built from on a GPU's machine: bundles of the suite's own nets, or one that was made elsewhere.

A source opens as a bundle in a temporary folder, because engines are written into it, with canvases to run and the
detections to find on them.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from regionrt.bench.environment import without_folders
from regionrt.bench.errors import BenchError
from regionrt.bench.torch_requests import RequestForm, torch_request
from regionrt.runtime.bundle import Artifact, Manifest

from .gpu_clock import Candidate, Clock
from .gpu_detectors import NetCase, NetSetting, canvases_of, detector, labels_of, size_of
from .gpu_engine_request import Found, Job, Measure, measure_in_child
from .gpu_inputs import pictures
from .gpu_ops import told
from .gpu_schema import DetectorRow

EAGER = {"fp32": RequestForm(), "fp16": RequestForm("half")}
FORMS = ("staged", "plugin", "portable", "native")
"""Of the suite's own bundles."""
MOST_SECONDS = 120.0
"""For a run without timing, of what a ready-made bundle is compared with."""


@dataclass(frozen=True)
class Source:
    """A bundle to build engines in, and what they are to find.

    expected: of all images, by `against`; None: nothing to compare with. eager_ms: PyTorch's, by precision. note: what
    is missing of either, and why.
    """

    bundle: Path
    canvases: Sequence[np.ndarray]
    expected: Sequence[Found] | None
    against: str
    eager_ms: Mapping[str, float] = field(default_factory=dict)
    note: str = ""

    def precisions(self, form: str) -> list[str]:
        """What the bundle's ONNX files of a form have, for engines or ONNX Runtime."""
        artifacts = Manifest.read(self.bundle).artifacts
        return list(dict.fromkeys(a.precision for a in artifacts if a.form == form and a.files[0].endswith(".onnx")))


class OwnNet:
    """One of the suite's nets. PyTorch's figures are taken from its rows among the detectors', else measured."""

    def __init__(self, case: NetCase, setting: NetSetting, clock: Clock, rows: Sequence[DetectorRow]) -> None:
        self.net, self.size = case.net, size_of(case)
        self._case, self._setting, self._clock = case, setting, clock
        names = {str(form): precision for precision, form in EAGER.items()}
        self._eager_ms = {
            names[row.name]: row.median_ms
            for row in rows
            if (row.net, row.size, row.batch) == (self.net, self.size, case.batch)
            and row.name in names
            and row.median_ms is not None
        }
        self._opened: tuple[torch.nn.Module, list[np.ndarray], list[Found]] | None = None
        self._prepared: Any = None
        self._note = ""

    @contextlib.contextmanager
    def open(self, precision: str) -> Iterator[Source]:
        """Exports the net. BenchError where what exports is not installed."""
        try:
            from regionrt.export.bundle import ExportOptions, Prepared, export_bundle
        except ImportError as error:
            raise BenchError(
                f"no bundle can be exported here ({error}): pip install 'regionrt[train,export]', or measure one that "
                "was made elsewhere with --bundle FOLDER"
            ) from error
        if self._opened is None:
            self._opened = self._run_eager()
            self._prepared = Prepared()
        module, canvases, expected = self._opened
        options = ExportOptions(precision, FORMS, self._case.size, candidates=self._setting.candidates)
        with tempfile.TemporaryDirectory() as folder:
            bundle = Path(folder, "bundle")
            export_bundle(module, bundle, options, labels=labels_of(self._setting), prepared=self._prepared)
            yield Source(bundle, canvases, expected, "PyTorch eager fp32", self._eager_ms, self._note)

    def _run_eager(self) -> tuple[torch.nn.Module, list[np.ndarray], list[Found]]:
        """The module on the CPU, its canvases there, and what it finds; PyTorch is timed where it was not."""
        module = detector(self._case, self._setting)
        canvases = canvases_of(self._case, self._setting)
        requests = {precision: torch_request(module, form) for precision, form in EAGER.items()}
        expected = [
            (found["boxes"].float().cpu().numpy(), found["labels"].cpu().numpy())
            for canvas in canvases
            for found in requests["fp32"](canvas)
        ]
        for precision in sorted(requests.keys() - self._eager_ms.keys()):
            try:
                self._eager_ms[precision] = self._time(requests[precision], canvases)
            except Exception as error:
                self._note = f"PyTorch {precision} is not timed: {told(error)}"
        module = module.cpu()
        del requests  # with their copies of the module
        if self._setting.device == "cuda":
            torch.cuda.empty_cache()  # the memory is for the engines' processes
        return module, [canvas.cpu().numpy() for canvas in canvases], expected

    def _time(self, request: Callable[[torch.Tensor], object], canvases: Sequence[torch.Tensor]) -> float:
        """Median milliseconds."""
        calls = [partial(request, canvas) for canvas in canvases]
        run = self._clock.prepare(Candidate(calls, graph=False))
        return self._clock.measure({"request": run}, self._setting.seconds)["request"].median_us / 1e3


class GivenBundle:
    """A bundle that was exported elsewhere. The folder is left as it is.

    It brings no PyTorch: its detections are compared with those of its own fp32 graph in ONNX Runtime on the CPU.
    BundleError, BenchError: no bundle, or none of a detector.
    """

    def __init__(self, folder: Path, seed: int, canvases: int, measure: Measure = measure_in_child) -> None:
        self._manifest = Manifest.read(folder)
        if self._manifest.task not in ("detection", "instance-segmentation"):
            raise BenchError(f"{folder}: expected a detector's bundle, found one for {self._manifest.task}")
        canvas = self._manifest.canvas
        self.net, self.size = self._manifest.model, f"{canvas.height}×{canvas.width}"
        self._seed, self._canvases, self._measure = seed, canvases, measure

    @contextlib.contextmanager
    def open(self) -> Iterator[Source]:
        canvas = self._manifest.canvas
        size = (canvas.height, canvas.width)
        canvases = [pictures(1, size, self._seed + 1 + i, "cpu").numpy() for i in range(self._canvases)]
        with tempfile.TemporaryDirectory() as folder:
            bundle = Path(folder, "bundle")
            shutil.copytree(self._manifest.folder, bundle)
            expected, note = None, "the bundle has no fp32 graph for ONNX Runtime to compare with"
            if (graph := self._fp32_graph()) is not None:
                job = Job(str(bundle), graph.backend, graph.form, graph.precision, "cpu", seconds=0)
                try:
                    expected, note = self._measure(job, canvases, MOST_SECONDS).found, ""
                except Exception as error:
                    note = f"nothing to compare with: {without_folders(str(error))}"
            yield Source(bundle, canvases, expected, "ONNX Runtime fp32 on the CPU", note=note)

    def _fp32_graph(self) -> Artifact | None:
        graphs = [a for a in self._manifest.artifacts if (a.backend, a.precision) == ("onnxruntime", "fp32")]
        return min(graphs, key=lambda a: a.form != "native", default=None)
