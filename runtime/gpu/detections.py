"""RegionDetections on a GPU (plugins/detections/kernel.cu): softmax of each RoI; a block an image sorts and selects."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

from .arrays import KINDS, GpuArray, checked, packed, within
from .kernels import Kernels, Launch
from .proposals import MOST_BOXES, overlap_tiles, words_of

_SOFTMAX_BLOCK, _ROWS, _BLOCK = 128, 256, 1024
_POINTER, _INT, _FLOAT = ctypes.c_void_p, ctypes.c_int32, ctypes.c_float
_OUT = ("num_detections", "boxes", "scores", "labels", "roi_index", "overflow")


class DetectionsCall(ctypes.Structure):
    """As the kernel has it."""

    _fields_ = (
        *((name, _POINTER) for name in ("class_logits", "box_deltas", "rois", "counts", "image_sizes")),
        *((name, _POINTER) for name in ("keys", "row_counts", "best", "best_counts", "candidate_boxes")),
        *((name, _POINTER) for name in ("candidate_labels", "alive", "overlaps", *_OUT)),
        *((name, _FLOAT) for name in ("score_threshold", "iou_threshold", "min_size")),
        ("box_weights", _FLOAT * 4),
        *((name, _INT) for name in ("rows", "classes", "candidates", "most", "class_agnostic")),
    )


def detections_workspace(images: int, rows: int, classes: int, candidates: int) -> int:
    """Bytes of workspace that `detections` needs; `classes` without the background."""
    return _workspace(images, rows, classes, candidates)[1]


def _workspace(images: int, rows: int, classes: int, candidates: int) -> tuple[dict[str, int], int]:
    return packed(
        {
            "keys": 8 * images * rows * classes,
            "row_counts": 4 * images * rows,
            "best": 8 * images * candidates,
            "best_counts": 4 * images,
            "candidate_boxes": 16 * images * candidates,
            "candidate_labels": 4 * images * candidates,
            "alive": 4 * images * words_of(candidates),
            "overlaps": 4 * images * words_of(candidates) * candidates,
        }
    )


def detections(
    kernels: Kernels,
    class_logits: GpuArray,
    box_deltas: GpuArray,
    rois: GpuArray,
    counts: GpuArray,
    image_sizes: GpuArray,
    out: Sequence[GpuArray],
    workspace: int,
    *,
    score_threshold: float,
    iou_threshold: float,
    max_detections: int,
    candidates: int,
    min_size: float = 1e-2,
    box_weights: Sequence[float] = (10.0, 10.0, 5.0, 5.0),
    class_agnostic: bool = False,
) -> list[Launch]:
    """As `regionrt.runtime.native.detections`; the launches, ready for a stream.

    Args:
        class_logits: [N, P, K+1]; box_deltas: [N, P, 4(K+1)] or, `class_agnostic`, [N, P, 4]; both float32, float16 or
            bfloat16.
        rois: float32 [N, P, 4]; counts: int32 [N]; image_sizes: int32 [N, 2].
        out: num_detections int32 [N], boxes float32 [N, D, 4], scores float32 [N, D], labels int32 [N, D], roi_index
            int32 [N, D], overflow int32 [N]; D = max_detections. All of it is written.
        workspace: address of `detections_workspace` bytes, a multiple of 256.
        candidates: at most 4096.

    Raises BackendError: another type or shape, or a limit beyond the kernels'.
    """
    images, rows, columns = checked("class_logits", class_logits, tuple(KINDS), (None, None, None)).shape
    classes = within("classes", columns - 1, 1, 2**31 - 1)
    within("RoIs times classes of an image", rows * classes, 0, 2**31 - 1)
    within("candidates", candidates, 1, MOST_BOXES)
    within("max_detections", max_detections, 1, 2**31 - 1)
    within("images", images, 0, 65535)
    dtype = class_logits.dtype
    checked("box_deltas", box_deltas, dtype, (images, rows, 4 if class_agnostic else 4 * columns))
    checked("rois", rois, "float32", (images, rows, 4))
    checked("counts", counts, "int32", (images,))
    checked("image_sizes", image_sizes, "int32", (images, 2))
    per_image, per_detection = (images,), (images, max_detections)
    shapes = (per_image, (*per_detection, 4), per_detection, per_detection, per_detection, per_image)
    types = ("int32", "float32", "float32", "int32", "int32", "int32")
    for name, array, kind, shape in zip(_OUT, out, types, shapes, strict=True):
        checked(f"out {name}", array, kind, shape)
    offsets, _ = _workspace(images, rows, classes, candidates)
    call = DetectionsCall(
        class_logits=class_logits.address,
        box_deltas=box_deltas.address,
        rois=rois.address,
        counts=counts.address,
        image_sizes=image_sizes.address,
        score_threshold=score_threshold,
        iou_threshold=iou_threshold,
        min_size=min_size,
        box_weights=(_FLOAT * 4)(*box_weights),
        rows=rows,
        classes=classes,
        candidates=candidates,
        most=max_detections,
        class_agnostic=class_agnostic,
        **{name: workspace + offset for name, offset in offsets.items()},
        **{name: array.address for name, array in zip(_OUT, out, strict=True)},
    )
    kind = KINDS[dtype]
    steps = (
        (f"detections_softmax_{kind}", (-(-rows // (_SOFTMAX_BLOCK // 32)), images), _SOFTMAX_BLOCK),  # a warp a RoI
        (f"detections_sorted_{kind}", (1, images), _BLOCK),
        ("detections_overlaps", (overlap_tiles(candidates), images), _ROWS),
        ("detections_selected", (1, images), _BLOCK),
    )
    return [Launch(kernels, "detections", name, grid, block, [call]) for name, grid, block in steps]
