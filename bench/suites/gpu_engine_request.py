"""One artefact of a bundle, measured in a process of its own: what a request takes, and what it finds.

The child imports the runtime and the artefact's library, no torch: what they leave on the GPU goes with it, what aborts
in native code or never ends costs the child. A request is what the Predictor executes: from a uint8 canvas, on the GPU
where the backend takes it there, else in the host's memory, to outputs in the host's memory, by the wall clock.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from regionrt.bench.environment import without_folders
from regionrt.bench.errors import BenchError
from regionrt.runtime.clock import TimingOptions, measure
from regionrt.runtime.errors import RegionRTError
from regionrt.runtime.gpu.placing import CanvasOnGpu
from regionrt.runtime.loading import load
from regionrt.runtime.predictor import Predictor, Prepared

Found = tuple[np.ndarray, np.ndarray]
"""Of one image: boxes float32 [D, 4] in pixels of the canvas, labels [D]."""
WARMUP_SECONDS = 0.5
_REASON = 600  # characters of an error that are kept: it names what was built, for what, and the command that mends it


@dataclass(frozen=True)
class Job:
    """Which artefact, as `load` takes it, and how long it is timed (0: it is only run)."""

    bundle: str
    backend: str
    form: str
    precision: str
    provider: str | None = None
    seconds: float = 0.6


@dataclass(frozen=True)
class Measured:
    """Milliseconds per request: median and quartiles. cuda_graph: "yes", or why no request was replayed as one."""

    found: Sequence[Found]
    median_ms: float | None = None
    low_ms: float | None = None
    high_ms: float | None = None
    samples: int = 0
    cuda_graph: str = ""
    note: str = ""


Measure = Callable[[Job, Sequence[np.ndarray], float], Measured]


def measure_in_child(job: Job, canvases: Sequence[np.ndarray], timeout_s: float) -> Measured:
    """`measured` in a fresh process. canvases: uint8 [N, H, W, 3]. BenchError with the reason if there is no answer."""
    import regionrt

    with tempfile.TemporaryDirectory() as scratch, open(Path(scratch, "stderr"), "w+b") as errors:
        np.savez(Path(scratch, "canvases.npz"), *canvases)
        root = str(Path(regionrt.__file__).absolute().parent.parent)
        paths = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
        command = [sys.executable, "-m", "regionrt.bench.suites.gpu_engine_request", scratch]
        try:
            done = subprocess.run(
                command, input=json.dumps(asdict(job)).encode(), stdout=errors, stderr=errors, cwd=scratch,
                env={**os.environ, "PYTHONPATH": paths}, timeout=timeout_s,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise BenchError(f"not loaded and measured within {timeout_s:.0f} s") from None
        answer = Path(scratch, "answer.json")
        if not answer.is_file():
            errors.seek(0)
            raise BenchError(_obituary(done.returncode, errors.read().decode(errors="replace")))
        facts = json.loads(answer.read_text(encoding="utf-8"))
        if "failed" in facts:
            raise BenchError(facts["failed"])
        with np.load(Path(scratch, "found.npz")) as stored:
            arrays = [stored[f"arr_{i}"] for i in range(len(stored.files))]
        return Measured(list(zip(arrays[::2], arrays[1::2], strict=True)), **facts)


def _obituary(status: int, told: str) -> str:
    how = f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
    lines = [text for line in told.splitlines() if (text := line.strip())]
    last = f"; its last words: {' | '.join(lines[-2:])}" if lines else ""
    return without_folders(f"the process that loads and measures it {how}{last}")[:_REASON]


def measured(job: Job, canvases: Sequence[np.ndarray]) -> Measured:
    """Loads and runs the artefact in this process. RegionRTError where it cannot run here."""
    with (
        load(job.bundle, job.backend, form=job.form, precision=job.precision, provider=job.provider) as predict,
        _placed(predict, canvases) as requests,
    ):
        outputs = [predict.execute(request) for request in requests]
        found = [
            (each["boxes"][i, :count], each["labels"][i, :count])
            for each in outputs
            for i, count in enumerate(each["num_detections"])
        ]
        note = _note(predict, sum(int(each["overflow"].sum()) for each in outputs))
        if not job.seconds:
            return Measured(found, note=note)
        turns = itertools.cycle(requests)
        options = TimingOptions(max(3, len(requests)), WARMUP_SECONDS, None, job.seconds, least_rounds=7)
        timing = measure({"request": lambda: predict.execute(next(turns))}, options)["request"]
        kept = [value for value, keep in zip(timing.samples_ms, timing.kept, strict=True) if keep]
        low, median, high = (float(value) for value in np.percentile(kept, [25, 50, 75]))
        if timing.noisy:
            note = "; ".join(filter(None, (note, "most requests were disturbed by other load")))
        return Measured(found, median, low, high, len(kept), _cuda_graph(predict, requests[0]), note)


@contextlib.contextmanager
def _placed(predict: Predictor, canvases: Sequence[np.ndarray]) -> Iterator[list[Prepared]]:
    """Requests for the canvases, which lie on the GPU where the runner reads them there."""
    cuda = getattr(predict.runner, "cuda", None)
    sizes = [np.tile(np.array(canvas.shape[1:3], np.int32), (len(canvas), 1)) for canvas in canvases]
    if cuda is None:
        yield [Prepared(canvas, size, []) for canvas, size in zip(canvases, sizes, strict=True)]
        return
    there: list[int] = []
    try:
        images = [CanvasOnGpu(_upload(cuda, canvas, there), canvas.shape) for canvas in canvases]
        yield [Prepared(image, size, []) for image, size in zip(images, sizes, strict=True)]
    finally:
        for address in there:
            cuda.free(address)


def _upload(cuda: Any, canvas: np.ndarray, there: list[int]) -> int:
    there.append(cuda.allocate(canvas.nbytes))
    host, stream = cuda.pinned(canvas.nbytes), cuda.stream()
    try:
        host[:] = canvas.ravel()
        cuda.upload(there[-1], host, stream)
        cuda.synchronize(stream)
    finally:
        cuda.free_stream(stream)
        cuda.free_pinned(host)
    return there[-1]


def _cuda_graph(predict: Predictor, request: Prepared) -> str:
    """Whether one more request is replayed as a graph."""
    runner: Any = predict.runner
    if not hasattr(runner, "replayed"):
        return "no: its sessions launch each kernel themselves"
    before = runner.replayed
    predict.execute(request)
    return "yes" if runner.replayed > before else f"no: {runner.why_no_graph or 'its kernels are not ready for one'}"


def _note(predict: Predictor, lost: int) -> str:
    nodes = predict.about.get("nodes", {})
    told = [f"nodes in {', '.join(f'{name} {count}' for name, count in nodes.items())}"] if nodes else []
    return "; ".join(told + ([f"{lost} candidates dropped by the cap"] if lost else []))


def main() -> None:
    """The child: a job on standard input, the answer in files of the folder that is the argument."""
    folder = Path(sys.argv[1])
    job = Job(**json.load(sys.stdin))
    with np.load(folder / "canvases.npz") as stored:
        canvases = [stored[f"arr_{i}"] for i in range(len(stored.files))]
    try:
        answer = measured(job, canvases)
    except Exception as error:  # whatever a library raises: here is the border where it becomes one line
        kind = "" if isinstance(error, RegionRTError) else f"{type(error).__name__}: "
        facts: dict[str, Any] = {"failed": without_folders(f"{kind}{' '.join(str(error).split())}")[:_REASON]}
    else:
        np.savez(folder / "found.npz", *(array for each in answer.found for array in each))
        facts = {name: value for name, value in vars(answer).items() if name != "found"}
    (folder / "unfinished.json").write_text(json.dumps(facts), encoding="utf-8")
    (folder / "unfinished.json").replace(folder / "answer.json")
    sys.stdout.flush()
    os._exit(0)  # native libraries have crashed while they tidied up; the answer is out


if __name__ == "__main__":
    main()
