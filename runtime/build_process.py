"""The parent's side of a build: start the child, hear its answers, turn whatever becomes of it into one clear error."""

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

from .child import module_command
from .errors import BackendError

_STDERR_TAIL = 4096


def run_build(
    job: dict[str, Any], timeout_s: float, progress: Callable[[str, float], None] | None = None
) -> dict[str, Any]:
    """Run one build job (see `build_child`) in a child process and return the facts that it reports.

    The child is killed when it takes longer than `timeout_s` and whenever this function is left by an exception, Ctrl-C
    included; it ends by itself when this process is killed. Raises BackendError with TensorRT's last errors in it.
    """
    command, environment = module_command("build_child")
    with tempfile.TemporaryDirectory() as scratch, open(Path(scratch, "stderr"), "w+b") as errors:
        _link_library(job["module"], Path(scratch), environment)
        child = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            cwd=scratch,  # `-m` puts the working folder first on sys.path: a stranger's numpy.py must not stand there
            env=environment,
            start_new_session=True,  # Ctrl-C is for this process alone, which then ends the child
        )
        try:
            return _listen(child, job, timeout_s, progress, errors)
        finally:
            child.kill()
            child.wait()
            for pipe in (child.stdin, child.stdout):
                if pipe is not None:
                    pipe.close()


def _link_library(module: str, folder: Path, environment: dict[str, str]) -> None:
    """Let the child find TensorRT for RTX by the name under which its parser opens it once there are plugins.

    The wheel holds `libtensorrt_rtx.so.1` only, and a parser that does not find `libtensorrt_rtx.so` ends the process.
    The loader reads LD_LIBRARY_PATH when a process starts, so it cannot be mended in the child.
    """
    spec = find_spec(f"{module}_libs")
    for root in (spec.submodule_search_locations or ()) if spec is not None else ():
        for library in sorted(Path(root).glob(f"lib{module}.so.*")):
            link = folder / f"lib{module}.so"
            if not (Path(root) / link.name).exists() and not link.is_symlink():
                link.symlink_to(library.absolute())
                path = (str(folder), environment.get("LD_LIBRARY_PATH", ""))
                environment["LD_LIBRARY_PATH"] = os.pathsep.join(filter(None, path))


def _listen(
    child: subprocess.Popen[bytes],
    job: dict[str, Any],
    timeout_s: float,
    progress: Callable[[str, float], None] | None,
    errors: IO[bytes],
) -> dict[str, Any]:
    deadline = time.monotonic() + timeout_s
    lines: queue.Queue[bytes | None] = queue.Queue()
    threading.Thread(target=_read, args=(child.stdout, lines), daemon=True).start()
    told: list[str] = []  # TensorRT's errors, kept here because the child may not live to repeat them
    assert child.stdin is not None
    try:
        child.stdin.write(json.dumps(job).encode() + b"\n")
        child.stdin.flush()  # stays open: its end tells the child that this process is gone
    except BrokenPipeError:
        pass  # the child died at once; the end of its answers says how
    while True:
        try:
            line = lines.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            raise BackendError(
                f"the build took longer than {timeout_s:g} s and was stopped{_quote(told)}; give it more time "
                "(--timeout) or a lower --optimization-level"
            ) from None
        if line is None or not line.endswith(b"\n"):  # it ended, maybe in the middle of an answer
            raise BackendError(_obituary(child, told, errors))
        answer = json.loads(line)
        if "done" in answer:
            return answer["done"]
        if "error" in answer:
            raise BackendError(answer["error"])
        if "log" in answer:
            level, text = answer["log"]
            if level.endswith("ERROR"):
                told.append(text)
            if job["verbose"]:
                print(f"{level}: {text}", file=sys.stderr)
        elif progress is not None:
            progress(*answer["progress"])


def _read(stream: IO[bytes] | None, lines: "queue.Queue[bytes | None]") -> None:
    try:
        for line in stream or ():
            lines.put(line)
    except ValueError:
        pass  # the pipe was closed because nobody listens any more
    lines.put(None)


def _obituary(child: subprocess.Popen[bytes], told: list[str], errors: IO[bytes]) -> str:
    """What to say of a child that ended without an answer."""
    status = child.wait()
    errors.seek(0, 2)
    errors.seek(max(0, errors.tell() - _STDERR_TAIL))
    tail = [text for line in errors.read().decode(errors="replace").splitlines() if (text := line.strip())]
    if status < 0:
        name = signal.Signals(-status).name
        why = f"was ended by {name}"
        if -status == signal.SIGKILL:
            why += " (Linux does that when memory runs out: close other programs, or build on a larger machine)"
    else:
        why = f"ended with status {status}"
    return f"the process that builds the engine {why}{_quote(told + tail[-2:])}"


def _quote(messages: list[str]) -> str:
    return (
        f"; its last messages: {' | '.join(' '.join(text.split()) for text in messages[-3:])[:900]}" if messages else ""
    )
