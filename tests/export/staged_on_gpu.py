"""Bundles of the form staged on a fake GPU: fake engines of their stages, and the runner."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import kernels
import numpy as np
import onnx
from fake_cuda import FakeDriver
from fake_tensorrt import FakeTensorRT, write_plan

from regionrt.runtime.backends.cuda import Cuda, CudaPython
from regionrt.runtime.backends.staged_cuda import StagedCudaRunner
from regionrt.runtime.backends.tensorrt_stages import TensorRTStages
from regionrt.runtime.build_parts import MadePart, Part, parts_of
from regionrt.runtime.build_settings import pyramid_channels_first
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
        cls,
        bundle: Path,
        folder: Path,
        flavour: str = "tensorrt-rtx",
        batches: tuple[int, int] = (1, 4),
        as_built: bool = True,
    ) -> Machine:
        """`as_built`: with engines that take what the kernels write, as `regionrt build` makes them."""
        manifest = Manifest.read(bundle)
        source = next(a for a in manifest.artifacts if a.form == "staged")
        stages, files = [], []
        for part in parts_of(source):
            assert part.stage is not None
            stage, model = dict(part.stage), onnx.load(bundle / part.stage["file"])
            if as_built:
                stage = MadePart(part, stage["file"], {}).entry()
                take_channels_last(model, part)
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


def take_channels_last(model: onnx.ModelProto, part: Part) -> None:
    """The stage's file as the build changes its network: inputs as the kernels write them."""
    for name, bins in part.channels_last.items():
        (value,) = (value for value in model.graph.input if value.name == name)
        sides = value.type.tensor_type.shape.dim
        first = [side.dim_value for side in sides][1:]
        moved = f"{name}.channels_first"
        for node in model.graph.node:
            node.input[:] = [moved if given == name else given for given in node.input]
        if bins:
            cells = sum(side * side for side in bins)
            last, order = [cells, first[-1] // cells], pyramid_channels_first(bins, first[-1] // cells)
        else:
            _, channels, height, width = first
            last = [height, width, channels]
            order = np.arange(channels * height * width).reshape(last).transpose(2, 0, 1).ravel()
        numbers = {"flat": [-1, order.size], "order": order, "back": [-1, *first]}
        model.graph.initializer.extend(
            onnx.numpy_helper.from_array(np.asarray(n, np.int64), f"{moved}.{key}") for key, n in numbers.items()
        )
        nodes = [
            onnx.helper.make_node("Reshape", [name, f"{moved}.flat"], [f"{moved}.rows"]),
            onnx.helper.make_node("Gather", [f"{moved}.rows", f"{moved}.order"], [f"{moved}.moved"], axis=1),
            onnx.helper.make_node("Reshape", [f"{moved}.moved", f"{moved}.back"], [moved]),
        ]
        kept = [*nodes, *model.graph.node]
        del model.graph.node[:]
        model.graph.node.extend(kept)
        rows = sides[0].dim_param or sides[0].dim_value
        kind = value.type.tensor_type.elem_type
        value.CopyFrom(onnx.helper.make_tensor_value_info(name, kind, [rows, *last]))


class _Anywhere:
    """A manifest whose engines may lie outside."""

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest

    def __getattr__(self, name: str) -> Any:
        return getattr(self._manifest, name)

    def path(self, name: str) -> Path:
        return Path(name) if name.startswith("/") else self._manifest.path(name)
