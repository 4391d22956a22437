"""RegionProposals on a GPU (plugins/proposals/kernel.cu): every level of every image at once, then merged."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

from regionrt.runtime.errors import BackendError

from .arrays import KINDS, GpuArray, checked, packed, within
from .kernels import Kernels, Launch

MOST_LEVELS, MOST_BOXES = 8, 4096
_BLOCK = 1024
_POINTER, _INT, _FLOAT = ctypes.c_void_p, ctypes.c_int32, ctypes.c_float


class ProposalsCall(ctypes.Structure):
    """As the kernel has it."""

    _fields_ = (
        *((name, _POINTER * MOST_LEVELS) for name in ("objectness", "deltas", "anchors")),
        *((name, _POINTER) for name in ("image_sizes", "boxes", "box_scores", "box_counts")),
        *((name, _POINTER) for name in ("rois", "scores", "counts")),
        ("anchor_counts", _INT * MOST_LEVELS),
        *((name, _FLOAT) for name in ("iou_threshold", "score_threshold", "min_size")),
        ("box_weights", _FLOAT * 4),
        *((name, _INT) for name in ("levels", "pre_nms", "post_nms")),
    )


def proposals_workspace(images: int, levels: int, pre_nms: int) -> int:
    """Bytes of workspace that `proposals` needs."""
    return _workspace(images, levels, pre_nms)[1]


def _workspace(images: int, levels: int, pre_nms: int) -> tuple[dict[str, int], int]:
    lists = images * levels
    return packed({"boxes": 16 * lists * pre_nms, "box_scores": 4 * lists * pre_nms, "box_counts": 4 * lists})


def proposals(
    kernels: Kernels,
    objectness: Sequence[GpuArray],
    deltas: Sequence[GpuArray],
    anchors: Sequence[GpuArray],
    image_sizes: GpuArray,
    out: tuple[GpuArray, GpuArray, GpuArray],
    workspace: int,
    *,
    pre_nms: int,
    post_nms: int,
    iou_threshold: float,
    score_threshold: float = 0.0,
    min_size: float = 1e-3,
    box_weights: Sequence[float] = (1.0, 1.0, 1.0, 1.0),
) -> list[Launch]:
    """As `regionrt.runtime.native.proposals`; the launches, ready for a stream.

    Args:
        objectness: one to eight levels [N, A]; deltas: [N, A, 4]; all float32, float16 or bfloat16.
        anchors: float32 [A, 4]; image_sizes: int32 [N, 2].
        out: (rois float32 [N, P, 4], scores float32 [N, P], counts int32 [N]), P = post_nms. All of it is written.
        workspace: address of `proposals_workspace` bytes, a multiple of 256.
        pre_nms: at most 4096.

    Raises BackendError: another type or shape, or a limit beyond the kernels'.
    """
    levels = within("levels of proposals", len(objectness), 1, MOST_LEVELS)
    if not len(deltas) == len(anchors) == levels:
        raise BackendError(f"expected deltas and anchors for {levels} levels, found {len(deltas)} and {len(anchors)}")
    within("pre_nms", pre_nms, 1, MOST_BOXES)
    within("post_nms", post_nms, 1, 2**31 - 1)
    images, dtype = objectness[0].shape[0], objectness[0].dtype
    checked("objectness[0]", objectness[0], tuple(KINDS), (images, None))
    for index, (logits, delta, anchor) in enumerate(zip(objectness, deltas, anchors, strict=True)):
        count = checked(f"anchors[{index}]", anchor, "float32", (None, 4)).shape[0]
        checked(f"objectness[{index}]", logits, dtype, (images, count))
        checked(f"deltas[{index}]", delta, dtype, (images, count, 4))
    checked("image_sizes", image_sizes, "int32", (images, 2))
    rois, scores, counts = out
    checked("out rois", rois, "float32", (images, post_nms, 4))
    checked("out scores", scores, "float32", (images, post_nms))
    checked("out counts", counts, "int32", (images,))
    within("images", images, 0, 65535)
    offsets, _ = _workspace(images, levels, pre_nms)
    call = ProposalsCall(
        image_sizes=image_sizes.address,
        rois=rois.address,
        scores=scores.address,
        counts=counts.address,
        iou_threshold=iou_threshold,
        score_threshold=score_threshold,
        min_size=min_size,
        box_weights=(_FLOAT * 4)(*box_weights),
        levels=levels,
        pre_nms=pre_nms,
        post_nms=post_nms,
        **{name: workspace + offset for name, offset in offsets.items()},
    )
    for index in range(levels):
        call.objectness[index] = objectness[index].address
        call.deltas[index] = deltas[index].address
        call.anchors[index] = anchors[index].address
        call.anchor_counts[index] = anchors[index].shape[0]
    return [
        Launch(kernels, "proposals", f"proposals_of_level_{KINDS[dtype]}", (levels, images), _BLOCK, [call]),
        Launch(kernels, "proposals", "proposals_merged", (1, images), _BLOCK, [call]),
    ]
