"""Dense stages run by torch, for the runner of the form staged on a GPU: on a real one, or on the fake one.

It is what an engine's library does for the runner, as far as the runner can tell: work on the runner's stream, from
and into memory that the runner has. `described` says of a torchvision detector what its bundle's manifest would say,
so that a machine without onnx runs it too; tests/export compares the two.
"""

from __future__ import annotations

import ctypes
import math
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList

from regionrt.runtime.backends.gpu_stages import Shape
from regionrt.runtime.backends.gpu_stages import Tensor as Described
from regionrt.runtime.gpu.arrays import SIZES
from regionrt.runtime.image import Canvas

if TYPE_CHECKING:
    from fake_cuda import FakeDriver

Values = Mapping[str, Tensor]


class Where(Protocol):
    """A GPU, as far as torch's work on it goes."""

    device: str

    def at(self, address: int, shape: Shape, dtype: str) -> Tensor:
        """The memory there, not copied."""

    def enqueue(self, stream: int, work: Callable[[], None]) -> None: ...


class OnRealGpu:
    """torch's current GPU. Every temporary comes from a pool of our own: a captured graph holds addresses of theirs,
    which torch would otherwise give to others; while it takes from a pool it also keeps to what a capture allows."""

    device = "cuda"

    def __init__(self) -> None:
        self._pool = torch.cuda.MemPool()

    def at(self, address: int, shape: Shape, dtype: str) -> Tensor:
        return torch.as_tensor(_Interface(address, shape, np.dtype(dtype).str), device="cuda")

    def enqueue(self, stream: int, work: Callable[[], None]) -> None:
        with torch.cuda.stream(torch.cuda.ExternalStream(stream)), torch.cuda.use_mem_pool(self._pool):
            work()


@dataclass(frozen=True)
class OnFakeGpu:
    """Work is done when the stream is synchronised, or captured, as a kernel's."""

    driver: FakeDriver
    device: str = "cpu"

    def at(self, address: int, shape: Shape, dtype: str) -> Tensor:
        size = math.prod(shape) * SIZES[dtype]
        return torch.frombuffer((ctypes.c_uint8 * size).from_address(address), dtype=getattr(torch, dtype)).view(shape)

    def enqueue(self, stream: int, work: Callable[[], None]) -> None:
        self.driver.streams[stream].add(work)  # type: ignore[arg-type]


class _Interface:
    def __init__(self, address: int, shape: Shape, typestr: str) -> None:
        self.__cuda_array_interface__ = {"data": (address, False), "shape": shape, "typestr": typestr, "version": 3}


@dataclass
class TorchStages:
    """Opens the stages of `module` by their names (`GpuStageEngine`). enqueued: how often any has been put on a stream,
    which a graph's replay does not count."""

    module: nn.Module
    where: Where
    name: str = "torch"
    about: Mapping[str, Any] = field(default_factory=dict)
    enqueued: int = 0

    def open(self, path: Path, stage: Mapping[str, Any]) -> TorchStage:
        return TorchStage(self, stage)

    def last_errors(self) -> str:
        return ""


@dataclass
class TorchStage:
    """`GpuStage`."""

    engine: TorchStages
    stage: Mapping[str, Any]
    workspace_bytes: int = 0

    def at(self, shapes: Mapping[str, Shape], workspace: int, stream: int) -> BoundTorchStage:
        return BoundTorchStage(self.engine, self.stage, shapes)

    def close(self) -> None: ...


class BoundTorchStage:
    """`BoundStage`. Output shapes are those of a run on zeros."""

    def __init__(self, engine: TorchStages, stage: Mapping[str, Any], shapes: Mapping[str, Shape]) -> None:
        self._engine, self._where, self._names = engine, engine.where, stage["outputs"]
        device = engine.where.device
        kinds = {"images": torch.uint8, "image_sizes": torch.int32, "labels": torch.int32}
        zeros = {
            name: torch.zeros(shape, dtype=kinds.get(name, torch.float32), device=device)
            for name, shape in shapes.items()
        }
        self._compute = _STAGES[stage["name"]](engine.module, zeros)
        with torch.inference_mode():
            found = self._compute(zeros)
        if device == "cuda":
            torch.cuda.synchronize()  # constants were made on torch's stream
        self.inputs = {name: _described(value) for name, value in zeros.items()}
        self.outputs = {name: _described(found[name]) for name in self._names}
        self._placed: dict[str, Tensor] = {}
        self._warm: set[int] = set()

    def place(self, name: str, address: int) -> None:
        tensor = (self.inputs | self.outputs)[name]
        self._placed[name] = self._where.at(address, tensor.shape, tensor.dtype)

    def enqueue(self, stream: int) -> None:
        placed = dict(self._placed)  # as they are now, whenever it runs

        @torch.inference_mode()
        def work() -> None:
            found = self._compute(placed)
            for name in self._names:
                placed[name].copy_(found[name])

        self._where.enqueue(stream, work)
        self._engine.enqueued += 1
        self._warm.add(threading.get_ident())

    def capturable(self, stream: int) -> bool:
        """torch makes its handles of cuBLAS and cuDNN per thread, in the first run; no capture allows that."""
        return threading.get_ident() in self._warm

    def close(self) -> None:
        self._placed.clear()


def _described(value: Tensor) -> Described:
    return Described(tuple(value.shape), str(value.dtype).removeprefix("torch."))


def _body(module: nn.Module, zeros: Values) -> Callable[[Values], dict[str, Tensor]]:
    """Canvas to feature maps, RPN outputs and anchors; what the host gives to it lies on the GPU beforehand."""
    images = zeros["images"]
    mean, std = (
        images.new_tensor(v, dtype=torch.float32) for v in (module.transform.image_mean, module.transform.image_std)
    )
    _, height, width, _ = images.shape
    rows, columns = (torch.arange(side, device=images.device) for side in (height, width))
    with torch.inference_mode():
        maps = _maps(module, torch.zeros(1, 3, height, width, device=images.device))
        anchors = _anchors(module, [*maps.values()], (height, width))

    def compute(values: Values) -> dict[str, Tensor]:
        x = (values["images"].float() / 255 - mean) / std
        valid = (rows < values["image_sizes"][:, 0, None])[:, :, None] & (columns < values["image_sizes"][:, 1, None])[
            :, None
        ]
        maps = [*_maps(module, (x * valid[..., None]).permute(0, 3, 1, 2)).values()]
        objectness, deltas = module.rpn.head(maps)
        images = len(x)
        found = {f"features.{i}": value.permute(0, 2, 3, 1) for i, value in enumerate(maps)}
        for i, (logits, delta) in enumerate(zip(objectness, deltas, strict=True)):
            found[f"objectness.{i}"] = logits.permute(0, 2, 3, 1).reshape(images, -1)
            found[f"rpn_deltas.{i}"] = delta.permute(0, 2, 3, 1).reshape(images, -1, 4)  # [.., A · 4]: anchor by anchor
            found[f"anchors.{i}"] = anchors[i]
        return found

    return compute


def _box_head(module: nn.Module, zeros: Values) -> Callable[[Values], dict[str, Tensor]]:
    heads = module.roi_heads

    def compute(values: Values) -> dict[str, Tensor]:
        logits, deltas = heads.box_predictor(heads.box_head(values["roi_features"].permute(0, 3, 1, 2)))
        return {"class_logits": logits[:, None], "box_deltas": deltas[:, None]}

    return compute


def _mask_head(module: nn.Module, zeros: Values) -> Callable[[Values], dict[str, Tensor]]:
    heads = module.roi_heads

    def compute(values: Values) -> dict[str, Tensor]:
        logits = heads.mask_predictor(heads.mask_head(values["mask_roi_features"].permute(0, 3, 1, 2)))
        label = values["labels"][:, :, None, None]  # [R, 1, 1, 1]
        index = label.clamp(min=0).long().expand(-1, -1, *logits.shape[2:])
        return {"masks": logits.sigmoid().gather(1, index) * (label >= 0)}

    return compute


_STAGES = {"dense_0": _body, "dense_1": _box_head, "dense_2": _mask_head}


def _maps(module: nn.Module, x: Tensor) -> dict[str, Tensor]:
    found = module.backbone(x)
    return {"0": found} if isinstance(found, Tensor) else dict(found)


def _anchors(module: nn.Module, maps: list[Tensor], size: tuple[int, int]) -> list[Tensor]:
    """float32 [A, 4] of each level."""
    generator = module.rpn.anchor_generator
    (anchors,) = generator(ImageList(maps[0].new_zeros(1, 3, *size), [size]), maps)
    each = generator.num_anchors_per_location()
    return [*anchors.split([m.shape[2] * m.shape[3] * n for m, n in zip(maps, each, strict=True)])]


def described(
    module: nn.Module, canvas: Canvas, candidates: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], dict[str, np.ndarray]]:
    """(stages, ops between them, constants) as in the manifest of the module's bundle of the form staged.

    On a canvas of fixed size anchors are constants; on a dynamic one the first stage gives them.
    """
    rpn, heads = module.rpn, module.roi_heads
    height, width = canvas.height, canvas.width
    with torch.inference_mode():
        maps = _maps(module, torch.zeros(1, 3, height, width))
        anchors = _anchors(module, [*maps.values()], (height, width))
    levels = range(len(maps))
    read = [name in heads.box_roi_pool.featmap_names for name in maps]
    features = [f"features.{i}" for i in levels if read[i]]
    scales = [2.0 ** round(math.log2(m.shape[2] / height)) for m, used in zip(maps.values(), read, strict=True) if used]
    rows = [[f"{name}.{i}" for i in levels] for name in ("objectness", "rpn_deltas", "anchors")]
    fixed, channels = not canvas.dynamic, maps["0"].shape[1]
    outputs = [*features, *rows[0], *rows[1], *([] if fixed else rows[2])]
    stages = [_entry(0, ["images", "image_sizes"], outputs, None, features, {})]
    ops = [
        {
            "op": "RegionProposals",
            "inputs": [*rows[0], *rows[1], *rows[2], "image_sizes"],
            "outputs": ["rois", "roi_scores", "roi_counts"],
            "attributes": {
                "pre_nms": rpn._pre_nms_top_n["testing"], "post_nms": rpn._post_nms_top_n["testing"],
                "iou_threshold": rpn.nms_thresh, "score_threshold": rpn.score_thresh, "min_size": rpn.min_size,
                "box_weights": list(rpn.box_coder.weights),
            },
        },
        _roi_align(heads.box_roi_pool, features, scales, ["rois", "roi_counts"], "roi_features"),
        {
            "op": "RegionDetections",
            "inputs": ["class_logits", "box_deltas", "rois", "roi_counts", "image_sizes"],
            "outputs": ["num_detections", "boxes", "scores", "labels", "roi_index", "overflow"],
            "attributes": {
                "score_threshold": heads.score_thresh, "iou_threshold": heads.nms_thresh, "candidates": candidates,
                "max_detections": heads.detections_per_img, "box_weights": list(heads.box_coder.weights),
                "min_size": 1e-2, "class_agnostic": 0,
            },
        },
    ]  # fmt: skip
    slots, shape = rpn._post_nms_top_n["testing"], [*heads.box_roi_pool.output_size, channels]
    stages.append(
        _entry(1, ["roi_features"], ["class_logits", "box_deltas"], slots, ["roi_features"], {"roi_features": shape})
    )
    if heads.has_mask():
        pool = heads.mask_roi_pool
        ops.append(_roi_align(pool, features, scales, ["boxes", "num_detections"], "mask_roi_features"))
        shapes = {"labels": [1], "mask_roi_features": [*pool.output_size, channels]}
        stages.append(_entry(2, [*shapes], ["masks"], heads.detections_per_img, ["mask_roi_features"], shapes))
    constants = {name: level.numpy() for name, level in zip(rows[2], anchors, strict=True)} if fixed else {}
    return stages, ops, constants


def _entry(
    number: int, inputs: list[str], outputs: list[str], slots: int | None, channels_last: list[str],
    rows: Mapping[str, list[int]],
) -> dict[str, Any]:  # fmt: skip
    return {
        "name": f"dense_{number}", "file": f"dense_{number}", "inputs": inputs, "outputs": outputs, "slots": slots,
        "shapes": {name: [None, *shape] for name, shape in rows.items()}, "channels_last": channels_last,
    }  # fmt: skip


def _roi_align(pool: nn.Module, features: list[str], scales: list[float], rois: list[str], out: str) -> dict[str, Any]:
    return {
        "op": "RegionRoiAlign",
        "inputs": [*features, *rois],
        "outputs": [out],
        "attributes": {
            "output_height": pool.output_size[0], "output_width": pool.output_size[1],
            "sampling_ratio": pool.sampling_ratio, "aligned": 0, "mode": "avg", "spatial_scales": scales,
            "canonical_scale": float(pool.canonical_scale), "canonical_level": pool.canonical_level,
        },
    }  # fmt: skip
