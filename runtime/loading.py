"""From a bundle to a Predictor: which of its artefacts runs here, and why not the others."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import native
from .backends import Runner
from .bundle import Artifact, Manifest
from .errors import BackendError, BundleError
from .predictor import Predictor, check_score
from .preflight import LIBRARIES, rebuild_command, why_not_this_gpu, why_not_this_library
from .semantic import predictor_class
from .tuning import in_measured_order

if TYPE_CHECKING:
    from .backends.staged import StageEngine
    from .gpu.placing import GpuPlacing

DEFAULT_MAX_BATCH = 4


def load(
    path: str | Path,
    backend: str = "auto",
    score_threshold: float | None = None,
    threads: int | None = None,
    *,
    form: str | None = None,
    precision: str | None = None,
    provider: str | None = None,
    resize_on_gpu: bool = False,
    allow_host_code: bool = False,
) -> Predictor:
    """Opens a bundle for inference.

    Args:
        path: the bundle, a folder with manifest.json.
        backend: "auto" takes the first artefact that runs on this machine (`predict.about` says which, and why not the
            others), in the order that `autotune` measured here, else in the manifest's; a name takes the first of that
            backend, and nothing else.
        score_threshold: raises the bundle's score threshold (0…1).
        threads: CPU threads; None takes one per usable physical core.
        form, precision: only artefacts of this form ("staged", "native", "portable") or precision ("fp32", "fp16",
            "bf16", "int8").
        provider: what ONNX Runtime computes with, "cpu", "cuda", "tensorrt" or "auto" (CUDA where it has that and there
            is a driver, else the CPU); only artefacts for ONNX Runtime are taken then. None: the CPU. Another one than
            that is never taken; `predict.about["provider"]` says which it is.
        resize_on_gpu: take photos that lie on the GPU (uint8 [H, W, 3]) and resize them there, to the byte as on the
            CPU; only artefacts that run on a GPU are taken then. Photos in the host's memory go the usual way.
        allow_host_code: also engines that bring code for the host, which runs with the rights of this process.

    Raises:
        BundleError: the folder is no whole bundle, or `score_threshold` is below what it was exported with.
        BackendError: nothing in it can run here as asked; the message says why for each artefact.
    """
    manifest = Manifest.read(path)
    check_score(score_threshold, manifest.thresholds.get("score", 0.0))
    if manifest.task == "segmentation" and score_threshold is not None:
        raise BundleError(
            f"{path}: score threshold {score_threshold}: label maps have no scores to filter, leave it out"
        )
    measured = in_measured_order(manifest)
    ordered = _without_compiled_ops_last(manifest.artifacts) if measured is None else measured
    wanted = [artifact for artifact in ordered if _wanted(artifact, backend, form, precision, provider)]
    skipped: list[dict[str, Any]] = []
    for place, artifact in enumerate(wanted):
        why = manifest.preflight(artifact, allow_host_code=allow_host_code)
        if why is None and resize_on_gpu and artifact.backend not in LIBRARIES:
            why = "resize_on_gpu: it takes its canvas from the host's memory"
        if why is None:
            try:
                _verify(manifest, artifact)
                runner = runner_for(manifest, artifact, threads, allow_host_code, provider)
                gpu = _placing(runner) if resize_on_gpu else None
            except BackendError as error:
                why = str(error)
                if backend == "auto":
                    warnings.warn(f"{path}: {artifact} is left out: {why}", stacklevel=2)
            else:
                later = [
                    _left_out(a, manifest.preflight(a, allow_host_code=allow_host_code) or "comes later in the bundle")
                    for a in wanted[place + 1 :]
                ]
                about = {"order": "the bundle's" if measured is None else "autotune's", "skipped": skipped + later}
                return _predictor(manifest, artifact, runner, score_threshold, about, gpu)
        skipped.append(_left_out(artifact, why))
    raise BackendError(_nothing_runs(manifest, (backend, form, precision, provider), skipped))


def _without_compiled_ops_last(artifacts: tuple[Artifact, ...]) -> tuple[Artifact, ...]:
    """On a CPU the staged form is the fastest with our compiled ops, and the slowest where NumPy computes them."""
    if all(a.form != "staged" for a in artifacts) or native.about().variant != native.NUMPY:
        return artifacts
    return tuple(sorted(artifacts, key=lambda a: a.form == "staged" and a.backend not in LIBRARIES))


def _left_out(artifact: Artifact, why: str) -> dict[str, Any]:
    return {"backend": artifact.backend, "form": artifact.form, "precision": artifact.precision, "why": why}


def _wanted(artifact: Artifact, backend: str, form: str | None, precision: str | None, provider: str | None) -> bool:
    if provider is not None and artifact.backend != "onnxruntime":
        return False
    asked = {"backend": None if backend == "auto" else backend, "form": form, "precision": precision}
    return all(value is None or getattr(artifact, name) == value for name, value in asked.items())


def _verify(manifest: Manifest, artifact: Artifact) -> None:
    """A changed engine is built again, so it is no reason against the rest of the bundle; a changed ONNX file is."""
    try:
        manifest.verify_files(artifact.files)
    except BundleError as error:
        if artifact.engine is None:
            raise
        raise BackendError(f"{error}, or build it again: {rebuild_command(manifest, artifact)}") from error


def runner_for(
    manifest: Manifest,
    artifact: Artifact,
    threads: int | None = None,
    allow_host_code: bool = False,
    provider: str | None = None,
) -> Runner:
    """What executes `artifact`. A new backend adds its branch here, and its answer to `Manifest.preflight`.

    provider: ONNX Runtime's, as of `load`.

    Raises BackendError (the engine refuses it) or BundleError (the artefact is not described as it should be).
    """
    if artifact.backend == "onnxruntime" and artifact.form != "staged":
        from .backends.onnxruntime import OnnxRuntimeRunner

        _check_provider(artifact, provider)
        return OnnxRuntimeRunner(manifest.path(artifact.files[0]), threads=threads, provider=provider or "cpu")
    if artifact.backend in LIBRARIES:
        return _engine_runner(manifest, artifact, allow_host_code)
    if artifact.form == "staged":
        from .backends.staged import StagedRunner

        return StagedRunner(manifest, artifact, _stage_engine(artifact, threads, provider))
    raise BackendError(f"this version of regionrt does not execute the backend {artifact.backend!r}")


def _check_provider(artifact: Artifact, provider: str | None) -> None:
    if provider == "tensorrt" and artifact.precision != "fp32":
        raise BackendError(
            f"{artifact}: in ONNX Runtime's TensorRT provider the precision is a flag, not the file's: take provider "
            "cuda, or build an engine (regionrt build --target tensorrt)"
        )


def _stage_engine(artifact: Artifact, threads: int | None, provider: str | None) -> StageEngine:
    if artifact.backend == "onnxruntime" and artifact.precision in ("fp32", "int8"):
        from .backends.onnxruntime import OnnxRuntimeStages

        _check_provider(artifact, provider)
        return OnnxRuntimeStages(threads, provider or "cpu")
    if artifact.backend == "openvino":
        from .backends.openvino import OpenVinoStages

        return OpenVinoStages(artifact.precision, threads)
    if artifact.backend == "ncnn" and artifact.precision == "fp32":
        from .backends.ncnn import NcnnStages

        return NcnnStages(threads)
    raise BackendError(f"this version of regionrt does not execute {artifact}")


def _engine_runner(manifest: Manifest, artifact: Artifact, allow_host_code: bool) -> Runner:
    from .backends.cuda import open_cuda
    from .backends.tensorrt import TensorRTRunner, import_library

    certificate = artifact.engine or {}
    cuda = open_cuda()
    trt = import_library(artifact.backend)
    again = f"build it again: {rebuild_command(manifest, artifact, cuda.compute_capability)}"
    differences = (
        why_not_this_library(certificate, trt.__version__),
        why_not_this_gpu(certificate, cuda.compute_capability, cuda.device_name),
    )
    why = "; ".join(filter(None, differences))
    if why:
        raise BackendError(f"{why}; {again}")
    try:
        if artifact.form == "staged":
            from .backends.staged_cuda import StagedCudaRunner
            from .backends.tensorrt_stages import TensorRTStages

            engine = TensorRTStages(artifact.backend, cuda, trt, allow_host_code=allow_host_code)
            return StagedCudaRunner(manifest, artifact, engine, cuda)
        path = manifest.path(artifact.files[0])
        return TensorRTRunner(path, artifact.backend, certificate, allow_host_code=allow_host_code, cuda=cuda, trt=trt)
    except BackendError as error:
        raise BackendError(f"{error}; if it does not fit this machine, {again}") from error


def _placing(runner: Any) -> GpuPlacing:
    """What resizes on the runner's GPU. BackendError where its kernel cannot be compiled; the runner is closed then."""
    from .gpu.placing import GpuPlacing

    try:
        return GpuPlacing(runner.cuda)
    except BaseException:
        runner.close()
        raise


def _predictor(
    manifest: Manifest,
    artifact: Artifact,
    runner: Runner,
    score_threshold: float | None,
    how: dict[str, Any],
    gpu: GpuPlacing | None = None,
) -> Predictor:
    about = {
        "bundle": str(manifest.folder),
        "model": manifest.model,
        "task": manifest.task,
        "form": artifact.form,
        "precision": artifact.precision,
        "files": list(artifact.files),
        "threads": getattr(runner, "threads", None),
        **getattr(runner, "about", {}),
        **how,
    }
    return predictor_class(manifest.task)(
        runner,
        manifest.canvas,
        manifest.labels,
        manifest.thresholds,
        score_threshold=score_threshold,
        max_batch=min(
            manifest.max_batch or DEFAULT_MAX_BATCH, DEFAULT_MAX_BATCH, getattr(runner, "max_batch", DEFAULT_MAX_BATCH)
        ),
        about=about,
        gpu=gpu,
        proposals=manifest.proposals,
    )


def _nothing_runs(manifest: Manifest, wishes: tuple[str | None, ...], skipped: list[dict[str, Any]]) -> str:
    asked = ", ".join(value for value in wishes if value is not None)
    if not skipped:
        held = ", ".join(str(artifact) for artifact in manifest.artifacts) or "nothing"
        return f"{manifest.folder}: asked for {asked}, the bundle holds {held}"
    reasons = " · ".join(
        f"{entry['backend']} {entry['form']} {entry['precision']}: {entry['why']}" for entry in skipped
    )
    return f"{manifest.folder}: asked for {asked}, and nothing of it can run here: {reasons}"
