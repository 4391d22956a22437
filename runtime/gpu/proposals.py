"""RegionProposals on a GPU (plugins/proposals/kernel.cu): every level of every image at once, then merged."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

from regionrt.runtime.errors import BackendError

from .arrays import KINDS, GpuArray, checked, packed, within
from .kernels import Kernels, Launch

MOST_LEVELS, MOST_BOXES = 8, 4096
_BLOCK, _ROWS = 1024, 256  # threads: of most kernels, of those that look for overlaps
_SLICES, _BINS = 16, 2048  # kSlices and kBins of the kernel
_POINTER, _INT, _FLOAT = ctypes.c_void_p, ctypes.c_int32, ctypes.c_float


class ProposalsCall(ctypes.Structure):
    """As the kernel has it."""

    _fields_ = (
        *((name, _POINTER * MOST_LEVELS) for name in ("objectness", "deltas", "anchors")),
        *((name, _POINTER) for name in ("image_sizes", "histograms", "found", "keys", "boxes", "box_scores")),
        *((name, _POINTER) for name in ("alive", "overlaps", "box_counts")),
        *((name, _POINTER) for name in ("rois", "scores", "counts")),
        ("anchor_counts", _INT * MOST_LEVELS),
        *((name, _FLOAT) for name in ("iou_threshold", "score_threshold", "min_size")),
        ("box_weights", _FLOAT * 4),
        *((name, _INT) for name in ("levels", "pre_nms", "post_nms")),
    )


def proposals_workspace(images: int, anchor_counts: Sequence[int], pre_nms: int) -> int:
    """Bytes of workspace that `proposals` needs for levels of so many anchors."""
    return _workspace(images, anchor_counts, pre_nms)[1]


def _workspace(images: int, anchor_counts: Sequence[int], pre_nms: int) -> tuple[dict[str, int], int]:
    lists, words = images * len(anchor_counts), words_of(pre_nms)
    return packed(
        {
            "histograms": 4 * lists * _SLICES * _BINS,
            "found": 4 * lists,
            "keys": 8 * images * sum(anchor_counts),
            "boxes": 16 * lists * pre_nms,
            "box_scores": 4 * lists * pre_nms,
            "alive": 4 * lists * words,
            "overlaps": 4 * lists * words * pre_nms,
            "box_counts": 4 * lists,
        }
    )


def words_of(boxes: int) -> int:
    """How many words of 32 bits hold a bit for each box."""
    return -(-boxes // 32)


def overlap_tiles(boxes: int) -> int:
    """Blocks that look for overlaps among so many boxes at most (plugins/nms/greedy.cuh)."""
    return words_of(boxes) * -(-boxes // _ROWS)


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
    anchor_counts = [anchor.shape[0] for anchor in anchors]
    offsets, _ = _workspace(images, anchor_counts, pre_nms)
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
        call.anchor_counts[index] = anchor_counts[index]
    kind = KINDS[dtype]
    steps = (
        (f"proposals_histogram_{kind}", (_SLICES, levels, images), _BLOCK),
        (f"proposals_candidates_{kind}", (_SLICES, levels, images), _BLOCK),
        (f"proposals_decoded_{kind}", (levels, images), _BLOCK),
        ("proposals_overlaps", (overlap_tiles(pre_nms), levels, images), _ROWS),
        ("proposals_suppressed", (levels, images), _BLOCK),
        ("proposals_merged", (1, images), _BLOCK),
    )
    return [Launch(kernels, "proposals", name, grid, block, [call]) for name, grid, block in steps]
