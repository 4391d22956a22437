"""Load time, first result and peak memory of one candidate, in a process of its own.

The child imports what that candidate needs and nothing else: an artefact's child never sees PyTorch.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from regionrt.runtime.predictor import Predictor

HOW = (
    "Load (imports and the artefact), the time until the first result, and peak memory (of the whole process, some "
    "requests in) were measured in a fresh process for each."
)


def measure_fresh(
    job: Mapping[str, Any], photos: Sequence[np.ndarray], *, batches: Sequence[int] = (1,), timeout_s: float
) -> dict[str, Any]:
    """Facts about one candidate, or {"failed": why}: never an error, because a candidate that dies is a finding too.

    job: {"kind": "bundle", "path", "backend", "form", "precision", "threads"} or {"kind": "torch", "checkpoint",
    "form", "canvas", "thresholds", "threads", "device"}, and "search" of nets that take proposals. photos: RGB uint8;
    requests go over them in turn, and then, after the memory was read, over a batch of each size of `batches`.
    Facts: load_s, first_request_s (both since the process started), peak_memory_bytes (null where it cannot be read).
    """
    import numpy as np

    import regionrt
    from regionrt.runtime.selective_search import SelectiveSearch
    from regionrt.train.data.proposals import KeptProposals

    from .environment import without_folders

    with tempfile.TemporaryDirectory() as scratch, open(Path(scratch, "stderr"), "w+b") as errors:
        kept = None if job.get("search") is None else KeptProposals(SelectiveSearch.from_json(job["search"]))
        boxes = {f"proposals_{n}": kept(photo) for n, photo in enumerate(photos)} if kept is not None else {}
        arrays: dict[str, Any] = {f"photo_{n}": photo for n, photo in enumerate(photos)} | boxes
        np.savez(Path(scratch, "photos.npz"), **arrays)
        text = json.dumps({**job, "photos": str(Path(scratch, "photos.npz")), "batches": list(batches)})
        root = str(Path(regionrt.__file__).absolute().parent.parent)
        paths = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
        command = [sys.executable, "-m", "regionrt.bench.fresh"]
        env = {**os.environ, "PYTHONPATH": paths}
        try:
            done = subprocess.run(
                command,
                input=text.encode(),
                stdout=subprocess.PIPE,
                stderr=errors,
                cwd=scratch,
                env=env,
                timeout=timeout_s,
            )
        except subprocess.TimeoutExpired:
            return {"failed": f"not done within {timeout_s:.0f} s"}
        answer = done.stdout.decode(errors="replace").strip().splitlines()
        if done.returncode == 0 and answer:
            return json.loads(answer[-1])
        errors.seek(0)
        last = errors.read().decode(errors="replace").strip().splitlines()
        why = last[-1][:300] if last else f"ended with status {done.returncode}"
        return {"failed": without_folders(why)}


def _predictor(job: Mapping[str, Any]) -> Predictor:
    if job["kind"] == "bundle":
        from regionrt.runtime.loading import load

        return load(job["path"], job["backend"], threads=job["threads"], form=job["form"], precision=job["precision"])
    import torch

    from regionrt.export.thresholds import with_thresholds
    from regionrt.runtime.image import Canvas
    from regionrt.train.checkpoint import module_from_checkpoint, read_checkpoint

    from .baseline import torch_baseline
    from .forms import TorchForm
    from .torchvision_forward import TorchvisionForward

    if job["threads"]:
        torch.set_num_threads(job["threads"])
    checkpoint = read_checkpoint(job["checkpoint"])
    module = module_from_checkpoint(checkpoint).to(job["device"])
    if job["thresholds"]:
        module = with_thresholds(module, job["thresholds"])
    canvas = Canvas.from_json(job["canvas"])
    if job["form"] == "torchvision":
        return TorchvisionForward(module, checkpoint.labels, canvas, paste_masks=True)
    return torch_baseline(module, TorchForm(**job["form"]), canvas=canvas, labels=checkpoint.labels)


def main() -> None:
    """The child: a job as JSON on standard input, its facts as JSON on standard output."""
    started = time.perf_counter()
    job = json.load(sys.stdin)
    predict = _predictor(job)
    loaded = time.perf_counter()
    import numpy as np

    from regionrt.runtime.machine import status_bytes

    with np.load(job["photos"]) as stored:
        photos = [stored[name] for name in stored.files if name.startswith("photo_")]
        boxes = [stored[name] for name in stored.files if name.startswith("proposals_")]
    most = predict.proposals.most if predict.proposals is not None else 0
    given = [[found[:most]] for found in boxes] or [[] for _ in photos]  # what `predict` takes after a photo
    asked = time.perf_counter()
    predict(photos[0], *given[0])
    facts: dict[str, Any] = {
        "load_s": loaded - started,
        "first_request_s": loaded - started + time.perf_counter() - asked,
    }
    for photo, proposals in zip(photos, given, strict=True):
        predict(photo, *proposals)
    facts["peak_memory_bytes"] = status_bytes("VmHWM")  # getrusage's `ru_maxrss` of a child starts from its parent's
    for size in job["batches"]:
        places = [i % len(photos) for i in range(size)]
        predict.batch([photos[i] for i in places], *([[given[i][0] for i in places]] if boxes else []))
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
