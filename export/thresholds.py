"""The thresholds and limits of a detector: read from a module, changed on a copy, written into the manifest."""

import copy
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import nn
from torchvision.models.detection import FasterRCNN

from regionrt.train.models.overfeat import Overfeat
from regionrt.train.models.overfeat_eager import merging_of
from regionrt.train.models.overfeat_eager import thresholds_of as own_thresholds
from regionrt.train.models.proposal_net import ProposalNet
from regionrt.train.models.region import MAX_CANDIDATES

from .errors import ExportError

CHOSEN = ("score", "nms", "window_score", "merge", "candidates", "detections", "proposals")
"""Those that are options of an export; a net that has not all of them refuses the others."""


@dataclass(frozen=True)
class Thresholds:
    """What is fixed at export. Scores and IoUs are 0..1, the others counts; None: the net has no such threshold."""

    score: float  # of a final detection
    detections: int  # most detections of an image, D
    candidates: int  # best (RoI, class) pairs that enter the final NMS, or (window, class) pairs that are merged
    nms: float | None = None  # IoU of the final NMS, per class
    proposals: int | None = None  # most proposals of an image, P
    proposal_nms: float | None = None
    proposal_score: float | None = None
    proposal_candidates: int | None = None  # best anchors of a level that enter its NMS
    window_score: float | None = None  # of windows whose boxes are merged
    merge: float | None = None  # the match score (0..2) above which boxes are not merged

    def __post_init__(self) -> None:
        for name in ("score", "nms", "proposal_nms", "proposal_score", "window_score"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ExportError(f"expected {name} between 0 and 1, found {value}")
        if self.merge is not None and not 0 <= self.merge <= 2:
            raise ExportError(f"expected merge between 0 (never) and 2 (all boxes of a class), found {self.merge}")
        for name in ("detections", "proposals", "proposal_candidates", "candidates"):
            value = getattr(self, name)
            if value is not None and not 1 <= value <= MAX_CANDIDATES:
                where = " (the detector's rpn_pre_nms_top_n_test)" if name == "proposal_candidates" else ""
                raise ExportError(
                    f"expected {name}{where} between 1 and {MAX_CANDIDATES} (TensorRT's TopK limit), found {value}"
                )

    def to_json(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if value is not None}


def thresholds_of(module: nn.Module, **changes: float | int | None) -> Thresholds:
    """The module's own thresholds, with the given ones (not None) in their place. ExportError for one it has not."""
    own = _own(module)
    given = {name: value for name, value in changes.items() if value is not None}
    check_had(given, own.to_json(), "OverFeat" if isinstance(module, Overfeat) else f"a {type(module).__name__}")
    return replace(own, **given)  # type: ignore[arg-type]


def thresholds_from(module: nn.Module, stated: Mapping[str, Any]) -> Thresholds:
    """The module's own thresholds, with those that a manifest states in their place: of another kind of net the ones
    that both have."""
    own = _own(module)
    return replace(own, **{name: stated[name] for name in own.to_json() if name in stated})


def check_had(given: Collection[str], had: Collection[str], net: str) -> None:
    """ExportError where thresholds are `given` that are not among those that the net `had`."""
    if wrong := [name for name in given if name not in had]:
        has = ", ".join(name for name in CHOSEN if name in had) or "none"
        raise ExportError(f"{', '.join(wrong)}: {net} has no such threshold, leave it out (it has {has})")


def _own(module: nn.Module) -> Thresholds:
    if isinstance(module, Overfeat):
        return Thresholds(**own_thresholds(module))
    takes = isinstance(module, ProposalNet)
    heads = module.heads if takes else module.roi_heads
    rpn = None if takes else module.rpn
    return Thresholds(
        score=heads.score_thresh,
        nms=heads.nms_thresh,
        detections=heads.detections_per_img,
        proposals=module.slots if rpn is None else rpn._post_nms_top_n["testing"],
        proposal_nms=None if rpn is None else rpn.nms_thresh,
        proposal_score=None if rpn is None else rpn.score_thresh,
        proposal_candidates=None if rpn is None else rpn._pre_nms_top_n["testing"],
        candidates=MAX_CANDIDATES,
    )


def with_thresholds(module: nn.Module, thresholds: Thresholds | Mapping[str, Any]) -> nn.Module:
    """A copy of the module (sharing no weights) that uses `thresholds`; a manifest's dictionary is accepted.

    Nets that are no detectors are copied as they are. A dictionary is read as `thresholds_from` does.
    """
    if not isinstance(module, (FasterRCNN, ProposalNet, Overfeat)):
        return copy.deepcopy(module)  # dense nets and localisers have none
    if not isinstance(thresholds, Thresholds):
        thresholds = thresholds_from(module, thresholds)
    changed = copy.deepcopy(module)
    if isinstance(changed, Overfeat):
        changed.heads = merging_of(thresholds.to_json())
        return changed
    if isinstance(changed, ProposalNet):
        assert thresholds.proposals is not None  # it has both
        assert thresholds.nms is not None
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
