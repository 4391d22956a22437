"""Engine libraries on the GPU's machine: whole detectors as engines, and in ONNX Runtime, beside PyTorch's.

The nets, sizes, weights and canvases are the detectors' (`gpu_detectors.py`), exported here, or those of ready-made
bundles. Engines are built by `runtime/build.py` and loaded by `runtime.load`, each in a process of its own, so that
whatever a library does there becomes a row.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from regionrt.bench.environment import without_folders
from regionrt.runtime.build import TARGETS, BuildOptions, build_engines
from regionrt.runtime.bundle import Artifact
from regionrt.runtime.errors import RegionRTError

from .gpu_clock import Clock
from .gpu_detectors import MIN_IOU, NetCase, NetSetting
from .gpu_engine_request import Found, Job, Measure, measure_in_child
from .gpu_engine_sources import GivenBundle, OwnNet, Source
from .gpu_ops import matched, told
from .gpu_schema import DetectorRow, EngineRow

LIBRARIES = {"TensorRT": "tensorrt", "TensorRT for RTX": "tensorrt_rtx", "ONNX Runtime": "onnxruntime"}
CASES = (
    NetCase("fasterrcnn_resnet50_fpn", (800, 1088), 1),
    NetCase("maskrcnn_resnet50_fpn", (800, 1088), 1),
)
PRECISIONS = ("fp16", "fp32")
LEAST_SECONDS = 12.0
"""What is begun shortly before the limit gets so long, so that the command ends not long after it."""


class Way(NamedTuple):
    """How a library runs a net. instead_of: it is tried only where that form of the same library came to nothing."""

    name: str
    library: str
    backend: str
    form: str
    provider: str | None = None
    instead_of: str = ""


EVERY_WAY = "every way"
STAGED = "an engine per stage, our kernels between them"
WAYS = (
    Way("whole graph (native), CUDA provider", "ONNX Runtime", "onnxruntime", "native", "cuda"),
    Way(STAGED, "TensorRT", "tensorrt", "staged"),
    Way("one engine, with our plugins", "TensorRT", "tensorrt", "plugin"),
    Way("one engine (portable)", "TensorRT", "tensorrt", "portable", instead_of="plugin"),
    Way(STAGED, "TensorRT for RTX", "tensorrt-rtx", "staged"),
    Way("one engine (portable)", "TensorRT for RTX", "tensorrt-rtx", "portable"),
    Way("whole graph (native), TensorRT provider", "ONNX Runtime", "onnxruntime", "native", "tensorrt"),
)
"""The quickest to try first; last what builds an engine at every load."""


@dataclass
class EngineSetting:
    """bundles: ready-made ones, measured before the suite's own nets. left: seconds until the command's limit."""

    nets: NetSetting
    clock: Clock
    late: Callable[[], str]
    left: Callable[[], float]
    tell: Callable[[str], None] = print
    cases: Sequence[NetCase] = CASES
    bundles: Sequence[Path] = ()
    ways: Sequence[Way] = WAYS
    measure: Measure = measure_in_child

    def seconds_left(self) -> float:
        return max(self.left(), LEAST_SECONDS)


class _Entry(NamedTuple):
    """A source before it is opened. precision: "" for all that it has. refused: why ways were given up on, by way."""

    net: str
    size: str
    precision: str
    open: Callable[[], AbstractContextManager[Source]]
    refused: dict[Way, str]


def run_engines(setting: EngineSetting, detectors: Sequence[DetectorRow] = ()) -> Iterator[EngineRow]:
    """The rows of all libraries. detectors: the rows that PyTorch's times are taken from."""
    versions: dict[str, str] = {}
    for library, module in LIBRARIES.items():
        version, why = _version(module)
        if why:
            yield EngineRow(library, version, failed=why)
        else:
            versions[library] = version
    ways = [way for way in setting.ways if way.library in versions]
    for entry in _entries(setting, detectors) if ways else ():
        blanks = {
            way: EngineRow(
                way.library, versions[way.library], entry.net, size=entry.size, way=way.name, precision=entry.precision
            )
            for way in ways
        }
        yield from _rows(entry, blanks, setting)


def _version(module: str) -> tuple[str, str]:
    """(version, why it cannot be measured); importing one that is broken is a reason too."""
    try:
        library = importlib.import_module(module)
    except Exception as error:
        return "", f"cannot be imported: {error}"
    version = str(getattr(library, "__version__", "unknown"))
    if module == "onnxruntime":
        providers = library.get_available_providers()
        if "CUDAExecutionProvider" not in providers:
            return version, f"this build has no CUDA ({', '.join(providers)}); onnxruntime-gpu has"
    return version, ""


def _entries(setting: EngineSetting, detectors: Sequence[DetectorRow]) -> Iterator[_Entry]:
    """Small precisions first: what is refused there is not tried again."""
    for folder in setting.bundles:
        try:
            given = GivenBundle(folder, setting.nets.seed, setting.nets.canvases, setting.measure)
        except RegionRTError as error:
            yield _Entry(folder.name, "", "", partial(_raise, error), {})
        else:
            yield _Entry(given.net, given.size, "", given.open, {})
    own = [OwnNet(case, setting.nets, setting.clock, detectors) for case in setting.cases]
    refused: dict[Way, str] = {}
    for precision in PRECISIONS:
        for net in own:
            yield _Entry(net.net, net.size, precision, partial(net.open, precision), refused)


def _raise(error: RegionRTError) -> AbstractContextManager[Source]:
    raise error


def _rows(entry: _Entry, blanks: Mapping[Way, EngineRow], setting: EngineSetting) -> Iterator[EngineRow]:
    why = setting.late()
    with ExitStack() as stack:
        if not why:
            setting.tell(" ".join(filter(None, (entry.net, entry.size, entry.precision))))
            try:
                bundle = _Bundle(stack.enter_context(entry.open()), setting, entry.refused)
            except Exception as error:
                why = _reason(error)
        if why:
            libraries = {blank.library: replace(blank, way=EVERY_WAY, failed=why) for blank in blanks.values()}
            yield from libraries.values()
            return
        for way, blank in blanks.items():
            yield from bundle.rows(way, blank)


@dataclass
class _Bundle:
    """A source, opened, and what has come of it: engines by way (or why there are none), and what has figures."""

    source: Source
    setting: EngineSetting
    refused: dict[Way, str]
    built: dict[Way, dict[str, Artifact] | Exception] = field(default_factory=dict)
    measured: set[tuple[str, str, str]] = field(default_factory=set)

    def rows(self, way: Way, blank: EngineRow) -> Iterator[EngineRow]:
        """One of each precision that the bundle has in the way's form."""
        precisions = self.source.precisions(way.form)
        if not precisions:
            yield replace(blank, failed=f"the bundle holds no {way.form} form: export it with --ops {way.form}")
        for precision in precisions:
            if (way.library, way.instead_of, precision) not in self.measured:
                yield self._row(way, replace(blank, precision=precision))

    def _row(self, way: Way, row: EngineRow) -> EngineRow:
        if why := self.setting.late() or self.refused.get(way, ""):
            return replace(row, failed=why)
        self.setting.tell(f"  {way.library}: {way.name}, {row.precision}")
        try:
            if way.backend in TARGETS:
                certificate = self._engines(way)[row.precision].engine or {}
                row = replace(row, engine_bytes=certificate["engine_bytes"], build_seconds=certificate["build_seconds"])
        except Exception as error:
            return replace(row, failed=_reason(error))
        try:
            row = self._measure(way, row)
        except Exception as error:
            reason = _reason(error)
            if way.backend in TARGETS:  # building another one costs much, and it would be larger
                self.refused[way] = f"not built, after {row.net} {row.precision} came to nothing: {reason}"
            return replace(row, failed=reason)
        self.measured.add((way.library, way.form, row.precision))
        return row

    def _engines(self, way: Way) -> dict[str, Artifact]:
        """By precision; built once."""
        if way not in self.built:
            options = BuildOptions(
                ops=way.form,
                timing_cache=self.source.bundle.parent / "timing" if way.backend == "tensorrt" else None,
                timeout_s=self.setting.seconds_left(),
            )
            try:
                made = build_engines(self.source.bundle, way.backend, options)
                self.built[way] = {artifact.precision: artifact for artifact in made}
            except Exception as error:
                self.built[way] = error
        found = self.built[way]
        if isinstance(found, Exception):
            raise found
        return found

    def _measure(self, way: Way, row: EngineRow) -> EngineRow:
        source, nets = self.source, self.setting.nets
        job = Job(str(source.bundle), way.backend, way.form, row.precision, way.provider, nets.seconds)
        done = self.setting.measure(job, source.canvases, self.setting.seconds_left())
        fp32, fp16 = (source.eager_ms.get(precision) for precision in ("fp32", "fp16"))
        share = None
        if source.expected is not None:
            pairs = zip(source.expected, done.found, strict=True)
            share = sum(matched(_tensors(wanted), _tensors(found), MIN_IOU) for wanted, found in pairs)
            share /= len(source.expected)
        return replace(
            row, median_ms=done.median_ms, low_ms=done.low_ms, high_ms=done.high_ms, samples=done.samples,
            eager_fp32_times=fp32 / done.median_ms if fp32 and done.median_ms else None,
            eager_fp16_times=fp16 / done.median_ms if fp16 and done.median_ms else None,
            matched=share, against=source.against if share is not None else "",
            detections=sum(len(boxes) for boxes, _ in done.found) / len(done.found),
            cuda_graph=done.cuda_graph, note="; ".join(filter(None, (done.note, source.note))),
        )  # fmt: skip


def _tensors(found: Found) -> tuple[torch.Tensor, torch.Tensor]:
    boxes, labels = found
    return torch.from_numpy(boxes), torch.from_numpy(labels)


def _reason(error: Exception) -> str:
    """Our own errors say it all in one line; of others the kind is told too."""
    return without_folders(str(error)) if isinstance(error, RegionRTError) else told(error)
