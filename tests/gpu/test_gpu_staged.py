"""The form staged with torch-run dense stages: first run, captured run, replay, against eager on the same device."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_detectors import NOTHING, faster, mask, photos
from torch_stages import OnFakeGpu, OnRealGpu, TorchStages, described

from regionrt.runtime.backends.staged_cuda import StagedCudaRunner
from regionrt.runtime.bundle import Artifact
from regionrt.train.models.region import canvas_of, eager

IMAGES = [*photos([(120, 70), (64, 96), (90, 90)], seed=5), NOTHING]
NETS = {"faster": lambda: (faster(), (64, 96), False), "mask": lambda: (mask(), (96, 128), True)}
"""Module, canvas, whether that is dynamic: then anchors come from the first stage."""


@pytest.fixture(autouse=True)
def whole_fp32(monkeypatch):
    """Convolutions keep all bits: else scores of eager itself move with the batch."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


class Staged:
    """A tiny detector on a GPU: the runner under test, and eager."""

    def __init__(self, gpu, net: str, folder: Path) -> None:
        module, size, dynamic = NETS[net]()
        self.canvas = canvas_of(module, size, dynamic)
        stages, ops, constants = described(module, self.canvas, 3840 if gpu.large else 128)  # empty blocks take time
        np.savez(folder / "constants.npz", **constants)
        files = (*(stage["file"] for stage in stages), "constants.npz")
        profile = {"images": {"opt": (1, *size, 3), "max": (4, *size, 3)}}
        artifact = Artifact(
            "torch", "staged", "fp32", files, profiles=(profile,), stages=tuple(stages), ops_between=tuple(ops)
        )
        manifest = SimpleNamespace(canvas=self.canvas, path=lambda name: folder / name)
        self.module = module.to(gpu.torch_device)
        self.engine = TorchStages(self.module, OnRealGpu() if gpu.large else OnFakeGpu(gpu.driver))
        kernels = None if gpu.large else gpu.kernels  # None: those that the runner compiles itself
        self.runner = StagedCudaRunner(manifest, artifact, self.engine, gpu.cuda, kernels=kernels)

    def placed(self, few) -> tuple[np.ndarray, np.ndarray]:
        images, sizes, _ = self.canvas.place([photo for _, photo in few])
        return images, sizes

    def check(self, found, images, sizes) -> None:
        """Within 1e-4, the tolerance of stages in fp32; sums have another order where rows are padded."""
        values = eager(self.module, torch.from_numpy(images), torch.from_numpy(sizes), stages=False)
        wanted = {name: value.cpu().numpy() for name, value in values.items()}
        assert found.keys() == wanted.keys()
        for name in ("num_detections", "labels", "overflow"):
            np.testing.assert_array_equal(found[name], wanted[name])
        for name, atol in (("boxes", 1e-4 * 128), ("scores", 1e-4), ("masks", 1e-4)):
            if name in found:
                assert (found[name].shape, found[name].dtype) == (wanted[name].shape, wanted[name].dtype)
                np.testing.assert_allclose(found[name], wanted[name], atol=atol, rtol=0)


@pytest.fixture(params=[*NETS])
def staged(request, gpu, tmp_path):
    made = Staged(gpu, request.param, tmp_path)
    yield made
    made.runner.close()


def test_first_run_captured_run_and_replay_are_eagers(staged):
    """Batches of three and one, by turns, with nothing in one of the photos; other pixels at each turn."""
    stages, runs = len(staged.runner._stages), Counter()
    for turn in range(3):
        for few in (IMAGES[1:], IMAGES[:1], [NOTHING]):  # the most first: memory that grows costs the graphs in it
            few = [(name, photo[:, ::-1] if turn % 2 else photo) for name, photo in few]
            images, sizes = staged.placed(few)
            before = staged.engine.enqueued
            found = staged.runner.run(images, sizes)
            assert staged.runner.why_no_graph is None
            replayed = runs[images.shape] > 1
            assert staged.engine.enqueued - before == (0 if replayed else stages), "a replay asks nothing of the stages"
            runs[images.shape] += 1
            staged.check(found, images, sizes)
            assert (found["num_detections"] > 3).tolist() == [name != "nothing" for name, _ in few]


def test_arrays_on_the_gpu_are_read_where_they_are(staged, gpu):
    first, second = staged.placed(IMAGES[:1]), staged.placed(IMAGES[1:2])
    for _ in range(2):
        staged.runner.run(*first)
    there = [_on_gpu(gpu, array) for array in second]
    staged.check(staged.runner.run(*there), *second)
    staged.check(staged.runner.run(*first), *first)  # its own memory again, in the graph


def _on_gpu(gpu, array: np.ndarray):
    if gpu.large:
        source = torch.from_numpy(array).cuda()
        there = torch.zeros_like(source)
        torch.cuda.synchronize()
        torch.cuda._sleep(200_000_000)  # about 0.1 s: who does not wait for torch's stream reads zeros
        return there.copy_(source)
    placed = gpu.put(array)
    interface = {"shape": array.shape, "typestr": array.dtype.str, "data": (placed.address, False), "version": 3}
    return SimpleNamespace(shape=array.shape, dtype=array.dtype, __cuda_array_interface__=interface)
