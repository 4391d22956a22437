"""Each of pytest's worker processes keeps to its own cores, so that none waits for another's threads.

What is tested asks how many cores it may use, and starts as many threads, which spin while they wait for each other:
two such processes on the same two cores take two to four times as long as each on one.
"""

import os

import pytest


def pytest_configure(config: pytest.Config) -> None:
    worker, count = os.environ.get("PYTEST_XDIST_WORKER"), int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    if worker is None or not hasattr(os, "sched_setaffinity"):
        return
    mine = sorted(os.sched_getaffinity(0))[int(worker.removeprefix("gw")) :: count]
    if mine:
        os.sched_setaffinity(0, mine)
