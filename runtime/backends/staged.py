"""The staged form: an engine runs the dense stages; between them native ops run, on the RoIs that are there."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from regionrt.runtime import native
from regionrt.runtime.bundle import Artifact, Manifest
from regionrt.runtime.errors import BackendError
from regionrt.runtime.inputs import inputs_of, request_of

from .staged_buckets import chunks_of
from .staged_ops import OPS, POOLINGS, Setting
from .staged_rows import PooledRows, Rows, packed, pooled_of
from .staged_steps import OUTPUTS, checked_stages, in_order, read_constants


class StageSession(Protocol):
    """One worker's hold on a dense stage."""

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs by name; they may be overwritten by the next run."""
        ...


class OpenStage(Protocol):
    """A dense stage, compiled."""

    feature_type: np.dtype
    """What the engine hands feature maps over in and takes RoI features in: float32, or uint16 for the bits of bf16."""

    def session(self) -> StageSession: ...


class StageEngine(Protocol):
    """What opens dense stages."""

    name: str
    threads: int

    def open(self, path: Path, stage: Mapping[str, Any]) -> OpenStage:
        """`stage`: its entry in the manifest. Raises BackendError if the engine refuses it."""
        ...


class _Worker:
    """What one thread at a time works with: a session of each stage, and the memory that RoI features are put into."""

    def __init__(self, sessions: dict[str, StageSession]) -> None:
        self.sessions = sessions
        self._memory: dict[str, np.ndarray] = {}

    def memory(self, name: str, shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
        """An array of this shape, its content open; the same memory at every call, made larger where it must be."""
        size = int(np.prod(shape))
        held = self._memory.get(name)
        if held is None or held.size < size or held.dtype != dtype:
            held = self._memory[name] = np.empty(size, dtype)
        return held[:size].reshape(shape)


class StagedRunner:
    """Runs an artefact of the form `staged` by the contract of `Runner`.

    Each call takes a worker of its own: several threads share the compiled stages, and nothing that is written to.
    Results do not depend on the number of threads or of workers.
    """

    def __init__(self, manifest: Manifest, artifact: Artifact, engine: StageEngine) -> None:
        self.name = engine.name
        self.threads = engine.threads
        self._stages = {
            stage["name"]: engine.open(manifest.path(stage["file"]), stage) for stage in checked_stages(artifact, OPS)
        }
        self.about: Mapping[str, Any] = getattr(engine, "about", {})
        types = {stage.feature_type for stage in self._stages.values()}
        (feature_type,) = types or {np.dtype(np.float32)}
        constants = read_constants(manifest, artifact)
        self._inputs = inputs_of(artifact.inputs)
        self.steps = in_order([*artifact.stages], [*artifact.ops_between], {*self._inputs, *constants})
        self._constants = constants
        channels_last = frozenset(name for stage in artifact.stages for name in stage["channels_last"])
        self._setting = Setting(self.threads, feature_type, channels_last)
        self._counts_of = {
            name: op["inputs"][-1] for op in artifact.ops_between for name in op["outputs"] if op["op"] in POOLINGS
        }
        images = [stage for stage in artifact.stages if stage["slots"] is None]
        self._features = {name for stage in images for name in stage["channels_last"]}
        self._borrowed = {
            name for stage in images for name in stage["outputs"]
        }  # the engine's memory, not the caller's
        self._by_row = {name for stage in artifact.stages if stage not in images for name in stage["outputs"]}
        self._outputs = tuple(output["name"] for output in artifact.outputs) or OUTPUTS
        self._idle: list[_Worker] = []
        self._lock = threading.Lock()
        self._closed = False

    def run(self, images: np.ndarray, image_sizes: np.ndarray, **proposals: np.ndarray) -> dict[str, np.ndarray]:
        return self._run(request_of(self._inputs, images, image_sizes, proposals), None)

    def profile(
        self, images: np.ndarray, image_sizes: np.ndarray, **proposals: np.ndarray
    ) -> tuple[dict[str, np.ndarray], dict[str, float]]:
        """What `run` returns, and the seconds spent in each step, by its name."""
        spent: dict[str, float] = {}
        request = request_of(self._inputs, images, image_sizes, proposals)
        return self._run(request, spent.__setitem__), spent

    def _run(
        self, request: Mapping[str, np.ndarray], tell: Callable[[str, float], None] | None
    ) -> dict[str, np.ndarray]:
        values: dict[str, Any] = {**self._constants, **request}
        with self._worker() as worker:
            for step in self.steps:
                start = time.perf_counter()
                values.update(self._step(worker, step, values))
                if tell is not None:  # what a step costs is not to be seen in another one
                    pooled = {n: values[n] for n in step["outputs"] if isinstance(values[n], PooledRows)}
                    values.update({n: rows.at_once() for n, rows in pooled.items()})
                    tell(step["name"], time.perf_counter() - start)
            slots = values["boxes"].shape[1] if "boxes" in values else 0  # label maps have no rows
            return {name: self._owned(name, values[name], slots) for name in self._outputs if name in values}

    def _owned(self, name: str, value: Any, slots: int) -> np.ndarray:
        """An output that the next request does not write over."""
        if isinstance(value, PooledRows):
            value = value.whole()
        if isinstance(value, Rows):
            return value.padded(slots)
        return value.copy() if name in self._borrowed else value

    def alone(self, number: int, values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """One of `steps` on given values, for who looks for the step that errs.

        `values` are as a whole graph has them: feature maps float32 [N, C, H, W], what belongs to RoIs [N, slots, …].
        So are the outputs, whose rows behind the counts are copied from `values`.
        """
        step = self.steps[number]
        given = {**values, **self._constants}
        given |= {name: self._handed_over(step, name, values) for name in step["inputs"] if name not in self._constants}
        with self._worker() as worker:
            found = self._step(worker, step, given)
            return {name: self._as_whole(name, value, values[name]) for name, value in found.items()}

    def _handed_over(self, step: Mapping[str, Any], name: str, values: Mapping[str, np.ndarray]) -> Any:
        """A whole graph's value as the steps hand it over."""
        if name in self._features:
            last = np.ascontiguousarray(values[name].transpose(0, 2, 3, 1))
            return native.narrowed(last, self._setting.feature_type)
        if name in self._counts_of:
            rows = packed(values[name], values[self._counts_of[name]])
            if name in step["channels_last"]:
                rows = Rows(rows.data.transpose(0, 2, 3, 1), rows.counts)
            return Rows(native.narrowed(np.ascontiguousarray(rows.data), self._setting.feature_type), rows.counts)
        if name in self._by_row:
            return packed(values[name], values[step["inputs"][-2]])  # RegionDetections: the counts of its RoIs
        return values[name]

    def _as_whole(self, name: str, value: Any, like: np.ndarray) -> np.ndarray:
        """The way back; `like` fills the rows behind the counts."""
        if isinstance(value, PooledRows):
            value = value.whole()
        if isinstance(value, Rows):
            data = native.widened(value.data)
            rows = Rows(data.transpose(0, 3, 1, 2) if name in self._setting.channels_last else data, value.counts)
            whole = like.copy()
            for image, count in enumerate(rows.counts):
                whole[image, :count] = rows.of(image)
            return whole
        return native.widened(value).transpose(0, 3, 1, 2) if name in self._features else value.copy()

    @contextmanager
    def _worker(self) -> Iterator[_Worker]:
        with self._lock:
            if self._closed:
                raise BackendError(f"{self.name}: this predictor is closed; load the bundle again")
            worker, stages = self._idle.pop() if self._idle else None, self._stages  # close() leaves none of them
        worker = worker or _Worker({name: stage.session() for name, stage in stages.items()})
        yield worker  # one that an error has passed through is not used again
        with self._lock:
            if not self._closed:
                self._idle.append(worker)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._idle.clear()
            self._stages = {}

    def _step(self, worker: _Worker, step: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
        if "op" in step:
            return OPS[step["op"]](self._setting, step, values)
        if step["slots"] is not None:
            return self._dense_rows(worker, step, values)
        return worker.sessions[step["name"]].run({name: values[name] for name in step["inputs"]})

    def _dense_rows(self, worker: _Worker, step: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
        """A stage on rows: packed, some at a time, rounded up to one of a few numbers. RoIs that share a row share what
        the stage makes of it."""
        (counts_name,) = {self._counts_of[name] for name in step["inputs"] if name in self._counts_of}
        counts = values[counts_name]
        given, places = self._rows_given(step, values, counts)
        rows = given[step["inputs"][0]].number
        if rows == 0:
            shapes = {name: step["shapes"][name][2:] for name in step["outputs"]}
            return {name: Rows(np.zeros((0, *shape), np.float32), counts) for name, shape in shapes.items()}
        sizes = chunks_of(step, rows)
        made: dict[str, np.ndarray] = {}
        start = 0
        for size in sizes:
            feeds = {name: self._some(worker, step, name, given[name], start, start + size) for name in step["inputs"]}
            for name, some in worker.sessions[step["name"]].run(feeds).items():
                if start == 0:
                    made[name] = some if len(sizes) == 1 else np.empty((sum(sizes), *some.shape[1:]), some.dtype)
                if len(sizes) > 1:
                    made[name][start : start + size] = some
            start += size
        return {
            name: Rows(data[:rows, 0] if places is None else data[:rows, 0][places], counts)
            for name, data in made.items()
        }

    def _rows_given(
        self, step: Mapping[str, Any], values: Mapping[str, Any], counts: np.ndarray
    ) -> tuple[dict[str, PooledRows], np.ndarray | None]:
        """The inputs of a stage on rows, and the `places` of what they have in common; None: each RoI has its row."""
        if len(step["inputs"]) == 1 and isinstance(values[step["inputs"][0]], PooledRows):
            (name,) = step["inputs"]
            return {name: values[name]}, values[name].places
        given = {}
        for name in step["inputs"]:
            value = values[name]
            rows = value.whole() if isinstance(value, PooledRows) else value
            given[name] = pooled_of(rows if isinstance(rows, Rows) else packed(rows, counts))
        return given, None

    def _some(
        self, worker: _Worker, step: Mapping[str, Any], name: str, value: PooledRows, start: int, stop: int
    ) -> np.ndarray:
        """Rows [start, stop) of a stage's input, as the stage takes them: zeros behind the real ones."""
        rows = min(stop, value.number) - start
        some = worker.memory(name, (stop - start, *value.shape), value.dtype)
        value.into(some[:rows], start)
        some[rows:] = 0
        return some if name in step["channels_last"] else some.reshape(len(some), 1, *value.shape)
