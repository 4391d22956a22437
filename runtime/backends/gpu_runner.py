"""Requests of several threads on one GPU: a pool of workers, and what all runners that take from it have in common."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from regionrt.runtime.errors import BackendError

from .cuda import Cuda
from .gpu_worker import INPUTS, Sessions, Worker

DEFAULT_WORKERS = 2


class PooledRunner:
    """Runs by the contract of `Runner`; inputs may also lie on the GPU already.

    Each thread that runs takes a worker (stream, sessions, buffers); workers are made when they are needed, and kept.
    A subclass sets `cuda` before the first worker is taken, and says what a worker's sessions are.

    Args:
        workers: most requests at once; each has its own GPU memory. ValueError below 1.
    """

    cuda: Cuda
    _never_a_graph: str | None = None
    """Why none of the requests can be captured, where that is known beforehand."""

    def __init__(self, name: str, workers: int) -> None:
        self.name = name
        self._pool = Pool(workers, self._new_worker, self._free)

    def _sessions(self) -> Sessions:
        """For one more worker."""
        raise NotImplementedError

    def _free(self) -> None:
        """Frees what the workers shared, when the last one is gone."""

    def _new_worker(self) -> Worker:
        sessions = self._sessions()
        try:
            return Worker(sessions, self.cuda, self.cuda.stream(), self._never_a_graph)
        except BackendError:
            sessions.close()
            raise

    @property
    def why_no_graph(self) -> str | None:
        """Why requests are not replayed as CUDA graphs; None while nothing speaks against it."""
        return self._pool.first_reason()

    @property
    def replayed(self) -> int:
        """How many requests have been replayed as CUDA graphs, of those that are done."""
        return self._pool.replayed()

    def run(self, images: Any, image_sizes: Any) -> dict[str, np.ndarray]:
        """As `Runner.run`; either may be an array on the GPU (DLPack or `__cuda_array_interface__`).

        Such an array is copied there for a request that is replayed as a graph, and else read where it is.
        """
        values = {"images": images, "image_sizes": image_sizes}
        for name, dtype in INPUTS.items():
            found = getattr(values[name], "dtype", None)
            if isinstance(values[name], np.ndarray) and found != dtype:
                raise BackendError(f"{self.name}: {name}: expected {dtype}, found {found} {list(values[name].shape)}")
        self.cuda.make_current()
        worker = self._pool.take()
        try:
            return worker.run(values)
        finally:
            self._pool.give(worker)

    def close(self) -> None:
        self.cuda.make_current()
        self._pool.close()


class Pool:
    """At most `limit` workers, made on demand. `close` frees the idle ones at once, the others when they come back.

    finish: called once, when the pool is closed and the last worker is gone: to free what they shared.
    """

    def __init__(self, limit: int, make: Callable[[], Worker], finish: Callable[[], None] | None = None) -> None:
        if limit < 1:
            raise ValueError(f"workers: expected at least 1, got {limit}")
        self._limit, self._make, self._finish = limit, make, finish
        self._idle: list[Worker] = []
        self._made = 0
        self._closed = False
        self._changed = threading.Condition()
        self._reason: str | None = None
        self._replayed: dict[int, int] = {}

    def take(self) -> Worker:
        with self._changed:
            while True:
                if self._closed:
                    raise BackendError("this predictor is closed; load the bundle again")
                if self._idle:
                    return self._idle.pop()
                if self._made < self._limit:
                    try:
                        worker = self._make()
                    except BackendError:
                        if self._made == 0:
                            raise
                        self._limit = self._made  # no memory for one more: wait for those that there are
                        continue
                    self._made += 1
                    return worker
                self._changed.wait()

    def give(self, worker: Worker) -> None:
        with self._changed:
            self._reason = self._reason or worker.why_no_graph
            self._replayed[id(worker)] = worker.replayed
            if self._closed:
                self._end(worker)
                self._end_if_empty()
            else:
                self._idle.append(worker)
                self._changed.notify()

    def _end(self, worker: Worker) -> None:
        self._made -= 1  # also of one that cannot be freed: the others, and what they share, are
        worker.close()

    def _end_if_empty(self) -> None:
        if self._made == 0 and self._finish is not None:
            finish, self._finish = self._finish, None
            finish()

    def first_reason(self) -> str | None:
        with self._changed:
            return self._reason

    def replayed(self) -> int:
        with self._changed:
            return sum(self._replayed.values())

    def close(self) -> None:
        with self._changed:
            self._closed = True
            while self._idle:
                self._end(self._idle.pop())
            self._end_if_empty()
            self._changed.notify_all()
