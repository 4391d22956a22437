"""The staged form on a GPU: dense stages in an engine, our kernels between them, on one stream without the host.

Everything runs on padded rows, with their counts on the GPU: nothing has a size that depends on data, so that a request
is one copy in, one CUDA graph, one copy out. The stages come from outside (`GpuStageEngine`), as CUDA does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from regionrt.runtime.bundle import Artifact, Manifest
from regionrt.runtime.errors import BackendError
from regionrt.runtime.gpu.arrays import SIZES, GpuArray
from regionrt.runtime.gpu.kernels import Kernels
from regionrt.runtime.gpu.steps import OPS, Layouts

from .cuda import Cuda
from .gpu_stages import GpuStage, GpuStageEngine
from .gpu_worker import Pool, Worker
from .staged_sessions import INPUTS, StagedSessions
from .staged_steps import checked_stages, in_order, read_constants

DEFAULT_WORKERS = 2


class StagedCudaRunner:
    """Runs an artefact of the form `staged` by the contract of `Runner`; inputs may also lie on the GPU already.

    Each thread that runs takes a worker (stream, buffers, sessions); workers are made when they are needed, and kept.
    The kernels are compiled and a first session is opened here, so that what cannot run says so now.

    Args:
        workers: most requests at once; each has its own GPU memory.
        max_batch: most images of a request; None: what the artefact's profiles take.
        kernels: in the place of those that NVRTC compiles.

    Raises:
        BackendError: what the engine refuses, a limit beyond the kernels', no NVRTC, too little GPU memory.
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
        self.name = engine.name
        self._cuda, self._engine = cuda, engine
        self._pool = Pool(workers, self._new_worker, self._free)
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
            self._steps = in_order([*entries], [*artifact.ops_between], set(arrays))
            self._layouts = Layouts(frozenset(name for stage in entries for name in stage["channels_last"]))
            for stage in entries:
                self._stages[stage["name"]] = engine.open(manifest.path(stage["file"]), stage)
            self._upload(arrays)
            worker = self._pool.take()
            try:
                worker.session({"images": usual, "image_sizes": (usual[0], 2)})
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

    def _upload(self, arrays: Mapping[str, np.ndarray]) -> None:
        stream = self._cuda.stream()
        try:
            for name, array in arrays.items():
                if array.dtype.name not in SIZES:
                    raise BackendError(
                        f"{name}: constants of type {array.dtype} are not known; export the bundle again"
                    )
                address = self._cuda.allocate(array.nbytes)
                self._constants[name] = GpuArray(address, array.shape, array.dtype.name)
                host = self._cuda.pinned(array.nbytes)
                host[:] = np.ascontiguousarray(array).view(np.uint8).ravel()
                self._cuda.upload(address, host, stream)
                self._cuda.synchronize(stream)
                self._cuda.free_pinned(host)
        finally:
            self._cuda.free_stream(stream)

    def _new_worker(self) -> Worker:
        stream = self._cuda.stream()
        try:
            sessions = StagedSessions(
                self.name, self._steps, self._stages, self._constants, self._layouts, self._engine, self._cuda,
                self._kernels,
            )  # fmt: skip
        except BaseException:
            self._cuda.free_stream(stream)
            raise
        return Worker(sessions, self._cuda, stream)

    @property
    def why_no_graph(self) -> str | None:
        """Why requests are not replayed as CUDA graphs; None while nothing speaks against it."""
        return self._pool.first_reason()

    def run(self, images: Any, image_sizes: Any) -> dict[str, np.ndarray]:
        """As `Runner.run`; either may be an array on the GPU (`__cuda_array_interface__` or DLPack), not copied."""
        values = {"images": images, "image_sizes": image_sizes}
        for name, dtype in INPUTS.items():
            found = getattr(values[name], "dtype", None)
            if isinstance(values[name], np.ndarray) and found != dtype:
                raise BackendError(f"{self.name}: {name}: expected {dtype}, found {found} {list(values[name].shape)}")
        self._cuda.make_current()
        worker = self._pool.take()
        try:
            return worker.run(values)
        finally:
            self._pool.give(worker)

    def close(self) -> None:
        self._cuda.make_current()
        self._pool.close()

    def _free(self) -> None:
        for stage in self._stages.values():
            stage.close()
        for array in self._constants.values():
            self._cuda.free(array.address)
        self._stages.clear()
        self._constants.clear()
        self._kernels.close()
