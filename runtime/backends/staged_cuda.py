"""The staged form on a GPU: dense stages in an engine, our kernels between them, on one stream without the host.

Everything runs on padded rows, with their counts on the GPU: nothing has a size that depends on data, so that a request
is one copy in, one CUDA graph, one copy out. The stages come from outside (`GpuStageEngine`), as CUDA does.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from regionrt.runtime.bundle import Artifact, Manifest
from regionrt.runtime.errors import BackendError
from regionrt.runtime.gpu.arrays import SIZES, GpuArray
from regionrt.runtime.gpu.kernels import Kernels
from regionrt.runtime.gpu.steps import OPS, Layouts, why_no_kernels
from regionrt.runtime.inputs import inputs_of

from .cuda import Cuda
from .gpu_runner import DEFAULT_WORKERS, PooledRunner
from .gpu_stages import GpuStage, GpuStageEngine
from .staged_sessions import StagedSessions
from .staged_steps import checked_stages, in_order, read_constants


class StagedCudaRunner(PooledRunner):
    """Runs an artefact of the form `staged` by the contract of `Runner`; inputs may also lie on the GPU already.

    The kernels are compiled and a first session is opened here, so that what cannot run says so now.

    Args:
        workers: most requests at once; each has its own GPU memory.
        max_batch: most images of a request; None: what the artefact's profiles take.
        kernels: in the place of those that NVRTC compiles.

    Raises:
        BackendError: an op without a CUDA form, what the engine refuses, a limit beyond the kernels', no NVRTC, too
            little GPU memory.
        BundleError: stages that are not described as they should be.
    """

    def __init__(
        self,
        manifest: Manifest,
        artifact: Artifact,
        engine: GpuStageEngine,
        cuda: Cuda,
        *,
        workers: int = DEFAULT_WORKERS,
        max_batch: int | None = None,
        kernels: Kernels | None = None,
    ) -> None:
        if why := why_no_kernels(artifact.ops_between):
            raise BackendError(f"{artifact}: {why}")
        super().__init__(engine.name, workers)
        self.cuda, self._engine = cuda, engine
        profiles = [profile["images"] for profile in artifact.profiles]
        canvas = manifest.canvas
        usual = tuple(profiles[0]["opt"]) if profiles else (1, canvas.height, canvas.width, 3)
        self.max_batch = max_batch or max((profile["max"][0] for profile in profiles), default=1)
        cuda.make_current()
        self._kernels = kernels or Kernels(cuda)
        self._constants: dict[str, GpuArray] = {}
        self._stages: dict[str, GpuStage] = {}
        try:
            entries = checked_stages(artifact, OPS)
            arrays = read_constants(manifest, artifact)
            self.inputs = inputs_of(artifact.inputs)
            self._steps = in_order([*entries], [*artifact.ops_between], {*self.inputs, *arrays})
            self._layouts = Layouts(frozenset(name for stage in entries for name in stage["channels_last"]))
            for stage in entries:
                self._stages[stage["name"]] = engine.open(manifest.path(stage["file"]), stage)
            self._upload(arrays)
            worker = self._pool.take()
            try:
                worker.session(self._usual_shapes(artifact, usual))
            finally:
                self._pool.give(worker)
        except BaseException:
            self._pool.close()
            raise
        self.about = {
            **engine.about,
            "device": f"{cuda.device_name} (compute capability {cuda.compute_capability})",
            "cuda": cuda.library,
            "workers": workers,
        }

    def _usual_shapes(self, artifact: Artifact, images: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        """Of all inputs, where `images` is [N, H, W, 3]: as the manifest describes them, with N images."""
        described = {entry["name"]: entry["shape"][1:] for entry in artifact.inputs}
        rows = {name: (images[0], *described.get(name, ())) for name in self.inputs}
        return rows | {"images": images, "image_sizes": (images[0], 2)}

    def _upload(self, arrays: Mapping[str, np.ndarray]) -> None:
        stream = self.cuda.stream()
        try:
            for name, array in arrays.items():
                if array.dtype.name not in SIZES:
                    raise BackendError(
                        f"{name}: constants of type {array.dtype} are not known; export the bundle again"
                    )
                address = self.cuda.allocate(array.nbytes)
                self._constants[name] = GpuArray(address, array.shape, array.dtype.name)
                host = self.cuda.pinned(array.nbytes)
                try:
                    host[:] = np.ascontiguousarray(array).view(np.uint8).ravel()
                    self.cuda.upload(address, host, stream)
                    self.cuda.synchronize(stream)
                finally:
                    self.cuda.free_pinned(host)
        finally:
            self.cuda.free_stream(stream)

    def _sessions(self) -> StagedSessions:
        return StagedSessions(
            self.name, self._steps, self._stages, self._constants, self.inputs, self._layouts, self._engine,
            self.cuda, self._kernels,
        )  # fmt: skip

    def _free(self) -> None:
        for stage in self._stages.values():
            stage.close()
        for array in self._constants.values():
            self.cuda.free(array.address)
        self._stages.clear()
        self._constants.clear()
        self._kernels.close()
