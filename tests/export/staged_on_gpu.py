"""Bundles of the form staged on a fake GPU: fake engines of their stages, and the runner."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import kernels
import onnx
from fake_cuda import FakeDriver
from fake_tensorrt import FakeTensorRT, write_plan

from regionrt.runtime.backends.cuda import Cuda, CudaPython
from regionrt.runtime.backends.staged_cuda import StagedCudaRunner
from regionrt.runtime.backends.tensorrt_stages import TensorRTStages
from regionrt.runtime.bundle import Artifact, Manifest
from regionrt.runtime.gpu.kernels import Kernels


def stage_profile(stage: Any, canvas: Any, batches: tuple[int, int]) -> dict[str, Any]:
    """One that takes `batches` images, from the least to the most, and all canvases."""
    profile = {}
    for name in stage["inputs"]:
        shape = stage["shapes"][name]
        rows = stage["slots"] or 1
        low, high = ([n * rows, *shape[1:]] for n in batches)
        if name == "images":
            step = 2 * canvas.multiple if canvas.dynamic else None
            low[1:3] = [step or canvas.height, step or canvas.width]
            high[1:3] = [canvas.height, canvas.width]
        profile[name] = {"min": low, "opt": high, "max": high}
    return profile


@dataclass
class Machine:
    """A fake GPU with fake engines of a bundle's stages, in `folder`."""

    manifest: Manifest
    artifact: Artifact
    driver: FakeDriver
    trt: FakeTensorRT

    @classmethod
    def of(
        cls, bundle: Path, folder: Path, flavour: str = "tensorrt-rtx", batches: tuple[int, int] = (1, 4)
    ) -> Machine:
        manifest = Manifest.read(bundle)
        source = next(a for a in manifest.artifacts if a.form == "staged")
        stages, files = [], []
        for stage in source.stages:
            model = onnx.load(bundle / stage["file"])
            profile = stage_profile(stage, manifest.canvas, batches)
            path = folder / f"{stage['name']}.engine"
            path.write_bytes(write_plan(model, [profile]))
            stages.append({**stage, "file": str(path)})
            files.append(str(path))
        canvas = manifest.canvas
        least, most = ([n, canvas.height, canvas.width, 3] for n in batches)
        profile = {"images": {"min": least, "opt": least, "max": most}}
        constants = [name for name in source.files if name.endswith(".npz")]
        artifact = replace(
            source, backend=flavour, stages=tuple(stages), files=(*files, *constants), profiles=(profile,)
        )
        driver = FakeDriver(memory=1 << 30)
        return cls(_Anywhere(manifest), artifact, driver, FakeTensorRT(driver, flavour))  # type: ignore[arg-type]

    def runner(self, cuda: Cuda | None = None, **options: Any) -> StagedCudaRunner:
        cuda = cuda or CudaPython(self.driver)
        engine = TensorRTStages(self.trt.flavour, cuda, self.trt)
        return StagedCudaRunner(
            self.manifest, self.artifact, engine, cuda, kernels=Kernels(cuda, kernels.cubin), **options
        )


class _Anywhere:
    """A manifest whose engines may lie outside."""

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest

    def __getattr__(self, name: str) -> Any:
        return getattr(self._manifest, name)

    def path(self, name: str) -> Path:
        return Path(name) if name.startswith("/") else self._manifest.path(name)
