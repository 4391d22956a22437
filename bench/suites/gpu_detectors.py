"""Whole detectors on a GPU: PyTorch's forms against dense stages by torch with our kernels between them, in one graph.

A request starts with a uint8 canvas on the GPU and ends with boxes, scores, labels (and masks of 28 × 28 probabilities)
on the GPU: from before the call to its end, the host's part included. Weights are random, calibrated so that as many
boxes are found as by a trained net. Ours is no engine: the dense layers are torch's and cuDNN's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from regionrt.bench.torch_kernels import TorchKernels
from regionrt.bench.torch_requests import RequestForm, torch_request
from regionrt.bench.torch_staged import DenseForm, TorchStaged
from regionrt.train.models import build_model
from regionrt.train.models.region import MAX_CANDIDATES

from .gpu_clock import AGAIN, Candidate, Clock, captured
from .gpu_inputs import pictures
from .gpu_ops import matched, told
from .gpu_schema import DetectorRow
from .random_weights import calibrate, freeze_norms

EAGER = "PyTorch fp32"
FORMS = (
    RequestForm(),
    RequestForm("autocast"),
    RequestForm("half"),
    RequestForm("cast", channels_last=True, benchmark=True),
    RequestForm("cast", channels_last=True, benchmark=True, backbone="graph"),
    RequestForm("cast", channels_last=True, benchmark=True, backbone="compiled"),
)
LAYERS = {
    "fused": "kernels + one graph, dense layers by torch, fused in cuDNN",
    "folded": "kernels + one graph, dense layers by torch, norms folded",
    "eager": "kernels + one graph, dense layers by torch as they are",
}
MIN_IOU = 0.9
REPLAYS = 8
"""Of one stage's graph in one sample, so that launching it costs no time of its own."""


class NetCase(NamedTuple):
    net: str
    size: tuple[int, int]
    batch: int


CASES = (
    NetCase("fasterrcnn_resnet50_fpn", (800, 1088), 1),
    NetCase("fasterrcnn_resnet50_fpn", (800, 1088), 8),
    NetCase("fasterrcnn_resnet50_fpn", (480, 640), 1),
    NetCase("fasterrcnn_resnet50_fpn", (480, 640), 8),
    NetCase("maskrcnn_resnet50_fpn", (800, 1088), 1),
    NetCase("maskrcnn_resnet50_fpn", (480, 640), 1),
)


@dataclass
class NetSetting:
    """Where and how long. compile_seconds: once torch.compile took so long in all, it is not tried again."""

    kernels: TorchKernels
    device: str = "cuda"
    seconds: float = 0.6
    compile_seconds: float = 60.0
    classes: int = 91
    canvases: int = 4
    forms: Sequence[RequestForm] = FORMS
    layers: Sequence[str] = tuple(LAYERS)
    dtype: torch.dtype = torch.float16
    candidates: int = MAX_CANDIDATES
    seed: int = 0
    options: dict[str, int] = field(default_factory=dict)
    compiled_seconds: float = field(default=0.0, init=False)


@dataclass
class Runnable:
    """One way to run a net: a request from a canvas, and what it found per image, as (boxes, labels)."""

    request: Callable[[Tensor], object]
    found: Callable[[Tensor], list[tuple[Tensor, Tensor]]]
    note: str = ""
    staged: TorchStaged | None = None


def run_detectors(
    setting: NetSetting, cases: Sequence[NetCase], clock: Clock, tell: Callable[[str], None], late: Callable[[], str]
) -> Iterator[DetectorRow]:
    """The rows of all cases. late: says why no further case is begun, or ""."""
    for case in cases:
        size = size_of(case)
        why = late()
        if not why:
            tell(f"{case.net} {size}, batch {case.batch}")
            try:
                yield from _rows(case, size, setting, clock, tell, late)
                continue
            except Exception as error:
                why = told(error)
        yield DetectorRow(case.net, size, case.batch, LAYERS["fused"], True, failed=why)


def detector(case: NetCase, setting: NetSetting) -> nn.Module:
    """torchvision's builder with random weights, calibrated on pictures of the case's size, norms frozen."""
    rule = {"min_size": min(case.size), "max_size": max(case.size), **setting.options}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(setting.seed)
        module = build_model(f"torchvision/{case.net}", rule, labels_of(setting)).eval().to(setting.device)
    photos = pictures(4, case.size, setting.seed, setting.device)
    calibrate(module, list(photos.permute(0, 3, 1, 2).float() / 255))
    return freeze_norms(module).to(setting.device).eval()


def size_of(case: NetCase) -> str:
    return f"{case.size[0]}×{case.size[1]}"


def labels_of(setting: NetSetting) -> list[str]:
    return ["__background__", *(f"class {i}" for i in range(1, setting.classes))]


def canvases_of(case: NetCase, setting: NetSetting) -> list[Tensor]:
    """uint8 [N, H, W, 3] each: the same for every row of the case."""
    return [pictures(case.batch, case.size, setting.seed + 1 + i, setting.device) for i in range(setting.canvases)]


def _rows(
    case: NetCase, size: str, setting: NetSetting, clock: Clock, tell: Callable[[str], None], late: Callable[[], str]
) -> list[DetectorRow]:
    module = detector(case, setting)
    canvases = canvases_of(case, setting)
    runnables: dict[str, Runnable] = {}
    failed: dict[str, str] = {}
    for name, make in _makers(module, case, setting, canvases[0], late).items():
        try:
            tell(f"  {name}")
            runnables[name] = make()
        except Exception as error:
            failed[name] = told(error)
    expected = [runnables[EAGER].found(canvas) for canvas in canvases] if EAGER in runnables else None
    runs = {name: clock.prepare(_requests(one, canvases)) for name, one in runnables.items()}
    timings = clock.measure(runs, setting.seconds) if runs else {}
    ours = min((timings[n].median_us for n in timings if n in LAYERS.values()), default=None)
    rows = []
    for name in (*LAYERS.values(), *map(str, setting.forms)):
        mine = name in LAYERS.values()
        if name in failed:
            rows.append(DetectorRow(case.net, size, case.batch, name, mine, failed=failed[name]))
        if name not in runnables:
            continue
        timing, again, one = timings[name], timings.get(name + AGAIN), runnables[name]
        shares, numbers = _agreement(one, canvases, expected)
        notes = [one.note] if one.note else []
        if again:
            notes.append(f"timed twice: {again.median_us / 1e3:.3f} ms the second time")
        stages: dict[str, float] = {}
        if one.staged is not None and timing.median_us == ours:
            try:
                stages = _stages(one.staged, clock, setting.seconds / 4)
            except Exception as error:
                notes.append(f"stages not timed: {told(error)}")
        rows.append(
            DetectorRow(
                net=case.net, size=size, batch=case.batch, name=name, ours=mine, median_ms=timing.median_us / 1e3,
                low_ms=timing.low_us / 1e3, high_ms=timing.high_us / 1e3, samples=timing.samples,
                times=timing.median_us / ours if ours else None, matched=shares, detections=numbers,
                stages_us=stages, note="; ".join(notes),
            )
        )  # fmt: skip
    return rows


def _requests(one: Runnable, canvases: Sequence[Tensor]) -> Candidate:
    return Candidate([lambda canvas=canvas: one.request(canvas) for canvas in canvases], graph=False)  # type: ignore[misc]


def _makers(
    module: nn.Module, case: NetCase, setting: NetSetting, canvas: Tensor, late: Callable[[], str]
) -> dict[str, Callable[[], Runnable]]:
    """How each row's runnable is made, ours first; making it runs it, so that what fails, fails here."""

    def ours(layers: str) -> Runnable:
        torch.backends.cudnn.benchmark = True
        form = DenseForm(setting.dtype, layers)
        staged = TorchStaged(module, setting.kernels, case.batch, case.size, form, setting.candidates)
        return _in_a_graph(staged)

    def theirs(form: RequestForm) -> Runnable:
        if form.backbone == "compiled":
            if why := late():
                raise TimeoutError(why)
            if setting.compiled_seconds >= setting.compile_seconds:
                raise TimeoutError(f"torch.compile took {setting.compiled_seconds:.0f} s in the cases before")
            torch._dynamo.reset()
        started = time.perf_counter()
        request = torch_request(module, form)
        request(canvas)
        request(canvas)
        note = ""
        if form.backbone == "compiled":
            _wait(canvas)
            took = time.perf_counter() - started
            setting.compiled_seconds += took
            note = f"compiled in {took:.0f} s"
        return Runnable(request, lambda x: [(one["boxes"].clone(), one["labels"].clone()) for one in request(x)], note)

    makers: dict[str, Callable[[], Runnable]] = {}
    for layers in setting.layers:
        makers[LAYERS[layers]] = lambda layers=layers: ours(layers)  # type: ignore[misc]
    for form in setting.forms:
        makers[str(form)] = lambda form=form: theirs(form)  # type: ignore[misc]
    return makers


def _in_a_graph(staged: TorchStaged) -> Runnable:
    """All stages in one graph; on a CPU, which has none, as they are."""
    run: Callable[[], object] = staged.run
    if staged.images.is_cuda:
        for _ in range(3):
            staged.run()
        torch.cuda.synchronize()
        graph = captured(staged.run)
        run = graph.replay

    def request(canvas: Tensor) -> None:
        staged.images.copy_(canvas)
        run()

    def found(canvas: Tensor) -> list[tuple[Tensor, Tensor]]:
        for value in staged.found:
            value.fill_(-7)
        request(canvas)
        counts = staged.found.num_detections.tolist()
        return [
            (staged.found.boxes[i, :count].clone(), staged.found.labels[i, :count].long())
            for i, count in enumerate(counts)
        ]

    request(staged.images.clone())
    lost = int(staged.found.overflow.sum())
    note = f"{lost} candidates dropped by the cap" if lost else ""
    return Runnable(request, found, note, staged)


@torch.inference_mode()
def _stages(staged: TorchStaged, clock: Clock, seconds: float) -> dict[str, float]:
    """Median microseconds of each stage alone, replayed as a graph of its own on what the one before it left."""
    candidates = {}
    for name, stage in staged.stages():
        if not staged.images.is_cuda:
            candidates[name] = Candidate([stage], graph=False)
            continue
        graph = captured(stage)
        graph.replay()
        torch.cuda.synchronize()  # those behind it are captured on values that are there
        candidates[name] = Candidate([lambda graph=graph: [graph.replay() for _ in range(REPLAYS)]], graph=False)  # type: ignore[misc]
    shared = REPLAYS if staged.images.is_cuda else 1
    timings = clock.measure({name: clock.prepare(one) for name, one in candidates.items()}, seconds)
    return {name: timings[name].median_us / shared for name in candidates}


def _agreement(
    one: Runnable, canvases: Sequence[Tensor], expected: Sequence[list[tuple[Tensor, Tensor]]] | None
) -> tuple[float | None, float]:
    """(share of eager fp32's detections that are found, how many are found per image)."""
    shares, numbers = [], []
    for i, canvas in enumerate(canvases):
        found = one.found(canvas)
        numbers += [len(boxes) for boxes, _ in found]
        if expected is not None:
            shares += [matched(wanted, mine, MIN_IOU) for wanted, mine in zip(expected[i], found, strict=True)]
    return sum(shares) / len(shares) if shares else None, sum(numbers) / len(numbers)


def _wait(canvas: Tensor) -> None:
    if canvas.is_cuda:
        torch.cuda.synchronize()
