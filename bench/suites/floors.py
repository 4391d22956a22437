"""What the peers' table has to show: what was asked of each net and size, and what was reached."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .peer_case import EAGER, Case, Row

BEST_OURS = "openvino-staged-bf16"
BF16_PEERS = ("torch-bf16", "torch-compile", "export-openvino-bf16")
FP32_STAGED = ("openvino-staged-fp32", "onnxruntime-staged-fp32", "ncnn-staged-fp32")
WHOLE_FP32 = "onnxruntime-native-fp32"
FP32_OVER_WHOLE = 1.5
MOST_NOT_DENSE = 0.15
_RATIOS = {  # (net, height, own resize): times over eager fp32, times over the best peer
    ("fasterrcnn_resnet50_fpn", 480, False): (8.0, 1.6),
    ("fasterrcnn_resnet50_fpn", 800, False): (10.0, 1.4),
    ("maskrcnn_resnet50_fpn", 480, False): (8.0, 3.0),
    ("maskrcnn_resnet50_fpn", 800, False): (9.0, 5.0),
    ("fasterrcnn_mobilenet_v3_large_320_fpn", 480, True): (7.0, 1.6),
    ("fasterrcnn_mobilenet_v3_large_320_fpn", 800, True): (7.0, 1.6),
    ("fasterrcnn_mobilenet_v3_large_320_fpn", 480, False): (8.5, 1.5),
    ("fasterrcnn_mobilenet_v3_large_320_fpn", 800, False): (8.5, 1.5),
}


@dataclass(frozen=True)
class Floor:
    """`verdict`: "reached", "not reached", "not measured", or "not judged: not quiet" where other load got in."""

    case: str
    what: str
    asked: str
    reached: str
    verdict: str


def floors_of(case: Case) -> list[Floor]:
    """The floors of one case, in the order in which they are asked."""
    floors = []
    ours, asked_times = case.row(BEST_OURS), _RATIOS.get((case.net, case.size[0], case.own_resize))
    if asked_times:
        over_eager, over_best = (ours.over_eager, ours.over_best_peer) if ours else (None, None)
        peer = case.row(case.best_peer or EAGER)
        for what, value, asked, rows in (
            ("bf16 over eager fp32", over_eager, asked_times[0], (ours, case.row(EAGER))),
            ("bf16 over the best peer", over_best, asked_times[1], (ours, peer)),
        ):
            floors.append(_times(case, what, value.ratio if value else None, asked, rows))
    peers = [row for row in (case.row(id) for id in BF16_PEERS) if row is not None and row.matched is not None]
    if ours and peers:
        best = max(peers, key=lambda row: row.matched or 0.0)
        floors.append(
            _floor(case, f"bf16, eager's detections matched, as {best.name}", _matched(ours), best.matched or 0.0)
        )
    staged = [row for row in (case.row(id) for id in FP32_STAGED) if row is not None]
    for row in staged:
        floors.append(_floor(case, f"matched, {row.name}", _matched(row), 1.0))
    whole = case.row(WHOLE_FP32)
    if staged and whole and whole.latency:
        best_ms, fastest = min((row.latency.p50_ms, row.id) for row in staged if row.latency)
        what = "fp32 staged over ONNX Runtime's whole graph"
        times = whole.latency.p50_ms / best_ms
        floors.append(_times(case, what, times, FP32_OVER_WHOLE, (whole, case.row(fastest))))
    if case.size[0] >= 800 and ours and ours.shares:
        share = ours.shares.not_dense
        verdict = "reached" if share <= MOST_NOT_DENSE else "not reached"
        floors.append(Floor(case.key, "bf16, not dense", f"≤ {MOST_NOT_DENSE:.0%}", f"{share:.1%}", verdict))
    return floors


def _matched(row: Row) -> float:
    """Against eager on the same pixels: what torchvision rounds differently is no fault of the artefact."""
    return row.matched_on_canvas if row.matched_on_canvas is not None else row.matched or 0.0


def _times(case: Case, what: str, value: float | None, asked: float, rows: Sequence[Row | None]) -> Floor:
    if value is None:
        return Floor(case.key, what, f"≥ {asked:g}×", "–", "not measured")
    verdict = "reached" if value >= asked else "not reached"
    if any(row is not None and row.noisy for row in rows):  # it slows the candidates down by very different factors
        verdict = "not judged: not quiet"
    return Floor(case.key, what, f"≥ {asked:g}×", f"{value:.2f}×", verdict)


def _floor(case: Case, what: str, value: float, asked: float) -> Floor:
    verdict = "reached" if value >= asked else "not reached"
    return Floor(case.key, what, f"≥ {100 * asked:.1f} %", f"{100 * value:.1f} %", verdict)
