"""The verbs that train and judge nets: models, train, eval."""

import json
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from . import console
from .app import verb
from .arguments import AsJson, Classes, Data, Labels, Model, Size, checkpoint_from
from .values import names_from, size_from, sizes_from


@verb()
def models(as_json: AsJson = False) -> None:
    """The models, what each is and what it supports."""
    from regionrt.train.models import MODELS

    if as_json:
        console.print_json({n: {"task": m.task, "description": m.description} for n, m in MODELS.items()})
        return
    rows = [[name, model.task, model.description] for name, model in MODELS.items()]
    console.table("models", ["name", "task", "what"], rows)
    console.say(
        "each of them: train, eval, compress, export (fp32, fp16; fixed or, but for overfeat, dynamic size), "
        "run by onnxruntime, build for tensorrt-rtx, verify, bench, deploy"
    )


@verb()
def train(
    model: Annotated[str, typer.Argument(help="a name of `regionrt models`")],
    data: Data,
    out: Annotated[Path, typer.Option(metavar="RUN", help="run folder: best.pt, last.pt, log.csv")],
    backbone: Annotated[
        str | None,
        typer.Option(
            help="squeezenet1_1, mobilenet_v2, vgg16, alexnet, mobilenet_v3_large, resnet18 or 50; fast, accurate"
        ),
    ] = None,
    size: Size = None,
    sizes: Annotated[
        str | None, typer.Option(metavar="HxW,…", help="multi-size training: canvases that epochs take in turn")
    ] = None,
    epochs: int = 20,
    batch: Annotated[int, typer.Option(help="images per step and process")] = 4,
    lr: Annotated[float, typer.Option(help="highest learning rate of the schedule")] = 0.01,
    optimizer: Annotated[str, typer.Option(help="sgd, or adamw (lr near 0.001), better from random weights")] = "sgd",
    weight_decay: Annotated[float, typer.Option(help="of weights; biases and norms have none")] = 5e-4,
    init: Annotated[Path | None, typer.Option(metavar="WEIGHTS", help="ImageNet weights of the backbone")] = None,
    start: Annotated[
        Path | None, typer.Option("--from", metavar="CKPT", help="go on from this checkpoint, e.g. a compressed one")
    ] = None,
    freeze: Annotated[
        str | None, typer.Option(metavar="LAYERS", help="comma-separated, e.g. backbone (a feature extractor), or none")
    ] = None,
    backbone_lr: Annotated[float | None, typer.Option(help="fine-tuning: rate of the backbone's layers")] = None,
    schedule: Annotated[str, typer.Option(help="of the rates: one-cycle, poly or constant")] = "one-cycle",
    warmup: Annotated[float, typer.Option(help="share of the steps in which the rates rise")] = 0.15,
    balance: Annotated[bool, typer.Option("--balance", help="segmentation: weigh classes by median frequency")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="go on after the last whole epoch in RUN")] = False,
    classes: Classes = None,
    precision: Annotated[str, typer.Option(help="fp32, or bf16 where the processor has it")] = "fp32",
    mean_std: Annotated[
        float | None, typer.Option(help="one value for mean and std, e.g. 0.5 for MobileNetV2 of TensorFlow")
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="any other option of the model, e.g. representation=512"),
    ] = None,
    early_stop: Annotated[int, typer.Option(help="epochs without a better validation AP; 0: never")] = 0,
    evaluate_every: Annotated[int, typer.Option(help="epochs between validations; 0: none")] = 1,
    scale: Annotated[str, typer.Option(help="range of random scaling, e.g. 0.8,1.2")] = "1,1",
    colour: Annotated[float, typer.Option(help="strength of colour jitter, 0 is none")] = 0.0,
    flip: Annotated[str, typer.Option(help="none, horizontal or both")] = "horizontal",
    workers: Annotated[int, typer.Option(help="processes that prepare batches")] = 0,
    devices: Annotated[str, typer.Option(help="Lightning's: auto, or how many")] = "auto",
    strategy: Annotated[str, typer.Option(help="Lightning's: auto, ddp, …")] = "auto",
    accelerator: Annotated[str, typer.Option(help="Lightning's: auto, cpu, gpu")] = "auto",
    seed: int = 0,
    as_json: AsJson = False,
) -> None:
    """Train a model on VOC, COCO or `shapes` data, segmentation on CamVid- or Pascal-style label maps."""
    from regionrt.train.options import TrainOptions
    from regionrt.train.trainer import train as run

    low, _, high = scale.partition(",")
    try:
        scales = (float(low), float(high or low))
    except ValueError as error:
        raise typer.BadParameter(f"--scale: expected LOW,HIGH such as 0.8,1.2, found {scale!r}") from error
    options = TrainOptions(
        epochs=epochs, batch=batch, lr=lr,
        optimizer=optimizer, backbone_lr=backbone_lr, schedule=schedule, warmup=warmup, balance=balance,
        weight_decay=weight_decay, init=init, start=start, freeze=names_from(freeze) or (), resume=resume,
        size=size_from(size), sizes=sizes_from(sizes), precision=precision, early_stop=early_stop,
        evaluate_every=evaluate_every, scale=scales, colour=colour, flip=flip, workers=workers,
        devices=int(devices) if devices.isdecimal() else devices, strategy=strategy, accelerator=accelerator, seed=seed,
        progress=sys.stderr.isatty(),
    )  # fmt: skip
    config = _settings(option or [])
    if backbone is not None:
        config["backbone"] = backbone
    if mean_std is not None:
        config |= {"mean": [mean_std] * 3, "std": [mean_std] * 3}
    rows: list[dict[str, Any]] = []

    def report(row: Any) -> None:
        if "note" in row:
            console.say(str(row["note"]))
            return
        if "groups" in row:
            _print_groups(row["groups"])
            return
        rows.append(dict(row))
        console.say("  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()))

    best = run(model, data, out, options, config=config, classes=names_from(classes), report=report)
    if as_json:
        console.print_json({"best": str(best), "epochs": rows})
    else:
        console.out.print(f"{best}", markup=False, soft_wrap=True)


def _print_groups(groups: Sequence[Any]) -> None:
    """What is frozen, and which rate the rest has; on standard error, where progress goes."""
    rows = [
        [
            g["group"],
            str(g["tensors"]),
            f"{g['parameters']:,}",
            *(("–", "–") if g["frozen"] else (f"{g['lr']:g}", f"{g['weight_decay']:g}")),
        ]
        for g in groups
    ]
    console.table("what learns", ["layers", "tensors", "parameters", "highest rate", "decay"], rows, to=console.err)


def _settings(pairs: Sequence[str]) -> dict[str, Any]:
    """`representation=512` → {"representation": 512}; values are JSON, or text where they are none."""
    settings: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise typer.BadParameter(f"--set: expected KEY=VALUE, found {pair!r}")
        try:
            settings[name] = json.loads(value)
        except json.JSONDecodeError:
            settings[name] = value
    return settings


@verb("eval")
def evaluate(
    source: Annotated[Path, typer.Argument(metavar="CHECKPOINT|BUNDLE")],
    data: Data,
    split: str = "test",
    classes: Classes = None,
    model: Model = None,
    labels: Labels = None,
    max_images: Annotated[int | None, typer.Option(help="only the first ones")] = None,
    against: Annotated[
        Path | None,
        typer.Option(metavar="CHECKPOINT|BUNDLE", help="also the difference to this one, with its 95 % interval"),
    ] = None,
    backend: Annotated[str, typer.Option(help="of a bundle")] = "auto",
    as_json: AsJson = False,
) -> None:
    """AP, mIoU or localisation of a checkpoint or a bundle, by the same code.

    `--against`: the interval is of a paired bootstrap over the images: where it holds 0, these images do not tell
    the two apart.
    """
    predict, task = _opened(source, backend, model, labels)
    with ExitStack() as opened:
        opened.enter_context(predict)
        other = None
        if against is not None:
            other, of = _opened(against, backend, model, labels)
            opened.enter_context(other)
            if (of.name, other.labels) != (task.name, predict.labels):
                raise typer.BadParameter(
                    f"--against {against}: expected a net for {task.name} with the labels {', '.join(predict.labels)}, "
                    f"found one for {of.name} with {', '.join(other.labels)}"
                )
        chosen = task.open_data(data, split, predict.labels, names_from(classes))
        with console.counting(f"{source.name} on {split}") as tell:
            found = task.evaluate(predict, chosen, max_images=max_images, progress=tell)
        differences: tuple[Any, ...] = ()
        if other is not None:
            from regionrt.bench.accuracy import differences_to

            with console.counting(f"{against} on {split}") as tell:
                reference = task.evaluate(other, chosen, max_images=max_images, progress=tell)
            (differences,) = differences_to(reference, {"": found}, chosen, task).values()
    if as_json:
        compared = {"differences": [asdict(difference) for difference in differences]} if against else {}
        console.print_json({**found.to_json(), **compared, "about": predict.about})
        return
    backend_used = f"{predict.about['backend']} {predict.about.get('precision', '')}"
    title = f"{source} on {split}, {len(found.image_ids)} images, {backend_used} (points, 0..100)"
    console.table(title, ["figure", "value"], console.metrics_rows(found.metrics))
    columns = task.per_class + (("mask_AP", "mask_AP50") if "mask_AP" in found.metrics else ())
    rows = [
        [name, f"{int(values['objects'])}", *(row[1] for row in console.metrics_rows({c: values[c] for c in columns}))]
        for name, values in found.per_class.items()
    ]
    console.table("per class", ["class", task.counted, *columns], rows)
    if against is not None:
        from regionrt.bench.figures import interval

        rows = [[difference.metric, interval(difference)] for difference in differences]
        console.table(f"difference to {against}, points [95 %]", ["figure", "difference"], rows)


def _opened(source: Path, backend: str, model: str | None, labels: Path | None) -> tuple[Any, Any]:
    """The predictor of a checkpoint or a bundle, and its task."""
    from regionrt.runtime import load
    from regionrt.train.models import MODELS
    from regionrt.train.tasks import TASKS
    from regionrt.train.torch_runner import torch_predictor

    if source.is_dir():
        predict = load(source, backend)
        return predict, TASKS[predict.about["task"]]
    checkpoint = checkpoint_from(source, model, labels)
    return torch_predictor(checkpoint), TASKS[MODELS[checkpoint.model].task]
