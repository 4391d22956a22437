"""The verbs of `regionrt`: each parses, calls one function of the library, and prints."""

import functools
import sys
import traceback
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated, Any

import typer

from regionrt import __version__
from regionrt.runtime.errors import RegionRTError

from . import console
from .values import labels_from, names_from, ranks_from, size_from

app = typer.Typer(
    name="regionrt",
    help="Region-based detectors from a PyTorch checkpoint to a verified artefact that runs without PyTorch.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
_debug: ContextVar[bool] = ContextVar("debug", default=False)

Data = Annotated[str, typer.Option("--data", metavar="DIR", help="VOC or COCO folder, or `shapes`, made on the fly")]
Model = Annotated[str | None, typer.Option(help="of a plain state_dict: torchvision/<builder>")]
Labels = Annotated[Path | None, typer.Option(help="of a plain state_dict: one class per line")]
AsJson = Annotated[bool, typer.Option("--json", help="print the result as JSON")]
Size = Annotated[str | None, typer.Option(metavar="HxW", help="canvas in pixels, multiples of the stride")]


def main(arguments: Sequence[str]) -> int:
    """Run one command line; `--debug` anywhere shows the traceback of an error."""
    _debug.set("--debug" in arguments)
    try:
        with console.plain_warnings():
            app([argument for argument in arguments if argument != "--debug"], prog_name="regionrt")
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 1
    return 0


def verb(name: str | None = None, **settings: Any) -> Callable[[Callable[..., int | None]], Callable[..., None]]:
    """Make a function a verb: what it returns is the exit code, and what the library raises becomes one line and 1."""

    def register(function: Callable[..., int | None]) -> Callable[..., None]:
        @functools.wraps(function)
        def guarded(*arguments: Any, **options: Any) -> None:
            try:
                code = function(*arguments, **options) or 0
            except RegionRTError as error:
                code = _failed(str(error))
            except KeyboardInterrupt:
                console.say("interrupted")
                code = 130
            except (typer.BadParameter, typer.Exit, typer.Abort):
                raise
            except Exception as error:
                text = " ".join(str(error).split())
                code = _failed(f"{type(error).__name__}: {text} (a defect of regionrt: --debug shows where)")
            if code:
                raise typer.Exit(code)

        return app.command(name, **settings)(guarded)

    return register


def _failed(text: str) -> int:
    if _debug.get():
        traceback.print_exc()
    console.say(f"error: {text}")
    return 1


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="print the version and exit", is_eager=True)] = False,
) -> None:
    if version:
        console.out.print(__version__)
        raise typer.Exit


def _checkpoint(path: Path, model: str | None, labels: Path | None) -> Any:
    from regionrt.train.checkpoint import read_checkpoint

    return read_checkpoint(path, model, labels_from(labels))


def _is_bundle(path: Path) -> bool:
    return path.is_dir()


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
        "each of them: train, eval, compress, export (fp32, fp16; fixed or dynamic size), "
        "run by onnxruntime, build for tensorrt-rtx, verify, bench, deploy"
    )


@verb()
def train(
    model: Annotated[str, typer.Argument(help="a name of `regionrt models`")],
    data: Data,
    out: Annotated[Path, typer.Option(metavar="RUN", help="run folder: best.pt, last.pt, log.csv")],
    backbone: Annotated[
        str | None, typer.Option(help="squeezenet1_1, mobilenet_v2, mobilenet_v3_large, resnet18, resnet50")
    ] = None,
    size: Size = None,
    epochs: int = 20,
    batch: Annotated[int, typer.Option(help="images per step and process")] = 4,
    lr: Annotated[float, typer.Option(help="highest learning rate of the schedule")] = 0.01,
    init: Annotated[Path | None, typer.Option(metavar="WEIGHTS", help="ImageNet weights of the backbone")] = None,
    freeze: Annotated[str | None, typer.Option(metavar="LAYERS", help="comma-separated, e.g. backbone")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on after the last whole epoch in RUN")] = False,
    classes: Annotated[str | None, typer.Option(help="comma-separated; only these classes of the data")] = None,
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
    """Train a model on VOC, COCO or `shapes` data."""
    from regionrt.train.options import TrainOptions
    from regionrt.train.trainer import train as run

    low, _, high = scale.partition(",")
    try:
        scales = (float(low), float(high or low))
    except ValueError as error:
        raise typer.BadParameter(f"--scale: expected LOW,HIGH such as 0.8,1.2, found {scale!r}") from error
    options = TrainOptions(
        epochs=epochs, batch=batch, lr=lr, init=init, freeze=names_from(freeze) or (), resume=resume,
        size=size_from(size), precision=precision, early_stop=early_stop, evaluate_every=evaluate_every,
        scale=scales, colour=colour, flip=flip, workers=workers,
        devices=int(devices) if devices.isdigit() else devices, strategy=strategy, accelerator=accelerator, seed=seed,
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
        rows.append(dict(row))
        console.say("  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()))

    best = run(model, data, out, options, config=config, classes=names_from(classes), report=report)
    if as_json:
        console.print_json({"best": str(best), "epochs": rows})
    else:
        console.out.print(f"{best}", markup=False)


def _settings(pairs: Sequence[str]) -> dict[str, Any]:
    """`representation=512` → {"representation": 512}; values are JSON, or text where they are none."""
    import json

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
    model: Model = None,
    labels: Labels = None,
    max_images: Annotated[int | None, typer.Option(help="only the first ones")] = None,
    backend: Annotated[str, typer.Option(help="of a bundle")] = "auto",
    as_json: AsJson = False,
) -> None:
    """COCO AP and VOC AP of a checkpoint or a bundle, by the same code."""
    from regionrt.runtime import load
    from regionrt.train.data import open_data
    from regionrt.train.evaluate import evaluate as measure
    from regionrt.train.torch_runner import torch_predictor

    if _is_bundle(source):
        predict = load(source, backend)
    else:
        predict = torch_predictor(_checkpoint(source, model, labels))
    with predict, console.counting(f"{source.name} on {split}") as tell:
        found = measure(predict, open_data(data, split, predict.labels), max_images=max_images, progress=tell)
    if as_json:
        console.print_json({**found.to_json(), "about": predict.about})
        return
    backend_used = f"{predict.about['backend']} {predict.about.get('precision', '')}"
    title = f"{source} on {split}, {len(found.image_ids)} images, {backend_used} (points, 0..100)"
    console.table(title, ["figure", "value"], console.metrics_rows(found.metrics))
    columns = ["AP", "AP50"] + (["mask_AP", "mask_AP50"] if "mask_AP" in found.metrics else [])
    rows = [
        [name, f"{int(values['objects'])}", *(row[1] for row in console.metrics_rows({c: values[c] for c in columns}))]
        for name, values in found.per_class.items()
    ]
    console.table("per class", ["class", "objects", *columns], rows)


@verb()
def compress(
    checkpoint: Path,
    out: Annotated[Path, typer.Option(metavar="CKPT")],
    rank: Annotated[str, typer.Option(metavar="fc6=1024,fc7=256", help="rank of each layer to split")],
    model: Model = None,
    labels: Labels = None,
    as_json: AsJson = False,
) -> None:
    """Split fully connected layers by truncated SVD; the result is a checkpoint that trains and exports as before."""
    from regionrt.export.compress.checkpoint import compress_checkpoint
    from regionrt.train.checkpoint import write_checkpoint

    compressed, layers = compress_checkpoint(_checkpoint(checkpoint, model, labels), ranks_from(rank))
    write_checkpoint(out, compressed)
    if as_json:
        console.print_json({"checkpoint": str(out), "layers": [layer.to_json() for layer in layers]})
        return
    rows = [
        [x.name, str(x.rank), str(x.weights_before), str(x.weights_after), f"{100 * x.energy:.2f}%"] for x in layers
    ]
    console.table(str(out), ["layer", "rank", "weights before", "after", "energy kept"], rows)


@verb()
def export(
    checkpoint: Path,
    out: Annotated[Path, typer.Option(metavar="BUNDLE")],
    model: Model = None,
    labels: Labels = None,
    precision: Annotated[str, typer.Option(help="fp32 or fp16")] = "fp32",
    ops: Annotated[str, typer.Option(help="forms of our ops: native, portable, or both")] = "native,portable",
    size: Size = None,
    dynamic: Annotated[bool, typer.Option("--dynamic", help="any size up to --size, in steps of the stride")] = False,
    score: Annotated[float | None, typer.Option(help="score threshold; default: the model's")] = None,
    nms: Annotated[float | None, typer.Option(help="IoU threshold of the final NMS")] = None,
    detections: Annotated[int | None, typer.Option(help="most detections of an image")] = None,
    proposals: Annotated[int | None, typer.Option(help="most proposals of an image")] = None,
    as_json: AsJson = False,
) -> None:
    """Checkpoint → bundle: ONNX files, weights, labels, manifest."""
    from regionrt.export import ExportOptions, export_bundle
    from regionrt.runtime.bundle import Manifest

    options = ExportOptions(
        precision=precision, ops=names_from(ops) or (), size=size_from(size), dynamic=dynamic, score=score, nms=nms,
        detections=detections, proposals=proposals,
    )  # fmt: skip
    with console.steps("export") as tell:
        export_bundle(_checkpoint(checkpoint, model, labels), out, options, progress=tell)
    _print_bundle(Manifest.read(out), as_json)


def _print_bundle(manifest: Any, as_json: bool) -> None:
    if as_json:
        console.print_json(manifest.to_json())
        return
    canvas = manifest.canvas
    size = f"{'up to ' if canvas.dynamic else ''}{canvas.height}×{canvas.width}"
    total = sum(entry["bytes"] for entry in manifest.files.values())
    rows = [[a.backend, a.form, a.precision, a.files[0]] for a in manifest.artifacts]
    title = f"{manifest.folder}: {manifest.model}, {len(manifest.labels) - 1} classes, {size} px, {total / 1e6:.1f} MB"
    console.table(title, ["backend", "form", "precision", "file"], rows)


@verb(context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []})
def build(context: typer.Context) -> int:
    """Bundle → engines: `regionrt build BUNDLE --target tensorrt-rtx|tensorrt …` (build --help)."""
    from .build import main as run

    return run(context.args)


@verb(context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []})
def infer(context: typer.Context) -> int:
    """Run a bundle on photos: `regionrt infer BUNDLE IMAGE… [--out DIR --format json|coco|image]` (infer --help)."""
    from regionrt.runtime.infer import main as run

    return run(context.args)


@verb(context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []})
def doctor(context: typer.Context) -> int:
    """What is installed, what can run here, and how to get what is missing."""
    from .doctor import main as run

    return run(context.args)


@verb()
def verify(
    bundle: Path,
    checkpoint: Annotated[Path, typer.Option()],
    data: Data,
    split: str = "test",
    images: Annotated[int, typer.Option(help="how many of the split")] = 32,
    batch: Annotated[str, typer.Option(help="batch sizes, comma-separated; stages are fed at the first")] = "1,4",
    model: Model = None,
    labels: Labels = None,
    as_json: AsJson = False,
) -> int:
    """PyTorch against the bundle, stage by stage and end to end, on real images; exit code 1 where they differ."""
    from regionrt.export.verify import verify as run
    from regionrt.train.checkpoint import module_from_checkpoint
    from regionrt.train.data import open_data

    source = _checkpoint(checkpoint, model, labels)
    chosen = open_data(data, split, source.labels)
    samples = [chosen[i] for i in range(min(images, len(chosen)))]
    sizes = [int(n) for n in names_from(batch) or () if n.isdigit() and int(n) > 0]
    if not sizes:
        raise typer.BadParameter(f"--batch: expected sizes such as 1,4, found {batch!r}")
    with console.steps("verify") as tell:
        verdicts = run(
            bundle,
            module_from_checkpoint(source),
            [(sample.name, sample.image()) for sample in samples],
            batches=sizes,
            progress=tell,
        )
    if as_json:
        console.print_json([verdict.to_json() for verdict in verdicts])
    else:
        for verdict in verdicts:
            _print_verdict(verdict)
    return 0 if all(verdict.passed for verdict in verdicts) else 1


def _print_verdict(verdict: Any) -> None:
    rows = [
        [c.stage, c.value, f"{c.error:.1e}", f"{c.limit:.0e}", "ok" if c.passed else "DIFFERS", c.image]
        for c in verdict.checks
    ]
    for a in verdict.agreements:
        verdict_of = "ok" if a.share >= verdict.tolerance.matched else "DIFFERS"
        matched = f"{a.matched} of {max(a.eager, a.artefact)}"
        rows.append([f"end to end, batch {a.batch}", "detections", matched, "", verdict_of, a.worst_image])
    columns = ["stage", "value", "error / matched", "limit", "", "worst image"]
    console.table(f"{verdict.artefact} ({verdict.form}, {verdict.precision}), {verdict.images} images", columns, rows)
    if verdict.first_difference:
        console.say(f"first difference: {verdict.first_difference}")


@verb()
def demo(out: Annotated[Path, typer.Option(metavar="DIR", help="everything goes there")] = Path("demo")) -> None:
    """The whole road on data it makes itself: train, evaluate, export, build, verify, infer, bench."""
    from .demo import demo as run

    run(out)
