"""A whole report with made-up but realistic figures, for tests of the page; run with a folder it draws it there."""

from __future__ import annotations

import base64
import io
import sys
from dataclasses import replace

import numpy as np
from PIL import Image, ImageDraw

from regionrt.bench.schema import (
    FORMAT,
    Accuracy,
    Agreement,
    Candidate,
    DataFacts,
    Difference,
    Footprint,
    Latency,
    Panel,
    Picture,
    Ratio,
    Report,
    Shares,
    StageCheck,
    Verification,
)

CLASSES = ("RBC", "WBC", "Platelets")
ROWS = [  # id, name, form, precision, median ms, AP, size in MB, load s, memory in MB
    ("torch-eager", "PyTorch eager", "eager", "fp32", 203.1, 0.5631, 5.42, 2.91, 611),
    ("torch-best", "PyTorch at its best", "compiled backbone, channels last", "bf16", 118.7, 0.5619, 5.42, 9.8, 742),
    ("torch-torchvision", "torchvision's own forward", "torchvision", "fp32", 211.5, 0.5627, 5.42, 2.88, 618),
    ("bccd/ort-native", "bccd: ONNX Runtime native fp32", "native", "fp32", 86.4, 0.5631, 5.61, 0.31, 182),
    ("bccd/ort-portable", "bccd: ONNX Runtime portable fp32", "portable", "fp32", 131.2, 0.563, 5.63, 0.42, 244),
    ("bccd/ort-staged", "bccd: ONNX Runtime staged fp32", "staged", "fp32", 80.2, 0.5631, 5.6, 0.33, 176),
    ("bccd-svd/ort-native", "bccd-svd: ONNX Runtime native fp32", "native", "fp32", 61.9, 0.5597, 3.1, 0.28, 161),
]
TRIED = "fastest of the forms tried: eager 203 ms, channels last 196 ms, channels last + bf16 141 ms, compiled 119 ms"
HOW = "Load (imports and artefact), first result and peak memory (of the whole process): in a fresh process for each."
COMPRESSED = "bccd-svd was made from another checkpoint than the one given: its difference includes compression."


def _latency(rng: np.random.Generator, median: float, detections: float) -> Latency:
    samples = median * np.exp(rng.normal(0, 0.04, 144)) * (1 + 0.3 * (rng.random(144) > 0.97))
    p50, p90, p99 = np.percentile(samples, [50, 90, 99])
    mean = float(samples.mean())
    pre, post = 2.9, 0.6
    return Latency(
        samples_ms=tuple(round(float(v), 3) for v in samples),
        disturbed=(),
        p50_ms=float(p50),
        p90_ms=float(p90),
        p99_ms=float(p99),
        mean_ms=mean,
        stages_ms={"preprocess": pre, "run": mean - pre - post, "postprocess": post},
        images_per_second={"1": 1000 / mean, "4": 1130 / mean},
        detections_per_image=detections,
    )


def _shares(median: float) -> Shares:
    parts = {"canvas": 0.02, "dense_0": 0.6, "RegionProposals_1": 0.03, "RegionRoiAlign_2": 0.05, "dense_1": 0.27}
    parts |= {"RegionDetections_4": 0.02, "between the steps": 0.004, "boxes and masks back": 0.006}
    return Shares({name: median * part for name, part in parts.items()}, ("dense_0", "dense_1"), 0.13)


def _accuracy(ap: float, base: float, rng: np.random.Generator) -> Accuracy:
    per_class = {
        name: {"AP": ap * scale + float(rng.normal(0, 0.002)), "AP50": min(0.99, ap * scale * 1.6)}
        for name, scale in zip(CLASSES, (1.06, 1.31, 0.63), strict=True)
    }
    points = 100 * (ap - base)
    spread = (points - 0.31, points + 0.28) if points else (0.0, 0.0)
    differences = (Difference("AP", points, *spread, 0.95, 1000, 0),)
    metrics = {"AP": ap, "AP50": 0.9012, "AP75": 0.6023, "AP_small": 0.31, "AP_medium": ap - 0.01, "AP_large": None}
    metrics |= {"voc07_AP50": 0.889, "voc_AP50": 0.902}
    return Accuracy(72, metrics, per_class, differences)


def _ratio(value: float) -> Ratio:
    return Ratio(value, value * 0.985, value * 1.013)


def _panel(candidate: str, photo: np.ndarray, shift: int) -> Panel:
    picture = Image.fromarray(photo)
    picture.thumbnail((560, 560))
    draw = ImageDraw.Draw(picture)
    for k in range(5):
        x, y = 30 + 70 * k + shift, 40 + 50 * (k % 3)
        draw.rectangle((x, y, x + 90, y + 80), outline=(255, 80, 40), width=3)
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=82)
    return Panel(candidate, 5, picture.width, picture.height, base64.b64encode(stream.getvalue()).decode())


def example_report(photos: int = 2) -> Report:
    """BCCD: three PyTorch rows, three artefacts that ran, an engine that was built but could not run here."""
    rng = np.random.default_rng(0)
    eager, best = ROWS[0][4], ROWS[1][4]
    rows = []
    for id_, name, form, precision, median, ap, size, load, memory in ROWS:
        kind = "torch" if id_.startswith("torch") else "bundle"
        accuracy = _accuracy(ap, ROWS[0][5], rng)
        rows.append(
            Candidate(
                id=id_,
                name=name,
                kind=kind,
                backend="torch" if kind == "torch" else "onnxruntime",
                form=form,
                precision=precision,
                bundle=id_.split("/")[0] if kind == "bundle" else None,
                status="measured",
                reason="",
                notes=(TRIED,) if id_ == "torch-best" else (),
                latency=_latency(rng, median, 12.3),
                shares=_shares(median) if form == "staged" else None,
                speedup_over_eager=None if id_ == "torch-eager" else _ratio(eager / median),
                speedup_over_best_torch=None if id_ == "torch-best" else _ratio(best / median),
                accuracy=replace(accuracy, differences=()) if id_ == "torch-eager" else accuracy,
                footprint=Footprint(int(size * 1e6), load, load + 0.4, int(memory * 1e6), None, HOW),
            )
        )
    rows.append(
        Candidate(
            id="bccd/tensorrt-rtx-portable-fp16",
            name="bccd: TensorRT for RTX portable fp16",
            kind="bundle",
            backend="tensorrt-rtx",
            form="portable",
            precision="fp16",
            bundle="bccd",
            status="not run",
            reason="built for compute capabilities 8.6, 8.9; this machine has no NVIDIA GPU",
            notes=("26 of 26 convolutions fp16",),
            latency=None,
            shares=None,
            speedup_over_eager=None,
            speedup_over_best_torch=None,
            accuracy=None,
            footprint=Footprint(8_120_000, None, None, None, 41.3, "not run here"),
        )
    )
    pictures: list[Picture] = []
    if photos:
        from skimage import data

        whys = ("most detections", "largest disagreement with PyTorch: 1 detection of 12 has no partner")
        for image, photo, why in list(
            zip(("cat.jpg", "coffee.jpg"), (data.chelsea(), data.coffee()), whys, strict=True)
        )[:photos]:
            pictures.append(
                Picture(image, why, (_panel("torch-eager", photo, 0), _panel("bccd-svd/ort-native", photo, 2)))
            )
    values = (
        ("backbone/neck features", "features.0", 4.1e-6, 3.1e-6),
        ("RPN scores", "objectness.0", 1.2e-6, 8.8e-6),
        ("proposals", "rois", 0.0, 6.1e-5),
        ("head outputs (classes)", "class_logits", 2.2e-6, 1.9e-5),
        ("final detections", "boxes", 0.0, 3e-4),
    )
    checks = tuple(
        StageCheck(stage, value, "", error, most, 1e-4, True, "BloodImage_00112.jpg")
        for stage, value, error, most in values
    )
    agreements = tuple(Agreement(batch, 408, 408, 408, 1.0, "") for batch in (1, 4))
    verdict = Verification("native.onnx", 32, True, None, checks, agreements)
    return Report(
        format=FORMAT,
        created="2026-11-20T20:18:00Z",
        title="faster_rcnn on bccd: PyTorch and 4 artefacts",
        task="detection",
        model="faster_rcnn",
        labels=("__background__", *CLASSES),
        data=DataFacts("bccd", "test", 72, 961, 3, False, {"zero area": 2}),
        accuracy_note="",
        latency_images="36 photos of the test split, 4 rounds",
        score_shown=0.5,
        max_drop=0.5,
        baseline="torch-eager",
        best_torch="torch-best",
        chosen="bccd-svd/ort-native",
        candidates=tuple(rows),
        verification=(verdict,),
        environment={
            "machine": {
                "CPU": "Intel Xeon Processor",
                "cores": "2",
                "instruction sets": "AVX2, AVX-512, AMX bf16",
                "memory": "24.6 GB",
                "GPU": "none",
            },
            "setting": {"threads": "2", "clock": "not readable", "load before": "0.12"},
            "software": {
                "Python": "3.11.7",
                "regionrt": "0.1.0",
                "torch": "2.14.1",
                "torchvision": "0.29.1",
                "onnxruntime": "1.24.0",
                "numpy": "2.4.0",
            },
        },
        commands=("regionrt bench bccd bccd-svd --checkpoint runs/bccd/best.pt --data bccd --split test --out report",),
        notes=(COMPRESSED,),
        pictures=tuple(pictures),
    )


if __name__ == "__main__":
    from regionrt.bench.render import render

    print(*render(example_report(), sys.argv[1]), sep="\n")
