"""A measurement in a process of its own: a job as JSON on its standard input, its lines told as they come."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import regionrt
from regionrt.bench.environment import without_folders
from regionrt.runtime.openmp import short_spins

Tell = Callable[[str], None]


def in_child(module: str, job: Mapping[str, Any], limit_seconds: float, tell: Tell) -> tuple[Any, str]:
    """What `python -m module` answers to the job, and ""; or None, and why there is no answer.

    It is stopped after `limit_seconds`, with what it started; `tell` gets its lines.
    """
    with tempfile.TemporaryDirectory() as folder, open(Path(folder, "log"), "w+b") as log:
        answer = Path(folder, "answer.json")
        whole = {**job, "parent": os.getpid(), "answer": str(answer)}
        status, late = _run(module, whole, log, limit_seconds, tell)
        if status == 0 and answer.is_file():
            return json.loads(answer.read_text()), ""
        log.seek(0)
        lines = log.read().decode(errors="replace").strip().splitlines()
    if late:
        return None, f"not done within {limit_seconds:.0f} s"
    return None, without_folders(lines[-1][:400] if lines else f"its process ended with status {status}")


def given_job() -> tuple[dict[str, Any], Tell]:
    """In the child: the job, and what tells its parent a line. The process ends when its parent is gone."""
    job = json.load(sys.stdin)
    threading.Thread(target=_end_with, args=(job["parent"],), daemon=True).start()
    out, sys.stdout = sys.stdout, sys.stderr  # libraries that print must not be taken for our steps
    return job, lambda text: print(text, file=out, flush=True)


def answer(job: Mapping[str, Any], value: Any) -> None:
    """In the child: hands `value` (JSON) over, and ends the process at once: engines that fail as they are torn down
    must not take what was measured with them."""
    Path(job["answer"]).write_text(json.dumps(value))
    sys.stderr.flush()
    os._exit(0)


def _run(module: str, job: dict[str, Any], log: Any, limit_seconds: float, tell: Tell) -> tuple[int, bool]:
    """The child's exit status, and whether it was stopped for being late."""
    root = str(Path(regionrt.__file__).absolute().parent.parent)
    paths = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    child = subprocess.Popen(
        [sys.executable, "-m", module],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        env={**os.environ, **short_spins(), "PYTHONPATH": paths},
        start_new_session=True,  # so that torch.compile's own processes end with it
        text=True,
    )
    assert child.stdin is not None
    assert child.stdout is not None
    late = threading.Event()

    def stop() -> None:
        late.set()
        os.killpg(child.pid, signal.SIGKILL)

    timer = threading.Timer(limit_seconds, stop)
    timer.start()
    try:
        child.stdin.write(json.dumps(job))
        child.stdin.close()
        for line in child.stdout:
            tell(line.strip())
        return child.wait(), late.is_set()
    except BrokenPipeError:  # it died before it read its job
        return child.wait(), late.is_set()
    finally:
        timer.cancel()
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
        child.stdout.close()


def _end_with(parent: int) -> None:
    """Ends this process, and those it started, when its parent is gone: a suite that is stopped leaves nothing behind.

    What it started without a session of its own is in its process group, and ends with that.
    """
    while os.getppid() == parent:
        time.sleep(1)
    if os.getpgrp() == os.getpid():
        os.killpg(os.getpid(), signal.SIGKILL)
    os._exit(1)
