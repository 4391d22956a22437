"""The thresholds and limits of a detector: read from a module, changed on a copy, written into the manifest."""

import copy
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from torch import nn
from torchvision.models.detection import FasterRCNN

from regionrt.train.models.proposal_net import ProposalNet

from .errors import ExportError

MAX_TOP_K = 3840  # TensorRT's TopK takes no more


@dataclass(frozen=True)
class Thresholds:
    """What is fixed at export. Scores and IoUs are 0..1, the others counts; None: the net finds no proposals itself."""

    score: float  # of a final detection
    nms: float  # IoU of the final NMS, per class
    detections: int  # most detections of an image, D
    proposals: int  # most proposals of an image, P
    proposal_nms: float | None
    proposal_score: float | None
    proposal_candidates: int | None  # best anchors of a level that enter its NMS
    candidates: int  # best (RoI, class) pairs that enter the final NMS

    def __post_init__(self) -> None:
        for name in ("score", "nms", "proposal_nms", "proposal_score"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ExportError(f"expected {name} between 0 and 1, found {value}")
        for name in ("detections", "proposals", "proposal_candidates", "candidates"):
            value = getattr(self, name)
            if value is not None and not 1 <= value <= MAX_TOP_K:
                where = " (the detector's rpn_pre_nms_top_n_test)" if name == "proposal_candidates" else ""
                raise ExportError(
                    f"expected {name}{where} between 1 and {MAX_TOP_K} (TensorRT's TopK limit), found {value}"
                )

    def to_json(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if value is not None}


def thresholds_of(module: nn.Module, **changes: float | int | None) -> Thresholds:
    """The module's own thresholds, with the given ones (not None) in their place."""
    takes = isinstance(module, ProposalNet)
    heads = module.heads if takes else module.roi_heads
    rpn = None if takes else module.rpn
    own = Thresholds(
        score=heads.score_thresh,
        nms=heads.nms_thresh,
        detections=heads.detections_per_img,
        proposals=module.slots if rpn is None else rpn._post_nms_top_n["testing"],
        proposal_nms=None if rpn is None else rpn.nms_thresh,
        proposal_score=None if rpn is None else rpn.score_thresh,
        proposal_candidates=None if rpn is None else rpn._pre_nms_top_n["testing"],
        candidates=MAX_TOP_K,
    )
    return replace(own, **{name: value for name, value in changes.items() if value is not None})  # type: ignore[arg-type]


def with_thresholds(module: nn.Module, thresholds: Thresholds | Mapping[str, Any]) -> nn.Module:
    """A copy of the module (sharing no weights) that uses `thresholds`; a manifest's dictionary is accepted.

    Nets that are no detectors are copied as they are. Of a dictionary, entries that are no thresholds are passed over,
    and those that are missing stay the module's own.
    """
    if not isinstance(module, (FasterRCNN, ProposalNet)):
        return copy.deepcopy(module)  # dense nets and localisers have none
    if not isinstance(thresholds, Thresholds):
        known = {field.name for field in fields(Thresholds)}
        thresholds = thresholds_of(module, **{name: value for name, value in thresholds.items() if name in known})
    changed = copy.deepcopy(module)
    if isinstance(changed, ProposalNet):
        changed.slots = thresholds.proposals
        changed.heads = replace(
            changed.heads, score_thresh=thresholds.score, nms_thresh=thresholds.nms,
            detections_per_img=thresholds.detections,
        )  # fmt: skip
        return changed
    heads, rpn = changed.roi_heads, changed.rpn
    heads.score_thresh, heads.nms_thresh = thresholds.score, thresholds.nms
    heads.detections_per_img = thresholds.detections
    rpn.nms_thresh, rpn.score_thresh = thresholds.proposal_nms, thresholds.proposal_score
    rpn._post_nms_top_n = {**rpn._post_nms_top_n, "testing": thresholds.proposals}
    rpn._pre_nms_top_n = {**rpn._pre_nms_top_n, "testing": thresholds.proposal_candidates}
    return changed
