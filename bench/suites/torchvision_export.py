"""torchvision's own ONNX export (TorchScript exporter) behind a Predictor: what exporting a detector as it is gives.

Masks are pasted inside the graph, as `module(images)` pastes them.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from regionrt.runtime.image import Canvas
from regionrt.runtime.predictor import Predictor, Prepared
from regionrt.runtime.results import Detections
from regionrt.train.models.region import thresholds_of

OPSET = 17
OUTPUTS = ("boxes", "labels", "scores")
Engine = Callable[[np.ndarray], Mapping[str, np.ndarray]]


def export_as_torchvision(module: nn.Module, size: tuple[int, int], path: Path) -> Path:
    """`module` as ONNX for one photo of `size` (height, width), float32 [3, H, W] in 0…1.

    The size is fixed in the file: engines are given what is fastest for them.
    """
    own = copy.deepcopy(module).eval()
    for pool in (own.roi_heads.box_roi_pool, own.roi_heads.mask_roi_pool):
        if pool is not None:  # scales that another forward left in it
            pool.scales = pool.map_levels = None
    outputs = [*OUTPUTS, "masks"] if own.roi_heads.has_mask() else [*OUTPUTS]
    photo = torch.rand(3, *size, generator=torch.Generator().manual_seed(0))
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of tracing: dozens, about torchvision's code
        torch.onnx.export(
            own,
            ([photo],),
            str(path),
            opset_version=OPSET,
            dynamo=False,
            input_names=["image"],
            output_names=outputs,
            dynamic_axes={name: {0: "detections"} for name in outputs},
        )
    return path


class TorchvisionExport(Predictor):
    """The exported file in an engine, behind the Predictor's three steps; the canvas is not used.

    engine: photo float32 [3, H, W] → `boxes`, `labels`, `scores`.
    """

    def __init__(
        self, engine: Engine, name: str, precision: str, module: nn.Module, labels: Sequence[str], canvas: Canvas
    ) -> None:
        super().__init__(
            _Named(name),
            canvas,
            labels,
            thresholds_of(module),
            about={"form": "torchvision's export", "precision": precision},
        )
        self._engine = engine

    def prepare(self, images: Sequence[np.ndarray], proposals: Any = None) -> Prepared:
        """RGB uint8 [H, W, 3] → float32 [3, H, W], 0…1; torch does it in several threads."""
        photos = [torch.from_numpy(image).permute(2, 0, 1).contiguous().float().div_(255).numpy() for image in images]
        self._sizes = [(int(image.shape[0]), int(image.shape[1])) for image in images]
        return Prepared(np.stack(photos) if len(photos) > 1 else photos[0][None], np.empty(0), [])

    def execute(self, prepared: Prepared) -> dict[str, np.ndarray]:
        """Photo by photo: the exporter fixes the batch."""
        self._found = [self._engine(photo) for photo in prepared.images]
        return {}

    def finish(self, prepared: Prepared, outputs: Any) -> list[Detections]:
        """Detections, copied out of the engine's memory; pasted masks are dropped, they have been paid for."""
        return [
            Detections(
                np.array(found["boxes"], np.float32).reshape(-1, 4),
                np.array(found["scores"], np.float32),
                np.array(found["labels"], np.int32),
                size,
                self.labels,
            )
            for found, size in zip(self._found, self._sizes, strict=True)
        ]

    def close(self) -> None:
        del self._engine


class _Named:
    """Where a Predictor has its runner: nothing but the engine's name, since `execute` asks the engine itself."""

    def __init__(self, name: str) -> None:
        self.name = name

    def run(self, images: np.ndarray, image_sizes: np.ndarray, **proposals: np.ndarray) -> dict[str, np.ndarray]:
        raise NotImplementedError("TorchvisionExport.execute asks the engine itself")

    def close(self) -> None:
        pass


def in_onnxruntime(path: Path, threads: int) -> Engine:
    """ONNX Runtime with the options that our own backend sets, so that neither gains by options."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = threads, 1, 3
    options.add_session_config_entry("session.force_spinning_stop", "1")  # spinning on would disturb the next one
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    (given,) = (node.name for node in session.get_inputs())
    return lambda photo: dict(zip(OUTPUTS, session.run(None, {given: photo}), strict=False))  # after them, masks


def in_openvino(path: Path, precision: str, threads: int) -> Engine:
    """OpenVINO for latency; `precision` "fp32" or "bf16" is its hint for the whole graph."""
    import openvino

    from regionrt.runtime.backends.openvino import cpu_config

    core = openvino.Core()
    compiled = core.compile_model(core.read_model(str(path)), "CPU", cpu_config(core, precision, threads))
    request = compiled.create_infer_request()

    def run(photo: np.ndarray) -> dict[str, np.ndarray]:
        request.infer([photo], share_inputs=True)
        # By position: where nodes were merged, OpenVINO knows an output by another of its names.
        return {name: request.get_output_tensor(place).data for place, name in enumerate(OUTPUTS)}

    return run
