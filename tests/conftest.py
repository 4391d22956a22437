"""Each of pytest's worker processes keeps to its own cores, so that none waits for another's threads.

What is tested asks how many cores it may use, and starts as many threads, which spin while they wait for each other:
two such processes on the same two cores take two to four times as long as each on one.
"""

import os
from collections.abc import Iterator

import pytest

PINS = hasattr(os, "sched_setaffinity")  # Linux
EVERY_CORE = os.sched_getaffinity(0) if PINS else set()  # before any is given up


def pytest_configure(config: pytest.Config) -> None:
    worker, count = os.environ.get("PYTEST_XDIST_WORKER"), int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    if worker is None or not PINS:
        return
    mine = sorted(EVERY_CORE)[int(worker.removeprefix("gw")) :: count]
    if mine:
        os.sched_setaffinity(0, mine)


@pytest.fixture
def every_core() -> Iterator[None]:
    """For tests of what happens at the same time: their threads are to run at the same time, too."""
    if not PINS:
        yield
        return
    mine = os.sched_getaffinity(0)
    os.sched_setaffinity(0, EVERY_CORE)
    yield
    os.sched_setaffinity(0, mine)
