"""A detector small enough to be understood: it finds the bright area of each colour channel. And a bundle around it.

For each of red, green, blue: where the channel is above 127 the box is the extent of those pixels, the score the
channel's peak / 255, the label 1, 2 or 3. It follows the inputs and outputs of every artefact, so that what the runtime
does before and after the net can be judged end to end: a red rectangle painted on a photo must come back as its box.
A pixel (0, 77, 0) at the top left makes it report 5 dropped candidates.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
from onnx import numpy_helper

LABELS = ("__background__", "red", "green", "blue")
MASK_SIDE = 14

_GRAPH = """
<ir_version: 9, opset_import: ["" : 18]>
fake (uint8[N,H,W,3] images, int32[N,2] image_sizes) => (
  int32[N] num_detections, float[N,3,4] boxes, float[N,3] scores, int32[N,3] labels, int32[N] overflow MASKS_OUT
) <float threshold = {127.0}, float full = {255.0}, float minus = {-1.0}, float zero = {0.0}, float one = {1.0},
   int64[1] a1 = {1}, int64[1] a2 = {2}, int64[1] a3 = {3}, int64[1] three = {3}, int64[3] boxes_like = {1, 1, 4},
   int64[1] first = {0}, int64[1] second = {1}, int32 label_one = {1}, int32 label_none = {-1}, float sign = {77.0},
   int64[3] corner = {0, 0, 1}, int64[3] corner_end = {1, 1, 2}, int64[3] corner_axes = {1, 2, 3}, int32 five = {5}>
{
  planes = Transpose <perm = [0, 3, 1, 2]> (images)
  values = Cast <to = 1> (planes)
  by_row = ReduceMax <keepdims = 0> (values, a3)
  by_column = ReduceMax <keepdims = 0> (values, a2)
  peak = ReduceMax <keepdims = 0> (by_row, a2)
  row_bright = Greater (by_row, threshold)
  column_bright = Greater (by_column, threshold)
  rows = Cast <to = 1> (row_bright)
  columns = Cast <to = 1> (column_bright)
  y0i = ArgMax <axis = 2, keepdims = 0> (rows)
  y1i = ArgMax <axis = 2, keepdims = 0, select_last_index = 1> (rows)
  x0i = ArgMax <axis = 2, keepdims = 0> (columns)
  x1i = ArgMax <axis = 2, keepdims = 0, select_last_index = 1> (columns)
  y0 = Cast <to = 1> (y0i)
  x0 = Cast <to = 1> (x0i)
  y1f = Cast <to = 1> (y1i)
  x1f = Cast <to = 1> (x1i)
  y1p = Add (y1f, one)
  x1p = Add (x1f, one)
  sizes = Cast <to = 1> (image_sizes)
  height = Gather <axis = 1> (sizes, first)
  width = Gather <axis = 1> (sizes, second)
  y1 = Min (y1p, height)
  x1 = Min (x1p, width)
  x0u = Unsqueeze (x0, a2)
  y0u = Unsqueeze (y0, a2)
  x1u = Unsqueeze (x1, a2)
  y1u = Unsqueeze (y1, a2)
  corners = Concat <axis = 2> (x0u, y0u, x1u, y1u)
  present = Greater (peak, threshold)
  share = Div (peak, full)
  unsorted = Where (present, share, minus)
  scores, order = TopK <axis = 1> (unsorted, three)
  order_u = Unsqueeze (order, a2)
  order4 = Expand (order_u, boxes_like)
  sorted = GatherElements <axis = 1> (corners, order4)
  found = Greater (scores, zero)
  found_u = Unsqueeze (found, a2)
  boxes = Where (found_u, sorted, zero)
  order32 = Cast <to = 6> (order)
  label = Add (order32, label_one)
  labels = Where (found, label, label_none)
  counted = Cast <to = 6> (found)
  num_detections = ReduceSum <keepdims = 0> (counted, a1)
  corner_pixel = Slice (values_hwc, corner, corner_end, corner_axes)
  signed = Equal (corner_pixel, sign)
  signed32 = Cast <to = 6> (signed)
  dropped = Mul (signed32, five)
  overflow = ReduceSum <keepdims = 0> (dropped, corner_axes)
  MASKS
}
"""
_MASKS = """
  masks_shape = Concat <axis = 0> (batch, three, side, side)
  masks = Expand (disc, masks_shape)
"""


def disc_mask() -> np.ndarray:
    """The mask of every object: a soft disc, float32 [M, M]."""
    axis = (np.arange(MASK_SIDE) + 0.5) / MASK_SIDE - 0.5
    distance = np.hypot(axis[:, None], axis[None])
    return (1 / (1 + np.exp((distance - 0.35) * 20))).astype(np.float32)


def fake_model(masks: bool = False) -> onnx.ModelProto:
    text = _GRAPH.replace("values_hwc, corner", "images_f, corner").replace(
        "  planes = Transpose", "  images_f = Cast <to = 1> (images)\n  planes = Transpose"
    )
    text = text.replace("MASKS_OUT", f", float[N,3,{MASK_SIDE},{MASK_SIDE}] masks" if masks else "")
    shape = "  whole = Shape (images)\n  batch = Slice (whole, first, second)\n" if masks else ""
    model = onnx.parser.parse_model(text.replace("  MASKS\n", shape + (_MASKS if masks else "")))
    if masks:
        model.graph.initializer.append(onnx.helper.make_tensor("side", onnx.TensorProto.INT64, [1], [MASK_SIDE]))
        model.graph.initializer.append(numpy_helper.from_array(disc_mask()[None, None], "disc"))
    for initializer in model.graph.initializer:
        if initializer.data_type == onnx.TensorProto.FLOAT:  # as raw bytes it can move to weights.bin; axes must not
            initializer.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(initializer), initializer.name))
    onnx.checker.check_model(model, full_check=True)
    return model


def fake_manifest(folder: Path, **changes: Any) -> dict[str, Any]:
    """The manifest of what lies in `folder`, hashed here and not by the code under test."""
    files = {
        path.relative_to(folder).as_posix(): {
            "bytes": path.stat().st_size,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "manifest.json"
    }
    manifest: dict[str, Any] = {
        "format": "regionrt-bundle/1",
        "task": "detection",
        "model": "fake",
        "labels_file": "labels.txt",
        "checkpoint_sha256": None,
        "created": "2026-01-01T00:00:00+00:00",
        "versions": {"regionrt": "0.1.0"},
        "canvas": {"height": 96, "width": 128, "min_size": 96, "max_size": 128, "multiple": 32, "dynamic": False},
        "max_batch": None,
        "thresholds": {
            "score": 0.05,
            "nms": 0.5,
            "detections": 3,
            "proposals": 3,
            "proposal_nms": 0.7,
            "candidates": 3,
        },
        "files": files,
        "artifacts": [fake_artifact("onnxruntime", "native", ["native.onnx", "weights.bin"])],
    }
    return manifest | changes


def fake_artifact(backend: str, form: str, files: list[str], **more: Any) -> dict[str, Any]:
    lists: dict[str, Any] = {name: [] for name in ("inputs", "outputs", "profiles", "stages", "ops_between")}
    return {"backend": backend, "form": form, "precision": "fp32", "files": files} | lists | more


def write_fake_bundle(folder: Path, masks: bool = False, **changes: Any) -> Path:
    """A whole bundle; `changes` replace fields of its manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save_model(
        fake_model(masks),
        folder / "native.onnx",
        save_as_external_data=True,
        location="weights.bin",
        size_threshold=0,
        convert_attribute=False,
    )
    (folder / "labels.txt").write_text("\n".join(LABELS) + "\n")
    task = {"task": "instance-segmentation"} if masks else {}
    write_manifest(folder, fake_manifest(folder, **(task | changes)))
    return folder


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    (folder / "manifest.json").write_text(json.dumps(manifest))


def with_artifacts(folder: Path, *artifacts: dict[str, Any]) -> Path:
    """The bundle with these artefacts; an engine that no machine can read and a second form are there to be named."""
    (folder / "engines").mkdir(exist_ok=True)
    (folder / "engines" / "a.engine").write_bytes(b"no engine of this machine")
    shutil.copy(folder / "native.onnx", folder / "portable.onnx")
    write_manifest(folder, fake_manifest(folder, artifacts=list(artifacts)))
    return folder


def photo_with(height: int, width: int, **areas: tuple[int, int, int, int]) -> np.ndarray:
    """A dim photo with bright rectangles: red=(x0, y0, x1, y1) in pixels, likewise green, blue."""
    image = np.full((height, width, 3), 20, np.uint8)
    for channel, (name, value) in enumerate((("red", 250), ("green", 220), ("blue", 190))):
        if name in areas:
            x0, y0, x1, y1 = areas[name]
            image[y0:y1, x0:x1, channel] = value
    return image
