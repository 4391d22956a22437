"""The structures of the library's C ABI, field by field as in plugins/native/regionrt.h, which says what each means."""

from __future__ import annotations

import ctypes

_POINTER, _INT, _LONG, _FLOAT = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64, ctypes.c_float


def _layout(name: str, *groups: tuple[type, str]) -> type[ctypes.Structure]:
    fields = [(field, kind) for kind, names in groups for field in names.split()]
    return type(name, (ctypes.Structure,), {"_fields_": fields})


CALLS = {
    "roi_align": _layout(
        "RoiAlignCall",
        (_POINTER, "features heights widths spatial_scales area_thresholds rois counts out"),
        (_INT, "thresholds images rows channels out_height out_width sampling_ratio aligned maximum"),
        (_INT, "out_channels_last feature_type out_type threads"),
    ),
    "roi_pool": _layout(
        "RoiPoolCall",
        (_POINTER, "feature rois counts out"),
        (_FLOAT, "spatial_scale"),
        (_INT, "images rows channels height width out_height out_width out_channels_last feature_type out_type"),
        (_INT, "threads"),
    ),
    "pyramid_pool": _layout(
        "PyramidPoolCall",
        (_POINTER, "feature rois counts bins out"),
        (_FLOAT, "spatial_scale"),
        (_INT, "levels images rows channels height width out_channels_last feature_type out_type threads"),
    ),
    "warp": _layout(
        "WarpCall",
        (_POINTER, "pixels rois counts out"),
        (_INT, "images rows channels height width out_height out_width context out_channels_last image_type out_type"),
        (_INT, "threads"),
    ),
    "nms": _layout(
        "NmsCall", (_POINTER, "boxes classes keep"), (_FLOAT, "iou_threshold"), (_INT, "images rows threads")
    ),
    "proposals": _layout(
        "ProposalsCall",
        (_POINTER, "objectness deltas anchors anchor_counts image_sizes rois scores counts"),
        (_FLOAT, "iou_threshold score_threshold min_size"),
        (_FLOAT * 4, "box_weights"),
        (_INT, "levels images pre_nms post_nms logit_type threads"),
    ),
    "detections": _layout(
        "DetectionsCall",
        (_POINTER, "class_logits box_deltas rois counts image_sizes"),
        (_POINTER, "num_detections boxes scores labels roi_index overflow"),
        (_FLOAT, "score_threshold iou_threshold min_size"),
        (_FLOAT * 4, "box_weights"),
        (_INT, "images rows classes candidates most class_agnostic logit_type threads"),
    ),
    "merge": _layout(
        "MergeCall",
        (_POINTER, "class_logits box_edges windows image_sizes num_detections boxes scores labels overflow"),
        (_FLOAT, "window_threshold merge_threshold score_threshold min_size"),
        (_INT, "images rows classes candidates most class_agnostic logit_type threads"),
    ),
    "paste": _layout(
        "PasteCall",
        (_POINTER, "masks boxes offsets out"),
        (_FLOAT, "threshold"),
        (_INT, "count side height width cleared threads"),
    ),
    "extents": _layout("ExtentsCall", (_POINTER, "boxes extents"), (_INT, "count side height width")),
    "rle": _layout(
        "RleCall",
        (_POINTER, "masks boxes text ends"),
        (_LONG, "capacity"),
        (_FLOAT, "threshold"),
        (_INT, "count side height width threads"),
    ),
    "resize": _layout(
        "ResizeCall",
        (_POINTER, "image out"),
        (_LONG, "row_bytes out_row_bytes"),
        (_INT, "height width channels out_height out_width threads"),
    ),
    "max_pool": _layout(
        "MaxPoolCall",
        (_POINTER, "x values argmax"),
        (_LONG, "planes"),
        (_INT, "height width rows columns kernel stride type threads"),
    ),
    "max_unpool": _layout(
        "MaxUnpoolCall",
        (_POINTER, "x argmax out"),
        (_LONG, "planes"),
        (_INT, "height width rows columns kernel stride type threads"),
    ),
}
"""By function: the one structure that `regionrt_<function>` takes."""


def run(library: ctypes.CDLL, function: str, **fields: object) -> None:
    """Calls `function` with a structure of `fields`. MemoryError where the library finds no memory."""
    if getattr(library, f"regionrt_{function}")(ctypes.byref(CALLS[function](**fields))):
        raise MemoryError(f"native {function}: no memory for its temporaries")
