"""The GPU that the tests here run on: this machine's, and the fake one of tests/fakes, so that a first run on a new GPU
finds the GPU's faults and not the tests'.

On the real one nothing but torch, torchvision, NumPy, pytest and cuda-python with NVRTC is needed:
`python3 -m pytest tests/gpu -m gpu`. It is skipped, and says why, where there is none.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pytest

from regionrt.plugins.native.cuda import FLAGS, write_sources
from regionrt.runtime.errors import BackendError
from regionrt.runtime.gpu import kernels
from regionrt.runtime.machine import why_no_driver


@pytest.fixture(scope="session", autouse=True)
def sources(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The kernels are those of this working tree, whatever `make native` made last."""
    folder, installed = tmp_path_factory.mktemp("sources"), kernels.SOURCES
    write_sources(folder)
    kernels.SOURCES = folder
    yield
    kernels.SOURCES = installed


@pytest.fixture(scope="session")
def real_gpu(sources: None) -> Iterator[Any]:
    why = why_no_driver()
    if why is not None:
        pytest.skip(f"nothing was tested on a GPU: {why}")
    import torch

    if not torch.cuda.is_available():
        pytest.skip("nothing was tested on a GPU: torch finds none (is it a CPU build?)")
    from real_gpu import RealGpu

    gpu = RealGpu()

    def compile_and_keep(op: str) -> None:
        with suppress(BackendError):  # the op's own tests meet it again
            kernels.compiled(op, gpu.cuda.compute_capability, gpu.cuda.driver_version)

    with ThreadPoolExecutor() as pool:  # NVRTC takes most of the time: all ops at once
        list(pool.map(compile_and_keep, FLAGS))
    yield gpu
    gpu.kernels.close()


@pytest.fixture(params=[pytest.param("real", marks=pytest.mark.gpu), "fake"])
def gpu(request: pytest.FixtureRequest) -> Any:
    """See RealGpu; `large`: whether it is a GPU's work."""
    if request.param == "real":
        return request.getfixturevalue("real_gpu")
    from on_gpu import FakeGpu

    fake = FakeGpu()
    fake.large, fake.torch_device = False, "cpu"
    return fake
