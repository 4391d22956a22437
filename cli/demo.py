"""`regionrt demo`: the whole road on data it makes itself, from random weights to pictures and a report."""

import json
import time
from dataclasses import replace
from pathlib import Path

import torch

from regionrt.bench.report import BenchOptions
from regionrt.bench.schema import Report
from regionrt.runtime.infer import main as infer
from regionrt.train.checkpoint import read_checkpoint
from regionrt.train.data import open_data, write_images
from regionrt.train.evaluate import evaluate
from regionrt.train.options import TrainOptions
from regionrt.train.torch_runner import torch_predictor
from regionrt.train.trainer import train

from . import console
from .deploy import DeployOptions, deploy

DATA = "shapes:train=1000,val=40,test=80,size=256x256,seed=0,turn=30"
MODEL = "mask_rcnn"
CONFIG = {
    "backbone": "resnet18", "size": [128, 128], "channels": 64, "representation": 256, "mask_layers": [64, 64],
    "proposals": 300, "detections": 20, "train_proposals": 300, "rois_per_image": 48, "anchors_per_image": 128,
}  # fmt: skip
TRAINING = TrainOptions(epochs=6, batch=8, optimizer="adamw", lr=0.003, weight_decay=0.01, evaluate_every=0)
PHOTOS = 8


def demo(out: Path) -> int:
    """Everything goes into `out`: run/, bundle/ (with report.html), photos/, pictures/. Exit code 0 if all worked."""
    started = time.perf_counter()
    out.mkdir(parents=True, exist_ok=True)

    console.say(f"1/5 train {MODEL} on shapes over photos, from random weights ({TRAINING.epochs} epochs)")
    best = train(MODEL, DATA, out / "run", _training(), config=CONFIG, report=_epoch)
    checkpoint = read_checkpoint(best)

    console.say("2/5 evaluate the checkpoint on unseen shapes")
    with torch_predictor(checkpoint) as predict, console.counting("evaluate") as tell:
        metrics = evaluate(predict, open_data(DATA, "test", checkpoint.labels), progress=tell).metrics
    console.say(
        "    " + "  ".join(f"{name} {100 * metrics[name]:.1f}" for name in ("AP", "AP50", "mask_AP", "mask_AP50"))
    )

    console.say("3/5 deploy: export, build a TensorRT for RTX engine, verify, bench beside PyTorch")
    options = DeployOptions(
        max_drop=0.5,
        bench=BenchOptions(seconds=10, resamples=500, compile_seconds=0, torchvision=False),
        verify_images=8,
    )
    command = f"regionrt deploy {best} --data {DATA} --out {out / 'bundle'} --max-drop 0.5"
    with console.steps("deploy") as steps:
        report = deploy(checkpoint, DATA, out / "bundle", options, commands=(command,), progress=steps)

    console.say("4/5 run the bundle on photos, without PyTorch")
    photos = write_images(out / "photos", PHOTOS, spec=DATA)
    code = infer([str(out / "bundle"), *map(str, photos), "--out", str(out / "pictures"), "--format", "image"])

    console.say("5/5 what came of it")
    _summary(out, report, metrics, time.perf_counter() - started)
    return code


def _training() -> TrainOptions:
    """bf16 where the CPU computes in it: elsewhere it is emulated, and slow."""
    bf16 = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return replace(TRAINING, precision="bf16" if bf16 else "fp32", progress=console.err.is_terminal)


def _epoch(row: object) -> None:
    values = dict(row)  # type: ignore[call-overload]
    if "epoch" in values:
        console.say(f"    epoch {values['epoch']}: loss {values['loss']:.3f}, {values['seconds']:.0f} s")


def _summary(out: Path, report: Report, metrics: dict[str, float], seconds: float) -> None:
    rows = []
    for row in report.candidates:
        p50 = f"{row.latency.p50_ms:.1f} ms" if row.latency else "not run here"
        faster = f"{row.speedup_over_eager.ratio:.2f}×" if row.speedup_over_eager else ""
        ap = row.accuracy.metrics.get("AP") if row.accuracy else None
        rows.append([row.name, p50, faster, f"{100 * ap:.2f}" if ap is not None else ""])
    console.table("latency and accuracy", ["candidate", "p50", "faster than eager", "AP"], rows)
    manifest = json.loads((out / "bundle" / "manifest.json").read_text(encoding="utf-8"))
    engines = [f"{out / 'bundle' / a['files'][0]}" for a in manifest["artifacts"] if a.get("engine")]
    console.out.print(f"report:    {out / 'bundle' / 'report.html'}", markup=False, soft_wrap=True)
    console.out.print(f"pictures:  {out / 'pictures'}", markup=False, soft_wrap=True)
    console.out.print(f"bundle:    {out / 'bundle'}", markup=False, soft_wrap=True)
    for engine in engines:
        console.out.print(f"engine:    {engine}", markup=False, soft_wrap=True)
    console.out.print(
        f"AP50 {metrics['AP50']:.3f} on unseen shapes; {seconds:.0f} s in all", markup=False, soft_wrap=True
    )
