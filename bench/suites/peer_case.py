"""One net at one size: PyTorch's forms, torchvision's export in two engines, and ours, interleaved in this process.

Run as a program it is the child of `peers`: a job as JSON on standard input, what was measured as JSON in the job's
file `answer`, and a line on standard output for each step.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from regionrt.bench.baseline import torch_baseline
from regionrt.bench.environment import without_folders
from regionrt.bench.forms import TorchForm
from regionrt.bench.latency import Timed, speedup, time_requests
from regionrt.bench.schema import Latency, Ratio, Shares
from regionrt.bench.stage_shares import shares_of
from regionrt.bench.torchvision_forward import TorchvisionForward
from regionrt.export import ExportOptions, export_bundle
from regionrt.export.compress.calibration import Photo
from regionrt.export.matching import match_scored
from regionrt.runtime.clock import TimingOptions
from regionrt.runtime.image import Canvas
from regionrt.runtime.loading import load
from regionrt.runtime.predictor import Predictor
from regionrt.runtime.results import Detections
from regionrt.train.checkpoint import load_weights, read_tensors
from regionrt.train.models import build_model
from regionrt.train.models.region import canvas_of, stride_of

from .child import Tell, answer, given_job
from .random_weights import calibrate, freeze_norms
from .torchvision_export import TorchvisionExport, export_as_torchvision, in_onnxruntime, in_openvino

MIN_IOU = 0.9
LABELS = ("__background__", *(f"class {i}" for i in range(1, 91)))
EAGER = "torch-eager-fp32"
PEERS = {
    EAGER: "PyTorch eager fp32",
    "torch-bf16": "PyTorch channels last bf16",
    "torch-compile": "torch.compile (backbone), channels last bf16",
    "export-onnxruntime-fp32": "torchvision's export in ONNX Runtime fp32",
    "export-openvino-fp32": "torchvision's export in OpenVINO f32",
    "export-openvino-bf16": "torchvision's export in OpenVINO bf16",
}
OURS = {
    "openvino-staged-bf16": "ours: staged, OpenVINO bf16",
    "openvino-staged-fp32": "ours: staged, OpenVINO fp32",
    "onnxruntime-staged-fp32": "ours: staged, ONNX Runtime fp32",
    "ncnn-staged-fp32": "ours: staged, ncnn fp32",
    "onnxruntime-native-fp32": "ours: whole graph, ONNX Runtime fp32",
    "openvino-staged-int8": "ours: staged, OpenVINO int8",
    "onnxruntime-staged-int8": "ours: staged, ONNX Runtime int8",
}
"""int8 is beside the comparison, which is of the same arithmetic; it is calibrated on the photos that are timed."""
NAMES = {**PEERS, **OURS}


@dataclass(frozen=True)
class CaseOptions:
    """How one case is measured. `ValueError` for what makes no sense.

    rows: keys of `NAMES`; eager always takes part. seconds, least_rounds: of the interleaved run.
    compile_seconds: most that torch.compile may take in a process of its own before it is tried here; 0: do not try.
    profile_rounds: requests by which the shares of our steps are told; 0: not.
    """

    rows: tuple[str, ...] = tuple(NAMES)
    threads: int = 1
    seconds: float = 30.0
    least_rounds: int = 5
    compile_seconds: float = 240.0
    profile_rounds: int = 12

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.rows) - set(NAMES)):
            raise ValueError(f"rows {', '.join(unknown)}: choose of {', '.join(NAMES)}")
        if (
            self.threads < 1
            or self.least_rounds < 1
            or not all(value >= 0 for value in (self.seconds, self.compile_seconds, self.profile_rounds))
        ):
            raise ValueError(
                f"expected threads and least_rounds ≥ 1, seconds, compile_seconds and profile_rounds ≥ 0, got {self}"
            )


@dataclass
class Row:
    """One candidate. `latency` None: it was not run, `reason` says why.

    matched: of eager's detections the share found again (same label, IoU > 0.9), over all photos.
    matched_on_canvas (ours): of the detections of eager fed with the same uint8 canvas; differs from `matched` where
    the net resizes, because torchvision feeds the resized photo unrounded, and by torchvision's rounding in NMS.
    noisy: more than half of its requests waited for a CPU, and others took a part of them.
    """

    id: str
    name: str
    latency: Latency | None = None
    reason: str = ""
    note: str = ""
    matched: float | None = None
    matched_on_canvas: float | None = None
    found_per_photo: float | None = None
    over_eager: Ratio | None = None
    over_best_peer: Ratio | None = None
    shares: Shares | None = None
    noisy: bool = False

    @property
    def ours(self) -> bool:
        return self.id in OURS


@dataclass
class Case:
    """What was measured of one net at one size."""

    key: str
    net: str
    size: tuple[int, int]
    own_resize: bool
    canvas: dict[str, Any] = field(default_factory=dict)
    weights: str = ""
    photos: int = 0
    eager_detections: int = 0
    best_peer: str | None = None
    rows: list[Row] = field(default_factory=list)
    failed: str = ""

    def row(self, id: str) -> Row | None:
        """The row of that id if it was measured."""
        return next((row for row in self.rows if row.id == id and row.latency is not None), None)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Case:
        rows = [
            Row(
                **{
                    **row,
                    "latency": Latency(**row["latency"]) if row["latency"] else None,
                    "over_eager": Ratio(**row["over_eager"]) if row["over_eager"] else None,
                    "over_best_peer": Ratio(**row["over_best_peer"]) if row["over_best_peer"] else None,
                    "shares": Shares.from_json(row["shares"]) if row["shares"] else None,
                }
            )
            for row in data["rows"]
        ]
        return cls(**{**data, "size": tuple(data["size"]), "rows": rows})


def measure_case(
    module: nn.Module,
    labels: Sequence[str],
    photos: Sequence[np.ndarray],
    options: CaseOptions,
    *,
    case: Case,
    scratch: Path,
    compile_probe: Callable[[], str] = lambda: "torch.compile was not tried: no process of its own to try it in",
    tell: Tell = lambda text: None,
) -> Case:
    """Fills `case`. module: in eval mode, on the CPU; photos: RGB uint8, all of one size; scratch: a folder for files.

    compile_probe: compiles in another process and returns why that failed, or "". A row that fails says why and leaves
    the others alone.
    """
    if len({photo.shape for photo in photos}) != 1:
        raise ValueError("measure_case: expected photos, all of one size: torchvision's export is fixed to it")
    torch.set_num_threads(options.threads)
    canvas = canvas_for(module, photos[0].shape[:2])
    case.canvas, case.photos = canvas.to_json(), len(photos)
    openers = _openers(module, labels, photos, canvas, options, scratch, compile_probe, tell)
    wanted = [EAGER, *(id for id in NAMES if id in options.rows and id != EAGER)]
    open_: dict[str, Predictor] = {}
    found: dict[str, list[Detections]] = {}
    for id in wanted:
        row = Row(id, NAMES[id])
        case.rows.append(row)
        tell(f"opening {row.name}")
        try:
            predict = openers[id]()
            found[id] = [predict(photo) for photo in photos]
            open_[id] = predict
        except Exception as error:  # a candidate that fails is a finding; what it raises is the library's own
            row.reason = without_folders(f"{type(error).__name__}: {' '.join(str(error).split())}"[:400])
    if EAGER not in open_:
        raise RuntimeError(f"PyTorch eager failed, so there is nothing to compare with: {case.rows[0].reason}")
    tell("agreement with eager")
    on_canvas = None
    if any(id in OURS for id in open_):
        same_pixels = torch_baseline(module, canvas=canvas, labels=labels)
        on_canvas = [same_pixels(photo) for photo in photos]
    case.eager_detections = sum(map(len, found[EAGER]))
    for row in case.rows:
        if row.id in open_:
            row.matched = share_matched(found[EAGER], found[row.id])
            row.found_per_photo = float(np.mean([len(f) for f in found[row.id]]))
            if row.ours and on_canvas is not None:
                row.matched_on_canvas = share_matched(on_canvas, found[row.id])
    tell(f"timing {len(open_)} candidates, interleaved")
    timing = TimingOptions(
        warmup_rounds=2, warmup_seconds=0.0, seconds=options.seconds, least_rounds=options.least_rounds
    )
    # Peers paste the masks of all their detections; so must ours: those above a score of 0.
    timed = time_requests(open_, photos, timing, batch=1, mask_score=0.0)
    _compare(case, timed)
    if options.profile_rounds:
        tell("shares of our steps")
        for row in case.rows:
            if row.id in open_ and row.id.split("-")[1] == "staged":
                row.shares = shares_of(open_[row.id], photos, options.profile_rounds)
    for predict in open_.values():
        predict.close()
    return case


def canvas_for(module: nn.Module, size: tuple[int, int]) -> Canvas:
    """The smallest canvas that holds what the module's own rule makes of a photo of `size` (height, width)."""
    step = stride_of(module)
    height, width = canvas_of(module, (64 * step, 64 * step)).resized_size(*size)
    return canvas_of(module, [-(-side // step) * step for side in (height, width)])


def share_matched(wanted: Sequence[Detections], found: Sequence[Detections]) -> float:
    """Of all detections in `wanted`, photo by photo, the share with a partner of its own: same label, IoU > 0.9."""
    pairs = 0
    for a, b in zip(wanted, found, strict=True):
        sets = [(d.boxes_xyxy, d.scores, d.labels) for d in (a, b)]
        pairs += len(match_scored(*sets, min_iou=MIN_IOU, max_score_error=1.0)[0])
    total = sum(map(len, wanted))
    return pairs / total if total else 1.0


def _compare(case: Case, timed: Timed) -> None:
    """Latencies and ratios into the rows; the best peer is the fastest row that is not ours."""
    latencies = timed.latencies
    case.best_peer = min((id for id in latencies if id in PEERS), key=lambda id: latencies[id].p50_ms)
    for row in case.rows:
        if row.id in latencies:
            row.latency, row.note, row.noisy = latencies[row.id], timed.disturbances[row.id], row.id in timed.noisy
            row.over_eager = speedup(latencies[EAGER], row.latency)
            row.over_best_peer = speedup(latencies[case.best_peer], row.latency)


def _openers(
    module: nn.Module,
    labels: Sequence[str],
    photos: Sequence[np.ndarray],
    canvas: Canvas,
    options: CaseOptions,
    scratch: Path,
    compile_probe: Callable[[], str],
    tell: Tell,
) -> dict[str, Callable[[], Predictor]]:
    """Row id → what opens it. Files that several rows need are written by the first of them."""
    size = photos[0].shape[:2]

    def torch_form(form: TorchForm) -> Predictor:
        if form.compiled and (why := compile_probe()):
            raise RuntimeError(why)
        return TorchvisionForward(module, labels, canvas, paste_masks=True, form=form)

    def exported(backend: str, precision: str) -> Predictor:
        path = scratch / "torchvision.onnx"
        if not path.exists():
            tell("exporting as torchvision does")
            export_as_torchvision(module, size, path)
        if backend == "onnxruntime":
            engine = in_onnxruntime(path, options.threads)
        else:
            engine = in_openvino(path, precision, options.threads)
        return TorchvisionExport(engine, backend, precision, module, labels, canvas)

    def ours(backend: str, form: str, precision: str) -> Predictor:
        bundle = scratch / precision
        if not bundle.exists():
            tell(f"exporting our bundle, {precision}")
            forms = ("staged", "native") if precision == "fp32" else ("staged",)
            asked = ExportOptions(precision=precision, ops=forms, size=(canvas.height, canvas.width))
            seen = [Photo(f"photo {n}", lambda photo=photo: photo) for n, photo in enumerate(photos)]  # type: ignore[misc]
            export_bundle(module, bundle, asked, labels=labels, photos=seen if precision == "int8" else None)
        return load(bundle, backend, threads=options.threads, form=form, precision=precision)

    openers: dict[str, Callable[[], Predictor]] = {
        EAGER: lambda: torch_form(TorchForm()),
        "torch-bf16": lambda: torch_form(TorchForm("bf16", channels_last=True)),
        "torch-compile": lambda: torch_form(TorchForm("bf16", channels_last=True, compiled=True)),
    }
    for id in PEERS:
        if id.startswith("export-"):
            _, backend, precision = id.split("-")
            openers[id] = lambda backend=backend, precision=precision: exported(backend, precision)  # type: ignore[misc]
    for id in OURS:
        backend, form, precision = id.split("-")
        openers[id] = lambda b=backend, f=form, p=precision: ours(b, f, p)  # type: ignore[misc]
    return openers


def detector(
    net: str, size: tuple[int, int], own_resize: bool, weights: Path | None, photos: Sequence[np.ndarray], seed: int = 0
) -> tuple[nn.Module, str]:
    """torchvision's detector for photos of `size`, norms frozen as in its trained ones, and where its weights are from.

    own_resize: it keeps the builder's own resize rule; else photos go in as they are. weights None: random ones,
    calibrated on `photos`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = _plain(net, size, own_resize)
    if weights is not None:
        load_weights(module, read_tensors(weights), str(weights))
        return freeze_norms(module), f"the weights given, {weights.name}"
    calibrate(module, [torch.from_numpy(photo).permute(2, 0, 1).float() / 255 for photo in photos[:4]])
    return freeze_norms(module), f"random weights (seed {seed}), calibrated on the photos"


def _plain(net: str, size: tuple[int, int], own_resize: bool) -> nn.Module:
    rule = {} if own_resize else {"min_size": min(size), "max_size": max(size)}
    return build_model(f"torchvision/{net}", rule, LABELS)


def _compile_here(module: nn.Module, photos: Sequence[np.ndarray]) -> None:
    form = TorchForm("bf16", channels_last=True, compiled=True)
    canvas = canvas_for(module, photos[0].shape[:2])
    TorchvisionForward(module, LABELS, canvas, paste_masks=True, form=form)(photos[0])


def _compile_elsewhere(job: Mapping[str, Any], module: nn.Module, scratch: Path, seconds: float) -> str:
    """Compiles in a process whose time is bounded, which fills the compiler's cache. Why it failed, or ""."""
    if not seconds:
        return "torch.compile was not tried (0 seconds allowed)"
    weights = scratch / "frozen.pt"
    torch.save(module.state_dict(), weights)
    probe = {**job, "frozen": str(weights), "probe": True, "parent": os.getpid()}
    command = [sys.executable, "-m", "regionrt.bench.suites.peer_case"]
    with open(scratch / "compile.log", "w+b") as log:
        try:
            done = subprocess.run(
                command, input=json.dumps(probe).encode(), stdout=log, stderr=log, timeout=seconds, check=False
            )
        except subprocess.TimeoutExpired:
            return f"torch.compile was not done within {seconds:.0f} s"
        log.seek(0)
        lines = log.read().decode(errors="replace").strip().splitlines()
    return "" if done.returncode == 0 else f"torch.compile failed: {lines[-1] if lines else done.returncode}"


def main() -> None:
    """The child: measures the job on standard input."""
    job, tell = given_job()
    with np.load(job["photos"]) as stored:
        photos = [stored[name] for name in stored.files]
    options = CaseOptions(**{**job["options"], "rows": tuple(job["options"]["rows"])})
    torch.set_num_threads(options.threads)
    case = Case(job["key"], job["net"], tuple(job["size"]), job["own_resize"])
    if job.get("probe"):
        module = freeze_norms(_plain(case.net, case.size, case.own_resize))
        module.load_state_dict(read_tensors(Path(job["frozen"])))
        _compile_here(module, photos)
        return
    weights = Path(job["weights"]) if job["weights"] else None
    module, case.weights = detector(case.net, case.size, case.own_resize, weights, photos, job["seed"])
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        measure_case(
            module,
            LABELS,
            photos,
            options,
            case=case,
            scratch=scratch,
            compile_probe=lambda: _compile_elsewhere(job, module, scratch, options.compile_seconds),
            tell=tell,
        )
    answer(job, case.to_json())


if __name__ == "__main__":
    main()
